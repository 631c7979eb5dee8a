"""A few random patients with a bright square to find, and an experiment of seconds."""

from __future__ import annotations

import numpy as np
import pytest

from medimg_utils.challenges.ablation import SLICES, Cohorts, Experiment, Patient


def make_patient(number: int, side: int = 32) -> Patient:
    random = np.random.default_rng(number)
    core = np.zeros((SLICES, side, side), bool)
    for plane in core:
        row, column = random.integers(6, side - 14, 2)
        plane[row : row + 8, column : column + 8] = True
    images = random.normal(0, 0.3, (SLICES, 4, side, side)) + 1.5 * core[:, None]
    images[..., :2] = 0  # outside the brain
    return Patient(f"P{number}", images.astype(np.float16), core)


@pytest.fixture(scope="session")
def experiment() -> Experiment:
    return Experiment(
        side=32, voxel=4.0, training=4, validation=2, test=3, archive=2, seeds=2,
        steps=25, batch=4,
    )  # fmt: skip


@pytest.fixture(scope="session")
def cohorts() -> Cohorts:
    people = [make_patient(k) for k in range(11)]
    return Cohorts(people[:6], people[6:8], people[8:])
