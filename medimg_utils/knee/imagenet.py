"""Features that were learned on ImageNet, where they can be had.

AlexNet's come from torchvision, which fetches them from the internet. SqueezeNet's come
out of a package of the Python package index (see `medimg_utils.physics.anatomy`), so
they are there wherever packages can be installed; the file is a pickle, of which nothing
but numbers is read. Without them a network starts from random weights, and says so.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torchvision import models

from medimg_utils.errors import InputError
from medimg_utils.io import read_pickled_arrays
from medimg_utils.knee.models import grey_input, squeezenet_state
from medimg_utils.physics import anatomy


def load_imagenet(
    features: nn.Sequential, backbone: str, data_dir: Path | None = None
) -> str:
    """Put ImageNet weights into the features of a network.

    Args:
        features: of `backbone`, changed in place.
        backbone: `alexnet` or `squeezenet`.
        data_dir: where fetched files are kept; `MEDIMG_DATA` unless given.

    Returns:
        Where the weights come from, in words; `none: random weights` after a warning
        where they cannot be had.
    """
    try:
        if backbone == "alexnet":
            features.load_state_dict(_alexnet())
            return "ImageNet, torchvision AlexNet_Weights.IMAGENET1K_V1"
        if backbone == "squeezenet":
            features.load_state_dict(_squeezenet(data_dir))
            return "ImageNet, SqueezeNet 1.1 out of the package ndf 0.1.4"
    except (OSError, InputError) as error:
        warnings.warn(
            f"no ImageNet weights for {backbone} ({error}). The network starts from "
            "random weights: expect lower numbers than with them.",
            stacklevel=2,
        )
        return "none: random weights"
    raise InputError(f"there are no ImageNet weights for {backbone!r}.")


def _alexnet() -> dict[str, Tensor]:
    weights = models.AlexNet_Weights.IMAGENET1K_V1
    state = weights.get_state_dict(progress=True, check_hash=True)
    return {
        name.removeprefix("features."): value
        for name, value in state.items()
        if name.startswith("features.")
    }


def _squeezenet(data_dir: Path | None) -> dict[str, Tensor]:
    arrays = read_pickled_arrays(anatomy.path("squeezenet", data_dir))
    state = squeezenet_state(
        {
            name: tuple(torch.from_numpy(np.array(array)) for array in pair)
            for name, pair in arrays.items()
        }
    )
    return state | {"0.weight": grey_input(state["0.weight"])}
