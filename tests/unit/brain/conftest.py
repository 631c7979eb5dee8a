"""One small release of simulated brains, made once and only read."""

from pathlib import Path

import pytest

from medimg_utils.brain.simulate import Simulation, simulate_release
from medimg_utils.settings import get_settings

#: What the tests of the frame vary.
PLAN = Simulation(patients=3, seed=4, spacing=4.0, lgg_rate=0.34)


@pytest.fixture(scope="session")
def plan() -> Simulation:
    """Settings of the release `small`."""
    return PLAN


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three patients at 4 mm, made by two processes without a break."""
    return simulate_release(
        tmp_path_factory.mktemp("brain") / "release",
        PLAN,
        workers=2,
        data_dir=get_settings().data,
        progress=False,
    )
