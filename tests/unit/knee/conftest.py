"""A toy release in the MRNet layout: drawn knees with planted signals, and their truth."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

SERIES = ("sagittal", "coronal", "axial")
SIDE = 64


def draw_series(
    random: np.random.Generator, findings: set[str], series: str
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Volume (S, 64, 64) uint8 and {diagnosis: lesion}: a limb, with spots.

    A cruciate tear is bright, a meniscal tear is dark, an effusion is striped; each has
    its own place, and lies in two slices.
    """
    slices = int(random.integers(5, 10))
    rows, columns = np.mgrid[:SIDE, :SIDE]
    limb = (rows - 32) ** 2 / 30**2 + (columns - 32) ** 2 / 26**2 < 1
    texture = random.standard_normal((slices, SIDE, SIDE))
    skin = (rows - 32) ** 2 / 27**2 + (columns - 32) ** 2 / 23**2 > 1
    volume = np.where(limb & skin, 200.0, np.where(limb, 80, 3)) + 6 * texture
    stripes = np.where((rows + columns) // 2 % 2, 60, -60)
    looks = {  # row, column, radius, what is added
        "acl": (28, 34, 6.0, 120),
        "meniscus": (42, 20 if series != "axial" else 44, 6.0, -78),
        "effusion": (14, 32, 7.0, stripes),
    }
    lesions = {
        name: np.zeros(volume.shape, bool) for name in ("abnormal", "acl", "meniscus")
    }
    for name in sorted(findings):
        row, column, radius, change = looks[name]
        row, column = row + random.integers(-3, 4), column + random.integers(-3, 4)
        spot = (rows - row) ** 2 + (columns - column) ** 2 < radius**2
        first = int(random.integers(0, slices - 1))
        for index in range(first, first + 2):
            volume[index] += np.where(spot, change, 0)
            lesions["abnormal"][index] |= spot
            if name in lesions:
                lesions[name][index] |= spot
    gain = random.uniform(0.6, 1.1)
    return np.clip(volume * gain, 0, 255).astype(np.uint8), lesions


def write_exams(root: Path, split: str, numbers: range, seed: int) -> dict[str, dict]:
    """Write one split with its tables and lesions; what is true of its exams."""
    random = np.random.default_rng(seed)
    release = root / "MRNet-v1.0"
    release.mkdir(parents=True, exist_ok=True)
    truth = {}
    for number in numbers:
        name = f"{number:04d}"
        drawn = random.random(3) < 0.4
        findings = {
            finding
            for finding, there in zip(
                ("acl", "meniscus", "effusion"), drawn, strict=True
            )
            if there
        }
        for series in SERIES:
            volume, lesions = draw_series(random, findings, series)
            path = release / split / series / f"{name}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, volume)
            stored = root / "lesions" / split / series / f"{name}.npz"
            stored.parent.mkdir(parents=True, exist_ok=True)
            np.savez_compressed(stored, **lesions)
        truth[name] = {
            "split": split,
            "anatomy": f"knee{number % 2 + 1}",
            "side": "left" if number % 3 else "right",
            "findings": [
                {
                    "diagnosis": "abnormal" if finding == "effusion" else finding,
                    "kind": finding,
                    "grade": ("subtle", "marked")[number % 2],
                    "where": "",
                }
                for finding in sorted(findings)
            ],
        }
    for diagnosis in ("abnormal", "acl", "meniscus"):
        lines = []
        for name, facts in truth.items():
            kinds = [finding["kind"] for finding in facts["findings"]]
            positive = bool(kinds) if diagnosis == "abnormal" else diagnosis in kinds
            lines.append(f"{name},{int(positive)}")
        (release / f"{split}-{diagnosis}.csv").write_text("\n".join(lines) + "\n")
    return truth


def write_mrnet(root: Path, train: int = 48, valid: int = 24, seed: int = 0) -> Path:
    """`root/MRNet-v1.0`, with `simulation-truth.json` and `lesions/` beside it."""
    truth = write_exams(root, "train", range(train), seed)
    truth |= write_exams(root, "valid", range(train, train + valid), seed + 1)
    (root / "simulation-truth.json").write_text(json.dumps(truth))
    return root / "MRNet-v1.0"


@pytest.fixture(scope="session")
def mrnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 + 24 exams; tests only read it."""
    return write_mrnet(tmp_path_factory.mktemp("mrnet"))


@pytest.fixture(name="write_mrnet")
def _write_mrnet() -> Callable[..., Path]:
    """The writer, for tests that change a release."""
    return write_mrnet
