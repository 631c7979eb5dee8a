"""Simulated knee exams, written as the MRNet release is.

An exam is one of three real label maps with soft tissue around it (:mod:`.phantom`),
deformed into a patient, painted with findings (:mod:`.findings`) and scanned three times
(:mod:`.series`).  :func:`simulate_release` writes

    OUT/MRNet-v1.0/{train,valid}/{axial,coronal,sagittal}/0000.npy   (S, 256, 256) uint8
    OUT/MRNet-v1.0/{train,valid}-{abnormal,acl,meniscus}.csv         0000,1
    OUT/lesions/{train,valid}/{axial,coronal,sagittal}/0000.npz      (S, 256, 256) bool,
                                                          one a diagnosis that is shown
    OUT/simulation-truth.json   what only a simulation knows; readers never open it
    OUT/simulation.json         the settings

One seed gives one set of bytes, whatever the number of workers.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from medimg_utils.errors import InputError
from medimg_utils.io import atomic_path, write_json_atomic, write_text_atomic
from medimg_utils.knee.findings import (
    DIAGNOSES,
    Finding,
    paint,
    random_findings,
    without,
)
from medimg_utils.knee.phantom import ANATOMIES, load_knee, prepare
from medimg_utils.knee.series import PLANES, random_patient, random_scanner, render
from medimg_utils.knee.soft_tissue import HABITUS
from medimg_utils.knee.texture import load_textures
from medimg_utils.settings import Settings, get_settings
from medimg_utils.simulation import (
    Part,
    choose_plan,
    ensure,
    find_parts,
    write_in_parts,
)

Kind = TypeVar("Kind")

SPLITS = ("train", "valid")
#: Version of the simulation: another version gives other pictures for the same seed.
#: Within one version the arithmetic may change its rounding.
VERSION = 5
#: Which diagnoses go together, and how many exams of the release have them.  Training:
#: Bien et al. 2018.  Validation: the totals are theirs (95 abnormal, 54 ACL tears, 52
#: meniscal tears of 120), how many have both tears is our choice.
GROUPS = {
    "normal": (),
    "abnormal": ("abnormal",),
    "meniscus": ("abnormal", "meniscus"),
    "acl": ("abnormal", "acl"),
    "both": ("abnormal", "acl", "meniscus"),
}
TRAIN_MIX = {"normal": 217, "abnormal": 433, "meniscus": 272, "acl": 83, "both": 125}
#: Twins: the groups of two exams of one knee that differ in one diagnosis.  As often as
#: here they give the groups of the training split, up to 1 %.
TWINS = {
    ("both", "meniscus"): 70,
    ("both", "acl"): 43,
    ("meniscus", "abnormal"): 168,
    ("acl", "abnormal"): 30,
    ("abnormal", "normal"): 189,
}
VALID_MIX = {"normal": 25, "abnormal": 11, "meniscus": 30, "acl": 32, "both": 22}


@dataclass(frozen=True)
class Simulation:
    """Everything that decides what a simulated release contains.

    Attributes:
        train, valid: number of exams of each split.
        seed: of all that is random.
        anatomies: the knees that exams are made of.
        habitus: the builds of these knees.
        train_mix, valid_mix: how often each of :data:`GROUPS` occurs; they are scaled
            to the number of exams.
        twins: training exams come two by two, as :data:`TWINS` (not ``train_mix``)
            says: 0000 and 0001 show one knee in one scanner, and one has a finding that
            the other lacks.
    """

    train: int
    valid: int
    seed: int
    anatomies: tuple[str, ...] = ANATOMIES
    habitus: tuple[str, ...] = tuple(HABITUS)
    train_mix: Mapping[str, float] = field(default_factory=lambda: dict(TRAIN_MIX))
    valid_mix: Mapping[str, float] = field(default_factory=lambda: dict(VALID_MIX))
    twins: bool = False
    version: int = VERSION

    def __post_init__(self) -> None:
        if self.twins and self.train % 2:
            raise InputError(
                f"train is {self.train}; twins need an even number of exams"
            )
        if min(self.train, self.valid) < 0 or self.train + self.valid < 1:
            raise InputError(
                f"train is {self.train} and valid {self.valid}; whole numbers from 0 on "
                "are needed, and at least one exam"
            )
        if self.train + self.valid > 10_000:
            raise InputError(
                f"{self.train + self.valid} exams are wanted, but names have four digits: "
                "at most 10000 in one release"
            )
        if self.seed < 0:
            raise InputError(f"seed is {self.seed}; a whole number from 0 on is needed")
        if not self.anatomies:
            raise InputError(f"no anatomy is given; use some of {', '.join(ANATOMIES)}")
        if unknown := sorted(set(self.anatomies) - set(ANATOMIES)):
            raise InputError(
                f"unknown anatomies {unknown}: use some of {', '.join(ANATOMIES)}"
            )
        if unknown := sorted(set(self.habitus) - set(HABITUS)):
            raise InputError(
                f"unknown habitus {unknown}: use some of {', '.join(HABITUS)}"
            )
        if not self.habitus:
            raise InputError(f"no habitus is given; use some of {', '.join(HABITUS)}")
        for mix in (self.train_mix, self.valid_mix):
            wrong = set(mix) - set(GROUPS) or min(mix.values(), default=-1) < 0
            if wrong or not sum(mix.values()) > 0:
                raise InputError(
                    f"the mix of exams is {dict(mix)}; shares from 0 on of some of "
                    f"{', '.join(GROUPS)} are needed, and not all 0"
                )


#: What the tests and a first run of the notebooks use.
TINY = Simulation(
    16,
    8,
    seed=1,
    habitus=("average",),
    train_mix={"normal": 1, "abnormal": 1, "meniscus": 2, "acl": 2, "both": 2},
    valid_mix={"normal": 1, "abnormal": 1, "meniscus": 2, "acl": 2, "both": 2},
)

#: The anatomy that no lab network learns from.
HELD_OUT = "knee3"
_SEEN = tuple(anatomy for anatomy in ANATOMIES if anatomy != HELD_OUT)
#: What the lab networks learn from; a fold of it chooses the epoch.
LAB_TRAIN = Simulation(2000, 0, seed=100, anatomies=_SEEN, twins=True)
#: Two tests on unseen exams: of anatomies that were trained on, and of the one that was
#: held out.  Their exams are all in ``valid``.
LAB_TESTS = {
    "unseen-patients": Simulation(0, 120, seed=200, anatomies=_SEEN),
    "unseen-anatomy": Simulation(0, 120, seed=300, anatomies=(HELD_OUT,)),
}
#: Plans of the run sizes.
RELEASES = {
    "tiny": TINY,
    "lab": LAB_TRAIN,
    **{f"lab-{name}": plan for name, plan in LAB_TESTS.items()},
}
#: What the simulation writes into the folder of a release.
FILES = (
    "MRNet-v1.0/*/*/*.npy",
    "MRNet-v1.0/*.csv",
    "lesions/*/*/*.npz",
    "simulation-truth.json",
)


def simulate_release(
    out: Path,
    plan: Simulation,
    *,
    workers: int | None = None,
    data_dir: Path | None = None,
    progress: bool = True,
) -> Path:
    """Write a simulated release; go on where an interrupted call stopped.

    Args:
        out: folder to write; created.
        plan: what to simulate.
        workers: processes; by default one a CPU core, and fewer for a small release.
        data_dir: where the anatomy is; ``MEDIMG_DATA`` by default.
        progress: show a progress bar.

    Returns:
        ``out``; the release is in its folder ``MRNet-v1.0``.

    Raises:
        InputError: ``out`` holds something else, or what it holds is damaged.
        AnatomyError: the anatomy cannot be fetched.
    """
    builds = {name: set(plan.habitus) for name in plan.anatomies}
    planned = schedule(plan)
    return _write(out, plan, asdict(plan), planned, builds, workers, data_dir, progress)


def simulate_exams(
    out: Path,
    plan: Simulation,
    exams: Collection[str],
    *,
    workers: int | None = None,
    data_dir: Path | None = None,
    progress: bool = True,
) -> Path:
    """Write some exams of a release, and no others.

    A simulated exam follows from its seed, so a few exams of a large release can be had
    without the rest: their files are those that :func:`simulate_release` writes.

    Args:
        out: folder to write; created.
        plan: of the whole release.
        exams: names of the wanted exams, ``"0042"``.
        workers, data_dir, progress: see :func:`simulate_release`.

    Returns:
        ``out``; the release is in its folder ``MRNet-v1.0``.

    Raises:
        InputError: the release has no exam of such a name.
    """
    planned = schedule(plan)
    wanted = find_parts(exams, {exam: exam for exam in planned}, "exams")
    settings = {**asdict(plan), "written": wanted}
    some = {exam: planned[exam] for exam in wanted}
    builds: dict[str, set[str]] = {}
    for exam, (split, _) in some.items():
        patient = random_patient(
            plan.anatomies, plan.habitus, _random(plan, 1, exam, split)
        )
        builds.setdefault(patient.anatomy, set()).add(patient.habitus)
    return _write(out, plan, settings, some, builds, workers, data_dir, progress)


def _write(
    out: Path,
    plan: Simulation,
    settings: dict[str, Any],
    planned: Mapping[str, tuple[str, str]],
    builds: Mapping[str, set[str]],
    workers: int | None,
    data_dir: Path | None,
    progress: bool,
) -> Path:
    """Scan and write the planned exams, of knees of these builds."""
    parts = [
        Part(exam, (plan, exam, split, group, out, data_dir))
        for exam, (split, group) in planned.items()
    ]

    def anatomy() -> None:
        prepare(builds, data_dir, workers)
        load_textures(data_dir)

    write_in_parts(
        out,
        settings,
        parts,
        simulate_exam,
        lambda records: _finish(out, records),
        prepare=anatomy,
        workers=workers,
        progress=progress,
        title="simulating knee exams",
    )
    return out


def ensure_release(
    size: str,
    settings: Settings | None = None,
    *,
    anew: bool = False,
    progress: bool = True,
) -> Path:
    """The simulated release of a run size, made on first use: :data:`RELEASES`.

    ``tiny``: 16 + 8 exams.  ``lab``: what the lab networks learn from.  What an older
    :data:`VERSION` of the simulation made of the same plan is made anew.

    Args:
        size: name of the plan.
        settings: of the run; those of the environment by default.
        anew: make it again where it is there.
        progress: show a progress bar.

    Returns:
        ``MEDIMG_DATA/knee-<size>/MRNet-v1.0``.

    Raises:
        InputError: there is no such plan, or the folder holds something else.
    """
    plan = choose_plan(RELEASES, size)
    data = (settings or get_settings()).data
    out = data / f"knee-{size}"
    made = ensure(
        simulate_release, out, plan, FILES, data_dir=data, anew=anew, progress=progress
    )
    return made / "MRNet-v1.0"


# --- one exam -------------------------------------------------------------------------


def schedule(plan: Simulation) -> dict[str, tuple[str, str]]:
    """Split and group of each exam by its name; groups occur exactly as often as wanted.

    Names go on from the training split to the validation split, as in the release.
    """
    generator = np.random.default_rng([plan.seed, 0])
    train: list[str]
    if plan.twins:
        pairs = _apportion(list(TWINS.items()), plan.train // 2)
        order = generator.permutation(len(pairs))
        # which of the two is first must not tell anything
        train = [
            group for k in order for group in generator.permutation(pairs[k]).tolist()
        ]
    else:
        train = generator.permutation(_shares(plan.train_mix, plan.train)).tolist()
    valid = generator.permutation(_shares(plan.valid_mix, plan.valid)).tolist()
    rows = [("train", group) for group in train] + [("valid", g) for g in valid]
    return {f"{k:04d}": row for k, row in enumerate(rows)}


def _shares(mix: Mapping[str, float], count: int) -> list[str]:
    return _apportion([(group, mix.get(group, 0.0)) for group in GROUPS], count)


def _apportion(shares: Sequence[tuple[Kind, float]], count: int) -> list[Kind]:
    """``count`` items, each kind as often as its share says: largest remainders."""
    wanted = np.array([share for _, share in shares])
    wanted = wanted / wanted.sum() * count
    whole = np.floor(wanted).astype(int)
    missing = count - int(whole.sum())
    whole[np.argsort(whole - wanted, kind="stable")[:missing]] += 1
    return [
        kind
        for (kind, _), number in zip(shares, whole, strict=True)
        for _ in range(number)
    ]


def simulate_exam(
    plan: Simulation,
    exam: str,
    split: str,
    group: str,
    out: Path,
    data_dir: Path | None = None,
) -> dict[str, Any]:
    """Scan and write one exam.

    Args:
        plan: of the release.
        exam: name of the exam; with the seed it decides all that is random.
        split, group: see :data:`SPLITS` and :data:`GROUPS`.
        out: folder of the release.
        data_dir: where the anatomy is.

    Returns:
        What the truth file says of the exam.
    """
    generator = _random(plan, 1, exam, split)
    twin = f"{int(exam) ^ 1:04d}" if plan.twins and split == "train" else ""
    labels = _labels(group)
    patient = random_patient(plan.anatomies, plan.habitus, generator)
    scanner = random_scanner(generator)
    other = schedule(plan)[twin][1] if twin else group
    if (other, group) in TWINS and twin:
        worse = random_findings(_labels(other), patient.age, generator)
        findings = without(worse, labels, _random(plan, 3, exam, split))
    else:
        findings = random_findings(labels, patient.age, generator)
    knee = load_knee(patient.anatomy, patient.habitus, data_dir)
    canvas = paint(knee, findings, generator)
    record: dict[str, Any] = {
        "exam": exam,
        "split": split,
        "labels": labels,
        "anatomy": patient.anatomy,
        "habitus": patient.habitus,
        "side": patient.side,
        "age": round(patient.age),
        "field": scanner.field,
        "findings": [_describe(f) for f in findings if f.diagnosis],
        "mimics": [_describe(f) for f in findings if not f.diagnosis],
        "series": {},
    }
    for plane in PLANES:
        # a series of its own randomness: what happens in one changes no other
        own = _random(plan, 2, exam, split, PLANES.index(plane))
        series = render(canvas, patient, scanner, plane, own, data_dir)
        _write_array(out / "MRNet-v1.0" / split / plane / f"{exam}.npy", series.volume)
        _write_masks(out / "lesions" / split / plane / f"{exam}.npz", series.lesions)
        record["series"][plane] = {
            "slices": len(series.volume),
            "spacing": [round(float(v), 4) for v in series.spacing],
            "accidents": list(series.accidents),
            "lesion pixels": {
                name: int(series.lesions[name].sum()) if name in series.lesions else 0
                for name in DIAGNOSES
            },
        }
    return record


def _random(
    plan: Simulation, use: int, exam: str, split: str, *more: int
) -> np.random.Generator:
    """The randomness of one use in an exam; twins have the same."""
    twins = plan.twins and split == "train"
    number = int(exam) // 2 if twins else int(exam)
    return np.random.default_rng([plan.seed, use, number, *more])


def _labels(group: str) -> dict[str, int]:
    return {name: int(name in GROUPS[group]) for name in DIAGNOSES}


def _describe(finding: Finding) -> dict[str, Any]:
    """A finding as the truth file has it; three grades of the severity."""
    grades = ("subtle", "moderate", "marked")
    return {
        "diagnosis": finding.diagnosis,
        "kind": finding.kind,
        "grade": grades[min(int(3 * finding.grade), 2)],
        "severity": round(finding.grade, 3),
        "where": finding.where,
    }


def _write_array(file: Path, array: NDArray[np.uint8]) -> None:
    with atomic_path(file) as part, part.open("wb") as stream:
        np.save(stream, array, allow_pickle=False)


def _write_masks(file: Path, masks: Mapping[str, NDArray[np.bool_]]) -> None:
    with atomic_path(file) as part, part.open("wb") as stream:
        np.savez_compressed(stream, allow_pickle=False, **masks)


def _finish(out: Path, records: list[Any]) -> None:
    """Join the records into the tables of the release and the truth file."""
    for split in SPLITS:
        for plane in PLANES:
            (out / "MRNet-v1.0" / split / plane).mkdir(parents=True, exist_ok=True)
        for name in DIAGNOSES:
            rows = [
                f"{record['exam']},{record['labels'][name]}\n"
                for record in records
                if record["split"] == split
            ]
            file = out / "MRNet-v1.0" / f"{split}-{name}.csv"
            write_text_atomic(file, "".join(rows))
    write_json_atomic(
        out / "simulation-truth.json",
        {record.pop("exam"): record for record in records},
    )
