"""Simulated radiographs, written as the SIIM-ACR Pneumothorax release is.

A patient is one of four real chest CTs, deformed (:mod:`.view`); a pneumothorax is a
lung of it, collapsed in 3-D (:mod:`.collapse`); films are made in :mod:`.film`.
:func:`simulate_release` writes

    OUT/dicom-images/<StudyUID>/<SeriesUID>/<ImageId>.dcm
    OUT/train-rle.csv          the columns ``ImageId`` and `` EncodedPixels``
    OUT/simulation-truth.csv   what only a simulation knows; readers never open it
    OUT/simulation.json        the settings

One seed gives one set of bytes, whatever the number of workers.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    JPEGBaseline8Bit,
    SecondaryCaptureImageStorage,
    generate_uid,
)
from scipy import ndimage as ndi
from torch import Tensor

from medimg_utils.errors import InputError
from medimg_utils.io import (
    atomic_path,
    encode_rle,
    write_table_atomic,
    write_text_atomic,
)
from medimg_utils.pneumothorax.collapse import (
    Cavity,
    Pneumothorax,
    random_pneumothorax,
)
from medimg_utils.pneumothorax.film import (
    SMALLEST,
    Radiograph,
    fit_pneumothorax,
    render,
)
from medimg_utils.pneumothorax.phantom import (
    ANATOMIES,
    load_chest,
    load_girdle,
    prepare,
)
from medimg_utils.pneumothorax.technique import (
    Patient,
    Rates,
    random_patient,
    random_technique,
)
from medimg_utils.pneumothorax.view import View, make_view
from medimg_utils.settings import Settings, get_settings
from medimg_utils.simulation import (
    Part,
    choose_plan,
    ensure,
    find_parts,
    write_in_parts,
)

#: Mask area as a share of the image at the 5, 25, 50, 75 and 95 % quantile of the
#: 2,669 positive images of the SIIM-ACR table (counted from the public table).
SIIM_AREAS = {0.05: 0.0013, 0.25: 0.0039, 0.5: 0.0082, 0.75: 0.0175, 0.95: 0.0437}
#: Version of the simulation: another version gives other pictures for the same seed.
#: Within one version the arithmetic may change its rounding: a few grey values at most.
VERSION = 5
#: Share of the films of a patient with pneumothorax that show it; the others are from
#: before or after.
_SHOWN = 0.85


@dataclass(frozen=True)
class Simulation:
    """Everything that decides what a simulated release contains.

    Attributes:
        patients: number of patients; each has one to three films.
        seed: of all that is random.
        size: rows and columns of the square images.
        positive_rate: share of images with a pneumothorax; 0.22 as in SIIM-ACR.
        pairs: also write each positive film without the collapse, all else equal.
        anatomies: the CTs that patients are made of.
        rates: of devices, findings and views.
    """

    patients: int
    seed: int
    size: int = 1024
    positive_rate: float = 0.22
    pairs: bool = False
    anatomies: tuple[str, ...] = ANATOMIES
    rates: Rates = field(default_factory=Rates)
    version: int = VERSION

    def __post_init__(self) -> None:
        if self.patients < 1:
            raise InputError(f"patients is {self.patients}; at least 1 is needed")
        if not 64 <= self.size <= 2048:
            raise InputError(f"size is {self.size} pixels; 64 to 2048 are supported")
        if not 0 <= self.positive_rate <= 1:
            raise InputError(f"positive rate is {self.positive_rate}; 0 to 1 is needed")
        if self.seed < 0:
            raise InputError(f"seed is {self.seed}; a whole number from 0 on is needed")
        if not all(0 <= rate <= 1 for rate in self.rates.drain):
            raise InputError(
                f"the rates of drains are {self.rates.drain}; 0 to 1 is needed, for films "
                "without and with pneumothorax"
            )
        if not self.anatomies:
            raise InputError(f"no anatomy is given; use some of {', '.join(ANATOMIES)}")
        unknown = set(self.anatomies) - set(ANATOMIES)
        if unknown:
            raise InputError(
                f"unknown anatomies {sorted(unknown)}: use some of {', '.join(ANATOMIES)}"
            )


def random_area(generator: np.random.Generator) -> float:
    """A mask area as a share of the image, distributed as in SIIM-ACR.

    Log-linear between the quantiles; the ends reach from 0.08 % to 8 %.
    """
    levels = [0.0, *SIIM_AREAS, 1.0]
    areas = [SMALLEST, *SIIM_AREAS.values(), 0.08]
    return float(np.exp(np.interp(generator.random(), levels, np.log(areas))))


#: What the tests and a first run of the notebooks use.
TINY = Simulation(24, seed=1, size=512, positive_rate=0.5)

#: The anatomy that no lab network learns from.
HELD_OUT = "chest2"
_SEEN = tuple(anatomy for anatomy in ANATOMIES if anatomy != HELD_OUT)
#: What the lab network learns from.
LAB_TRAIN = Simulation(
    700,
    seed=100,
    size=512,
    positive_rate=0.5,
    pairs=True,
    anatomies=_SEEN,
    # drains tell nothing here, so that they cannot be learned as a shortcut; folds,
    # clothes and hair, which look like a pleura, are more common than in life
    rates=Rates(drain=(0.15, 0.15), skin_fold=0.15, clothes=0.15, hair=0.08),
)
#: Two tests on unseen patients: of anatomies that were trained on, and of the one that
#: was held out.
LAB_TESTS = {
    "unseen-patients": Simulation(
        134, seed=200, size=512, positive_rate=0.4, anatomies=_SEEN
    ),
    "unseen-anatomy": Simulation(
        134, seed=300, size=512, positive_rate=0.4, anatomies=(HELD_OUT,)
    ),
}


#: Plans of the run sizes.
RELEASES = {
    "tiny": TINY,
    "lab": LAB_TRAIN,
    **{f"lab-{name}": plan for name, plan in LAB_TESTS.items()},
}
#: What the simulation writes into the folder of a release.
FILES = ("dicom-images/*/*/*.dcm", "train-rle.csv", "simulation-truth.csv")


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
        ``out``.

    Raises:
        InputError: ``out`` holds something else, or what it holds is damaged.
        AnatomyError: the anatomy cannot be fetched.
    """
    indices = range(plan.patients)
    return _write(out, plan, asdict(plan), indices, workers, data_dir, progress)


def simulate_films(
    out: Path,
    plan: Simulation,
    image_ids: Collection[str],
    *,
    workers: int | None = None,
    data_dir: Path | None = None,
    progress: bool = True,
) -> Path:
    """Write the patients of some images of a release, and no others.

    A simulated film follows from its seed, so a few films of a large release can be had
    without the rest: the files are those that :func:`simulate_release` writes.

    Args:
        out: folder to write; created.
        plan: of the whole release.
        image_ids: ``ImageId`` of the wanted images.
        workers: see :func:`simulate_release`.
        data_dir: see there.
        progress: see there.

    Returns:
        ``out``, with all films of the patients that the images show.

    Raises:
        InputError: the release holds no image of such a name.
    """
    owner = {
        _uid(plan, "image", f"{index}-{film}{twin}"): index
        for index, films in enumerate(_schedule(plan))
        for film, positive in enumerate(films)
        for twin in (("", "-twin") if positive and plan.pairs else ("",))
    }
    indices = find_parts(image_ids, owner, "images")
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
    """Simulate patients of a plan and join their tables, unless that is done."""
    schedule = _schedule(plan)
    parts = [
        Part(f"{i:06d}", (plan, i, schedule[i], out, data_dir), units=len(schedule[i]))
        for i in indices
    ]
    write_in_parts(
        out,
        settings,
        parts,
        _simulate_patient,
        lambda patients: _finish(out, [row for rows in patients for row in rows]),
        prepare=lambda: prepare(plan.anatomies, data_dir, workers),
        workers=workers,
        progress=progress,
        title="simulating radiographs",
        unit="film",
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

    ``tiny``: 24 patients at 512 px, half of the images positive.  ``lab``: the images
    that the lab network learned from.  What an older :data:`VERSION` of the simulation
    made of the same plan is made anew.

    Args:
        size: name of the plan.
        settings: of the run; those of the environment by default.
        anew: make it again where it is there.
        progress: show a progress bar.

    Returns:
        ``MEDIMG_DATA/pneumothorax-<size>``.

    Raises:
        InputError: there is no such plan, or the folder holds something else.
    """
    plan = choose_plan(RELEASES, size)
    data = (settings or get_settings()).data
    out = data / f"pneumothorax-{size}"
    return ensure(
        simulate_release, out, plan, FILES, data_dir=data, anew=anew, progress=progress
    )


def patients_of(plan: Simulation) -> dict[str, Patient]:
    """Who is in a release: each patient's identifier, and how they are built.

    Sex, age and build follow from the seed, so they need no column in a table, and are
    those of any release of the plan, however old its files.
    """
    return {
        _name(plan, index): _draw_patient(plan, index)[0]
        for index in range(plan.patients)
    }


# --- one patient ----------------------------------------------------------------------


def _name(plan: Simulation, index: int) -> str:
    return f"SIM{plan.seed:04d}-{index:05d}"


def _draw_patient(plan: Simulation, index: int) -> tuple[Patient, np.random.Generator]:
    """A patient, and the generator that goes on to draw their films."""
    generator = np.random.default_rng([plan.seed, 1, index])
    return random_patient(plan.anatomies, plan.rates, generator), generator


def _schedule(plan: Simulation) -> list[list[bool]]:
    """For each patient, for each film: does it show a pneumothorax?

    Films per patient are drawn first; patients fall ill in random order until the
    wanted number of positive films is reached.
    """
    generator = np.random.default_rng([plan.seed, 0])
    films = generator.choice([1, 2, 3], size=plan.patients, p=[0.55, 0.30, 0.15])
    schedule = [[False] * int(n) for n in films]
    wanted = round(plan.positive_rate * int(films.sum()))
    for hidden in (1 - _SHOWN, 0.0):  # a second round where too many were hidden
        for patient in generator.permutation(plan.patients):
            for film in range(len(schedule[patient])):
                if (
                    wanted
                    and not schedule[patient][film]
                    and generator.random() >= hidden
                ):
                    schedule[patient][film] = True
                    wanted -= 1
    return schedule


def _simulate_patient(
    plan: Simulation, index: int, films: list[bool], out: Path, data_dir: Path | None
) -> list[dict[str, Any]]:
    """Render and write all films of one patient; their rows of the tables."""
    patient, generator = _draw_patient(plan, index)
    chest = load_chest(patient.anatomy, data_dir)
    girdle = load_girdle(data_dir)
    rows = []
    for film, positive in enumerate(films):
        technique = random_technique(plan.rates, positive, generator)
        healthy = make_view(chest, patient, technique, plan.size)
        fields: dict[str, Any] = {"side": "", "kind": "", "pair": ""}
        if positive:
            view, gap, found = _collapse_somehow(healthy, generator)
            picture = render(view, girdle, gap)
            # a mirrored patient's right lung is the left one of the CT
            side = found.side ^ patient.mirrored
            fields.update(side="RL"[side], kind=found.kind)
        else:
            view = healthy
            picture = render(healthy, girdle, None)
        name = f"{index}-{film}"
        row = _write_film(plan, out, index, film, name, view, picture, fields)
        if positive and plan.pairs:
            # the technique of the film, and no mediastinum pushed aside
            without = make_view(chest, patient, view.technique, plan.size)
            twin = render(without, girdle, None)
            fields = {"side": "", "kind": "", "pair": row["ImageId"]}
            rows.append(
                _write_film(
                    plan, out, index, film, f"{name}-twin", without, twin, fields
                )
            )
            row["pair"] = rows[-1]["ImageId"]
        rows.append(row)
    return rows


def _collapse_somehow(
    view: View, generator: np.random.Generator
) -> tuple[View, tuple[Cavity, Tensor], Pneumothorax]:
    """A pneumothorax of an area drawn from SIIM-ACR: try shapes until one reaches it."""
    for _ in range(20):
        area = random_area(generator)
        while area >= SMALLEST:
            for _ in range(6):
                wanted = random_pneumothorax(area, generator)
                side = wanted.side if wanted.kind == "tension" else None
                technique = replace(view.technique, drain_side=wanted.side)
                posed = make_view(view.chest, view.patient, technique, view.size, side)
                gap = fit_pneumothorax(posed, wanted)
                if gap is not None:
                    return posed, gap, wanted
            area *= 0.8  # this patient's lungs are too small on the film
    raise RuntimeError(
        f"no pneumothorax shows in this view of {view.patient.anatomy}; its lungs may lie "
        "beside the film"
    )


def _write_film(
    plan: Simulation,
    out: Path,
    index: int,
    film: int,
    name: str,
    view: View,
    picture: Radiograph,
    fields: dict[str, Any],
) -> dict[str, Any]:
    uids = {kind: _uid(plan, kind, name) for kind in ("study", "series", "image")}
    folder = out / "dicom-images" / uids["study"] / uids["series"]
    folder.mkdir(parents=True, exist_ok=True)
    patient = _name(plan, index)
    dataset = _dicom(picture, view, patient, film, uids)
    with atomic_path(folder / f"{uids['image']}.dcm") as part:
        dataset.save_as(part, enforce_file_format=True)
    return {
        "ImageId": uids["image"],
        "runs": _rows_of(picture.mask, f"{plan.seed}-{name}"),
        "patient": patient,
        "anatomy": view.patient.anatomy,
        "view": view.technique.view,
        **fields,
        "area": round(float(picture.mask.mean()), 6),
        "drain": int("drain" in picture.devices),
        "devices": "|".join(picture.devices),
        "findings": "|".join(view.technique.findings),
        "mirrored": int(view.patient.mirrored),
    }


def _uid(plan: Simulation, kind: str, name: str) -> str:
    return str(generate_uid(entropy_srcs=[f"{_identity(plan)}-{kind}-{name}"]))


def _identity(plan: Simulation) -> str:
    return hashlib.sha256(json.dumps(asdict(plan), sort_keys=True).encode()).hexdigest()


def _rows_of(mask: np.ndarray, name: str) -> list[str]:
    """Run lengths as annotators leave them: a row for each region, some drawn in two.

    Of the large regions a sixth is drawn as two overlapping halves.
    """
    if not mask.any():
        return ["-1"]
    generator = np.random.default_rng(list(hashlib.sha256(name.encode()).digest()[:8]))
    labels, count = ndi.label(mask)
    rows = []
    for label in range(1, count + 1):
        region = labels == label
        height = np.flatnonzero(region.any(1))
        if region.sum() > 400 and generator.random() < 1 / 6 and len(height) > 12:
            middle = int(height[len(height) // 2])
            upper, lower = region.copy(), region.copy()
            upper[middle + 2 :] = False
            lower[: middle - 2] = False
            rows += [encode_rle(upper), encode_rle(lower)]
        else:
            rows.append(encode_rle(region))
    return rows


def _dicom(
    picture: Radiograph, view: View, patient: str, film: int, uids: dict[str, str]
) -> FileDataset:
    stream = io.BytesIO()
    Image.fromarray(picture.pixels).save(stream, "JPEG", quality=92)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = UID(uids["image"])
    meta.TransferSyntaxUID = JPEGBaseline8Bit
    ds = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SpecificCharacterSet = "ISO_IR 100"
    ds.SOPClassUID = meta.MediaStorageSOPClassUID
    ds.SOPInstanceUID = uids["image"]
    ds.StudyInstanceUID = uids["study"]
    ds.SeriesInstanceUID = uids["series"]
    ds.Modality = "CR"
    ds.ConversionType = "WSD"
    ds.BodyPartExamined = "CHEST"
    ds.ViewPosition = view.technique.view
    ds.SeriesDescription = f"view: {view.technique.view}"
    ds.ImageComments = "Simulated radiograph, not of a patient"
    ds.PatientName = patient
    ds.PatientID = patient
    ds.PatientBirthDate = ""
    ds.PatientSex = view.patient.sex
    ds.PatientAge = f"{view.patient.age:03d}Y"
    ds.StudyDate, ds.StudyTime = f"2000{1 + film:02d}01", "000000"
    ds.AccessionNumber, ds.ReferringPhysicianName, ds.StudyID = "", "", ""
    ds.SeriesNumber, ds.InstanceNumber = "1", "1"
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.Rows, ds.Columns = picture.pixels.shape
    ds.PixelSpacing = [f"{picture.pixel_mm:.5f}"] * 2
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 8, 8, 7
    ds.PixelRepresentation = 0
    ds.LossyImageCompression = "01"
    ds.LossyImageCompressionMethod = "ISO_10918_1"
    ds.PixelData = encapsulate([stream.getvalue()])
    return ds


def _finish(out: Path, rows: list[dict[str, Any]]) -> None:
    """Write the two tables."""
    table = ["ImageId, EncodedPixels"]
    table += [f"{row['ImageId']},{runs}" for row in rows for runs in row["runs"]]
    write_text_atomic(out / "train-rle.csv", "\n".join(table) + "\n")
    columns = [name for name in rows[0] if name != "runs"]
    write_table_atomic(out / "simulation-truth.csv", rows, columns)
