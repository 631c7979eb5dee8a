"""Toy patients in the layouts of BraTS and MSD, and one small simulated release."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from medimg_utils.brain.experiment import EXPERIMENTS, Experiment, train
from medimg_utils.brain.simulate import Simulation, simulate_release
from medimg_utils.settings import get_settings

SHAPE = (48, 56, 44)
SPACING = 3.0
# BraTS files run to the patient's left, to the back and to the top.
AFFINE = np.diag([-SPACING, -SPACING, SPACING, 1.0])
AFFINE[:3, 3] = (70, 80, -60)
# mean grey value of: healthy tissue (outer, inner), core, oedema, enhancing tumour
GREY = {
    "t1": (90, 120, 70, 85, 95),
    "t1ce": (95, 125, 80, 90, 220),
    "t2": (80, 60, 190, 130, 120),
    "flair": (70, 65, 140, 170, 150),
}
NAMES = {
    "brats2018": "Brats18_TOY_{:03d}_1",
    "brats2019": "BraTS19_TOY_{:03d}_1",
    "brats2020": "BraTS20_Training_{:03d}",
    "brats2021": "BraTS2021_{:05d}",
    "brats2023": "BraTS-GLI-{:05d}-000",
    "brats2024": "BraTS-GLI-{:05d}-100",
}
KINDS = {
    "old": {"t1": "_t1", "t1ce": "_t1ce", "t2": "_t2", "flair": "_flair", "seg": "_seg"},
    "new": {"t1": "-t1n", "t1ce": "-t1c", "t2": "-t2w", "flair": "-t2f", "seg": "-seg"},
}  # fmt: skip
# what the release writes for background, core, oedema and enhancing tumour
VALUES = {
    "brats2018": (0, 1, 2, 4),
    "brats2019": (0, 1, 2, 4),
    "brats2020": (0, 1, 2, 4),
    "brats2021": (0, 1, 2, 4),
    "brats2023": (0, 1, 2, 3),
    "brats2024": (0, 1, 2, 3),
    "msd": (0, 2, 1, 3),
}


def anatomy(seed: int, enhancing: bool = True) -> np.ndarray:
    """(D, H, W): -1 outside the brain, 0 outer, 1 inner tissue, 2 core, 3 oedema, 4 ET."""
    random = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij"))
    middle = np.array([s / 2 for s in SHAPE]).reshape(3, 1, 1, 1)
    radii = np.array([18, 22, 16]).reshape(3, 1, 1, 1) * random.uniform(0.95, 1.05)
    distance = np.sqrt((((grid - middle) / radii) ** 2).sum(0))
    out = np.where(distance < 1, 0, -1)
    out[distance < 0.75] = 1
    side = random.choice([-1, 1])
    center = middle[:, 0, 0, 0] + (side * 7, *random.uniform(-5, 5, 2))
    away = np.sqrt(((grid - center.reshape(3, 1, 1, 1)) ** 2).sum(0))
    inside = distance < 0.97
    for label, radius in ((3, random.uniform(8, 9)), (4, 5.5), (2, 3.5)):
        out[(away < radius) & inside] = label
    if not enhancing:
        out[out == 4] = 2
    return out


def volumes(seed: int, **changes: Any) -> dict[str, np.ndarray]:
    """Four int16 images and the tissue map of one patient, in the files' order of axes."""
    tissue = anatomy(seed, **changes)
    random = np.random.default_rng(seed + 1)
    found: dict[str, np.ndarray] = {"tissue": tissue}
    for name, greys in GREY.items():
        gain = random.uniform(0.8, 1.5)
        image = np.array([*greys, 0.0])[tissue] + random.normal(0, 6, SHAPE)
        found[name] = np.where(tissue < 0, 0, np.clip(gain * image, 1, None))
    return {name: np.asarray(value, np.int16) for name, value in found.items()}


def write(path: Path, voxels: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, affine), path)
    return path


def write_case(
    root: Path, layout: str, number: int, *, ending: str = ".nii.gz", **changes: Any
) -> Path:
    """One patient; returns its folder (the image file in MSD)."""
    made = volumes(number, **changes)
    mask = np.array([0, 0, *np.take(VALUES[layout], [1, 2, 3]), 0])[made["tissue"]]
    mask = mask.astype(np.uint8)
    if layout == "msd":
        name = f"BRATS_{number:03d}.nii.gz"
        stacked = np.stack([made[k] for k in ("flair", "t1", "t1ce", "t2")], axis=-1)
        write(root / "labelsTr" / name, mask)
        facts = {
            "modality": {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"},
            "labels": {
                "0": "background", "1": "edema", "2": "non-enhancing tumor",
                "3": "enhancing tumour",
            },
        }  # fmt: skip
        (root / "dataset.json").write_text(json.dumps(facts))
        return write(root / "imagesTr" / name, stacked)
    name = NAMES[layout].format(number)
    parent = root / ("HGG" if number % 3 else "LGG") if layout == "brats2018" else root
    kinds = KINDS["new" if layout in ("brats2023", "brats2024") else "old"]
    for kind, suffix in kinds.items():
        voxels = mask if kind == "seg" else made[kind]
        write(parent / name / f"{name}{suffix}{ending}", voxels)
    return parent / name


def write_release(
    root: Path, layout: str = "brats2018", patients: int = 10, first: int = 0
) -> Path:
    """Patients with survival times that fall with age, in one of the layouts."""
    random = np.random.default_rng(0)
    rows = []
    for number in range(first, first + patients):
        write_case(root, layout, number, enhancing=number % 5 != 4)
        age = 35 + 4 * (number - first)
        days = 900 - 8 * age + random.normal(0, 40)
        status = "GTR" if number != 1 else "NA"
        name = NAMES.get(layout, "{}").format(number)
        rows.append(f"{name},{age}.5,{days:.0f},{status}")
    if layout == "brats2018":
        head = "Brats18ID,Age,Survival,ResectionStatus"
        (root / "survival_data.csv").write_text("\n".join([head, *rows]) + "\n")
    return root


@pytest.fixture(scope="session")
def brats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve patients in the layout of BraTS 2018; tests only read it."""
    return write_release(tmp_path_factory.mktemp("brats"), patients=12)


@pytest.fixture(scope="session")
def toy() -> Experiment:
    """Settings that train on toy patients in seconds."""
    return replace(
        EXPERIMENTS["tiny"],
        voxel=6.0,
        margin=1,
        find_width=4,
        segment_width=4,
        find_epochs=14,
        rehearse_epochs=3,
        segment_epochs=2,
        one_pass_epochs=1,
        find_rate=1e-2,
        side=12,
        rehearse_side=24,
        least=2,
        statistics_patches=2,
    )


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory, brats: Path, toy: Experiment) -> Path:
    """Networks trained for seconds on toy patients; tests only read them."""
    out = tmp_path_factory.mktemp("run")
    train(brats, out, toy, accelerator="cpu", workers=0, progress=False)
    return out


@pytest.fixture(name="write_case")
def _write_case() -> Callable[..., Path]:
    """The writer of single patients."""
    return write_case


@pytest.fixture(scope="session", name="write_release")
def _write_release() -> Callable[..., Path]:
    """The writer of releases with survival times."""
    return write_release


@pytest.fixture(name="write_nifti")
def _write_nifti() -> Callable[..., Path]:
    """The writer of single volumes."""
    return write


#: What the tests of the simulation's frame vary.
PLAN = Simulation(patients=3, seed=8, spacing=4.0, lgg_rate=0.34)


@pytest.fixture(scope="session")
def plan() -> Simulation:
    """Settings of the release `small`."""
    return PLAN


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three simulated patients at 4 mm, made by two processes without a break."""
    return simulate_release(
        tmp_path_factory.mktemp("brain") / "release",
        PLAN,
        workers=2,
        data_dir=get_settings().data,
        progress=False,
    )
