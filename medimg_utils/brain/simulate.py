"""Simulated brain tumours, written as the BraTS 2018 release is.

A patient is the MNI template, deformed (:mod:`.phantom`), in which a glioma has grown
(:mod:`.tumour`); :mod:`.scan` takes the images.  :func:`simulate_release` writes

    OUT/{HGG,LGG}/<id>/<id>_{flair,t1,t1ce,t2,seg}.nii.gz
    OUT/survival_data.csv      the columns BraTS18ID, Age, Survival, ResectionStatus
    OUT/simulation-truth.csv   what only a simulation knows; readers never open it
    OUT/simulation.json        the settings, with the coefficients of survival

The volumes are int16, 240 × 240 × 155 voxels of 1 mm, indexed to the left, to the back
and up, 0 outside the brain; labels 1 necrotic or not enhancing, 2 oedema, 4 enhancing.
One seed gives one set of bytes, whatever the number of workers.
"""

from __future__ import annotations

import gzip
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from medimg_utils.brain.head import FIELD_OF_VIEW, Grid, Head, make_grid, make_head
from medimg_utils.brain.phantom import Patient, load_template, prepare, random_patient
from medimg_utils.brain.scan import MODALITIES, Protocol, random_protocol, take
from medimg_utils.brain.tumour import (
    ENHANCING,
    NECROTIC,
    OEDEMA,
    Glioma,
    random_glioma,
)
from medimg_utils.errors import InputError
from medimg_utils.io import atomic_path, write_table_atomic
from medimg_utils.settings import Settings, get_settings
from medimg_utils.simulation import (
    Part,
    choose_plan,
    ensure,
    find_parts,
    write_in_parts,
)

#: Version of the simulation: another version gives other images for the same seed.
VERSION = 2
#: Low-grade gliomas among the 285 training cases of BraTS 2018.
LGG_RATE = 75 / 285


@dataclass(frozen=True)
class Survival:
    """How long a simulated patient lives: the mean is linear, the scatter a factor.

    ``mean = typical + age (Age - 60) + distance (d - 43) + core (v1 - 24)
    + oedema (v2 - 52) + enhancing (v4 - 19) + gross_total [all was removed]``, in days,
    at least ``least``; the days are the mean times a log-normal factor of mean 1.  So a
    linear regression finds the coefficients without bias.

    Attributes:
        typical: mean of a patient of 60 years, with the median tumour of real cases, a
            part of which was left behind.
        age: days per year.
        distance: days per mm between the centroids of tumour and brain.
        core, oedema, enhancing: days per cm³ of label 1, 2 and 4.
        gross_total: days that the removal of all that enhances adds.
        scatter: standard deviation of the logarithm of the factor.
        least: lowest mean.
        gross_total_rate, known_rate: share of patients in whom all was removed, and of
            patients whose resection is in the table.
        listed_rate: share of high-grade patients with survival in the table.
    """

    typical: float = 390.0
    age: float = -6.5
    distance: float = 5.0
    core: float = -1.5
    oedema: float = -1.0
    enhancing: float = -3.0
    gross_total: float = 110.0
    scatter: float = 0.5
    least: float = 60.0
    gross_total_rate: float = 0.6
    known_rate: float = 0.6
    listed_rate: float = 0.78

    def mean(self, row: dict[str, Any]) -> float:
        """Expected days of a patient, from age, measurements and true resection."""
        days = (
            self.typical
            + self.age * (row["age"] - 60)
            + self.distance * (row["distance_mm"] - 43)
            + self.core * (row["core_cm3"] - 24)
            + self.oedema * (row["oedema_cm3"] - 52)
            + self.enhancing * (row["enhancing_cm3"] - 19)
            + self.gross_total * (row["resection"] == "GTR")
        )
        return max(days, self.least)

    def days(self, mean: float, generator: np.random.Generator) -> int:
        """Draw the days a patient of an expected survival lives."""
        factor = np.exp(self.scatter * generator.normal() - self.scatter**2 / 2)
        return max(round(mean * float(factor)), 1)


@dataclass(frozen=True)
class Simulation:
    """Everything that decides what a simulated release contains.

    Attributes:
        patients: number of patients.
        seed: of all that is random.
        spacing: of the voxels in mm; 1 as in BraTS, up to 4.
        lgg_rate: share of low-grade gliomas.
        images: False writes the tables alone: a large cohort for survival in less time.
        survival: the model of survival.
    """

    patients: int
    seed: int
    spacing: float = 1.0
    lgg_rate: float = LGG_RATE
    images: bool = True
    survival: Survival = field(default_factory=Survival)
    version: int = VERSION

    def __post_init__(self) -> None:
        if self.patients < 1:
            raise InputError(f"patients is {self.patients}; at least 1 is needed")
        if self.seed < 0:
            raise InputError(f"seed is {self.seed}; a whole number from 0 on is needed")
        if not 0 <= self.lgg_rate <= 1:
            raise InputError(f"LGG rate is {self.lgg_rate}; 0 to 1 is needed")
        make_grid(self.spacing)  # refuses a spacing out of range


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
        workers: processes, each of about 1.5 GiB at 1 mm; by default one a CPU core, and
            fewer for a small release.
        data_dir: where the anatomy is; ``MEDIMG_DATA`` by default.
        progress: show a progress bar.

    Returns:
        ``out``.

    Raises:
        InputError: ``out`` holds something else, or a simulation with other settings.
        AnatomyError: the anatomy cannot be fetched.
    """
    return _write(
        out, plan, asdict(plan), range(plan.patients), workers, data_dir, progress
    )


def simulate_cases(
    out: Path,
    plan: Simulation,
    case_ids: Collection[str],
    *,
    workers: int | None = None,
    data_dir: Path | None = None,
    progress: bool = True,
) -> Path:
    """Write some patients of a release, and no others.

    A simulated patient follows from the seed, so a few of a large release can be had
    without the rest: the files are those that :func:`simulate_release` writes.

    Args:
        out: folder to write; created.
        plan: of the whole release.
        case_ids: of the wanted patients.
        workers, data_dir, progress: see :func:`simulate_release`.

    Returns:
        ``out``.

    Raises:
        InputError: the release holds no patient of such a name.
    """
    owner = {_case_id(plan, index): index for index in range(plan.patients)}
    indices = find_parts(case_ids, owner, "cases")
    settings = {**asdict(plan), "written": indices}
    return _write(out, plan, settings, indices, workers, data_dir, progress)


def _write(
    out: Path,
    plan: Simulation,
    settings: dict[str, Any],
    indices: Sequence[int],
    workers: int | None,
    data_dir: Path | None,
    progress: bool,
) -> Path:
    grades = _grades(plan)
    parts = [
        Part(f"{index:06d}", (plan, index, grades[index], out, data_dir))
        for index in indices
    ]
    write_in_parts(
        out,
        settings,
        parts,
        _simulate_patient,
        lambda rows: _finish(out, rows),
        prepare=lambda: prepare(data_dir),
        workers=workers,
        progress=progress,
        title="simulating brain tumours",
        unit="patient",
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

    What an older :data:`VERSION` of the simulation made of the same plan is made anew.

    Args:
        size: name of the plan.
        settings: of the run; those of the environment by default.
        anew: make it again where it is there.
        progress: show a progress bar.

    Returns:
        ``MEDIMG_DATA/brain-<size>``.

    Raises:
        InputError: there is no such plan, or the folder holds something else.
    """
    plan = choose_plan(RELEASES, size)
    data = (settings or get_settings()).data
    out = data / f"brain-{size}"
    return ensure(
        simulate_release, out, plan, FILES, data_dir=data, anew=anew, progress=progress
    )


#: Releases of the run sizes.  Each holds other patients: those of ``lab-choice`` choose
#: how the lab networks are used, and the table of ``lab-test`` tells the resection of
#: everyone and the survival of all with a high grade.  On the two ``ablation`` releases
#: :mod:`medimg_utils.challenges.ablation` tests networks of its own; the first shares
#: patients with ``lab-choice``.
RELEASES = {
    "tiny": Simulation(patients=24, seed=1, spacing=4.0),
    "lab": Simulation(patients=240, seed=100, spacing=2.0),
    "lab-choice": Simulation(patients=160, seed=150, spacing=2.0),
    "lab-test": Simulation(
        patients=200,
        seed=300,
        spacing=2.0,
        survival=Survival(known_rate=1.0, listed_rate=1.0),
    ),
    "ablation": Simulation(patients=40, seed=150, spacing=2.0),
    "ablation-more": Simulation(
        patients=72,
        seed=200,
        spacing=2.0,
        survival=Survival(known_rate=1.0, listed_rate=1.0),
    ),
}
#: What the simulation writes into the folder of a release.
FILES = (
    "HGG/*/*.nii.gz",
    "LGG/*/*.nii.gz",
    "survival_data.csv",
    "simulation-truth.csv",
)


# --- one patient ----------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One simulated patient before any image: who it is, and what will be seen."""

    case_id: str
    grade: str
    age: float
    resection: str
    patient: Patient
    glioma: Glioma
    protocol: Protocol


def _case_id(plan: Simulation, index: int) -> str:
    return f"Brats18_SIM{plan.seed:04d}_{index:05d}_1"


def _grades(plan: Simulation) -> list[str]:
    """The grade of each patient: as many low-grade ones as the rate says."""
    generator = np.random.default_rng([plan.seed, 0])
    low = round(plan.lgg_rate * plan.patients)
    places = set(generator.permutation(plan.patients)[:low].tolist())
    return ["LGG" if index in places else "HGG" for index in range(plan.patients)]


def draw_case(plan: Simulation, index: int, grade: str) -> Case:
    """Draw a patient of a plan.

    High-grade gliomas befall older people (BraTS 2018: 60 years, standard deviation
    12) than low-grade ones.
    """
    generator = np.random.default_rng([plan.seed, 1, index])
    mean, deviation = (60.3, 12.1) if grade == "HGG" else (43.0, 12.5)
    age = float(np.clip(generator.normal(mean, deviation), 18, 87))
    removed = generator.random() < plan.survival.gross_total_rate
    patient = random_patient(age, generator)
    glioma = random_glioma(grade, generator)
    return Case(
        case_id=_case_id(plan, index),
        grade=grade,
        age=age,
        resection="GTR" if removed else "STR",
        patient=patient,
        glioma=glioma,
        protocol=random_protocol(glioma.permeability, generator),
    )


def _simulate_patient(
    plan: Simulation, index: int, grade: str, out: Path, data_dir: Path | None
) -> dict[str, Any]:
    """Write the volumes of one patient; return its row of the tables."""
    case = draw_case(plan, index, grade)
    head = make_head(load_template(data_dir), case.patient, case.glioma, plan.spacing)
    if plan.images:
        start = out / grade / case.case_id / case.case_id
        for name in MODALITIES:
            image = take(head, case.protocol, name)
            _write_volume(
                start.with_name(f"{start.name}_{name}.nii.gz"), image, head.grid
            )
        _write_volume(
            start.with_name(f"{start.name}_seg.nii.gz"), head.label, head.grid
        )
    return _row(plan, index, case, head)


def _write_volume(file: Path, box: NDArray[Any], grid: Grid) -> None:
    """Write the box of a field of view as BraTS does: int16, L, P, S, gzip without time."""
    full = np.zeros(grid.shape, np.int16)
    full[grid.box] = box
    step = grid.spacing
    affine = np.diag([-step, -step, step, 1.0])
    # in BraTS the first voxel lies at x = 0, y = 239, z = 0
    last = [step * (n - 1) + (step - 1) / 2 for n in grid.shape]
    affine[:3, 3] = (last[0] - FIELD_OF_VIEW[0] + 1, last[1], (step - 1) / 2)
    image = nib.Nifti1Image(full[::-1, ::-1], affine)
    image.header.set_xyzt_units("mm", "sec")
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    with atomic_path(file) as part:
        part.write_bytes(gzip.compress(image.to_bytes(), compresslevel=4, mtime=0))


def _row(plan: Simulation, index: int, case: Case, head: Head) -> dict[str, Any]:
    """What the tables say of a patient."""
    generator = np.random.default_rng([plan.seed, 2, index])
    label, cm3 = head.label, plan.spacing**3 / 1000
    brain = head.volume(head.brain).numpy()
    volumes = {
        f"{name}_cm3": round(float((label == value).sum()) * cm3, 3)
        for name, value in (
            ("core", NECROTIC),
            ("oedema", OEDEMA),
            ("enhancing", ENHANCING),
        )
    }
    centres = [np.argwhere(mask).mean(0) for mask in (label > 0, brain)]
    distance = float(np.linalg.norm(centres[0] - centres[1])) * plan.spacing
    growth, glioma, acquired = head.growth, case.glioma, case.protocol.acquisitions
    known = {"age": case.age, "resection": case.resection, **volumes}
    mean = plan.survival.mean({**known, "distance_mm": distance})
    days = plan.survival.days(mean, generator)
    status_known, listed = generator.random(2)
    return {
        "BraTS18ID": case.case_id,
        "grade": case.grade,
        "age": round(case.age, 3),
        "sex": case.patient.sex,
        "location": growth.location,
        "side": growth.side,
        "pattern": glioma.pattern,
        "foci": glioma.foci,
        "satellites": glioma.satellites,
        **volumes,
        "distance_mm": round(distance, 3),
        "brain_cm3": round(float(brain.sum()) * cm3, 1),
        "displacement_mm": round(float(growth.displacement.norm(dim=0).max()), 2),
        "field_t": case.protocol.field,
        **{
            f"{name}_slice_mm": round(acquired[name].thickness, 2)
            for name in MODALITIES
        },
        "resection": case.resection,
        "resection_known": int(status_known < plan.survival.known_rate),
        "expected_days": round(mean, 2),
        "days": days,
        "listed": int(case.grade == "HGG" and listed < plan.survival.listed_rate),
    }


# --- tables ---------------------------------------------------------------------------


def _finish(out: Path, rows: Sequence[dict[str, Any]]) -> None:
    survival = [
        {
            "BraTS18ID": row["BraTS18ID"],
            "Age": row["age"],
            "Survival": row["days"],
            "ResectionStatus": row["resection"] if row["resection_known"] else "NA",
        }
        for row in rows
        if row["listed"]
    ]
    columns = ["BraTS18ID", "Age", "Survival", "ResectionStatus"]
    write_table_atomic(out / "survival_data.csv", survival, columns)
    write_table_atomic(out / "simulation-truth.csv", rows)
