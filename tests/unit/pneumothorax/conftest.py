"""Views of the four chests, without borders and letters unless asked for."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from medimg_utils.pneumothorax.phantom import Girdle, load_chest, load_girdle
from medimg_utils.pneumothorax.technique import (
    Rates,
    random_patient,
    random_technique,
)
from medimg_utils.pneumothorax.view import View, make_view
from medimg_utils.settings import get_settings


def pose(
    name: str,
    seed: int,
    *,
    size: int = 160,
    patient: dict[str, Any] | None = None,
    tension: int | None = None,
    **technique: Any,
) -> View:
    """A random view of one anatomy; ``patient`` and keywords replace what was drawn."""
    generator = np.random.default_rng(seed)
    rates = Rates(mirrored=0.0, marker=0.0, words=0.0, shutter=0.0, drain=(0.0, 0.0))
    build = random_patient((name,), rates, generator)
    taken = random_technique(rates, True, generator)
    return make_view(
        load_chest(name, get_settings().data),
        replace(build, **(patient or {})),
        replace(taken, **technique),
        size,
        tension,
    )


@pytest.fixture(name="pose", scope="session")
def _pose() -> Callable[..., View]:
    """The maker of views."""
    return pose


@pytest.fixture(scope="session")
def girdle() -> tuple[Girdle, Girdle]:
    """The two shoulder girdles."""
    return load_girdle(get_settings().data)
