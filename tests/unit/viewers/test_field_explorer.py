import zlib

import numpy as np
import pytest
import torch
from torch import nn

from medimg_utils.errors import InputError
from medimg_utils.inspect_network import influence, trace
from medimg_utils.viewers import FieldExplorer
from medimg_utils.viewers.field_explorer import FAR, NEAR, _split, _to_levels

MODULES = {"first": "0", "last": ""}
IMAGE = np.random.default_rng(0).random((24, 32))


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 1, 3, padding=1), nn.MaxPool2d(2), nn.Conv2d(1, 1, 5)
    )


def test_fields_are_those_of_the_trace(network) -> None:
    explorer = FieldExplorer(IMAGE, network, MODULES, grid=4, row=10, column=20)
    assert (explorer.grid_row, explorer.grid_column) == (1, 2)
    assert explorer.pixel == (9, 20)  # the middles of 6 rows and of 8 columns
    found = trace(network, 1, 24, 32)
    last = (9 * 8 // 24, 20 * 12 // 32)
    assert explorer.fields() == {
        "first": ((8, 10), (19, 21)),
        "last": found.fields(3, last)[0],
    }
    assert explorer.asked() == {
        "first": found.fields(3, last)[1],
        "last": tuple((n, n) for n in last),
    }


def test_the_place_starts_in_the_middle(network) -> None:
    explorer = FieldExplorer(IMAGE, network, MODULES, grid=5)
    assert (explorer.grid_row, explorer.grid_column, explorer.layer) == (2, 2, 1)
    assert explorer.pixel == (12, 16)
    corner = FieldExplorer(IMAGE, network, MODULES, grid=5, row=23, column=31)
    assert (corner.grid_row, corner.grid_column) == (4, 4)


def test_the_influence_is_that_of_the_chosen_place(network) -> None:
    explorer = FieldExplorer(IMAGE, network, MODULES, grid=3)
    stored = np.frombuffer(zlib.decompress(explorer.near_data), np.uint8)
    stored = stored.reshape(2, 3, 3, NEAR, NEAR)
    image = torch.from_numpy(IMAGE).float()[None]
    for row in range(3):
        for column in range(3):
            explorer.grid_row, explorer.grid_column = row, column
            y, x = explorer.pixel
            seen = influence(network, image, (y * 8 // 24, x * 12 // 32))
            field = explorer.fields()["last"]
            near, _ = _split(seen, field)
            levels = _to_levels(near[None], near.max().reshape(1, 1, 1))[0]
            assert np.array_equal(stored[1, row, column], levels)
            assert levels.max() == 15
    assert not explorer._far.any()  # nothing looks beyond its field


def test_influence_is_parted_at_the_border_of_the_field() -> None:
    seen = torch.full((2 * FAR, 2 * FAR), 0.1)
    seen[5:20, 7:30] = 2.0
    near, far = _split(seen, ((5, 19), (7, 29)))
    torch.testing.assert_close(near, torch.full((NEAR, NEAR), 2.0))
    covered = torch.zeros(FAR, FAR, dtype=torch.bool)
    covered[3:10, 4:15] = True  # cells of 2 × 2 that lie in the field as a whole
    torch.testing.assert_close(far[covered], torch.zeros(7 * 11))
    torch.testing.assert_close(far[~covered], torch.full((FAR**2 - 77,), 0.1))


def test_influence_is_kept_as_a_logarithm() -> None:
    most = torch.tensor(2.0).reshape(1, 1, 1)
    values = torch.tensor([[[2.0, 0.2, 0.0019, 0.0, 5.0]]])
    assert _to_levels(values, most).tolist() == [[[15, 10, 0, 0, 15]]]


def test_a_normalisation_looks_beyond_the_field() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.InstanceNorm2d(4))
    explorer = FieldExplorer(IMAGE, network, {"output": ""}, grid=2)
    assert explorer._far.any()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"image": np.zeros(24)}, ValueError, r"image has shape \(24,\)"),
        ({"image": np.full((24, 32), np.nan)}, ValueError, "NaN or infinite"),
        ({"modules": {}}, ValueError, "modules is empty"),
        ({"modules": {"head": "head"}}, InputError, "no operation of a module 'head'"),
        ({"grid": 0}, ValueError, "grid is 0, expected 1 to 24"),
        ({"grid": 25}, ValueError, "grid is 25, expected 1 to 24"),
    ],
)
def test_wrong_input_is_refused(network, options, error, message: str) -> None:
    given = {"image": IMAGE, "modules": MODULES, "grid": 2} | options
    with pytest.raises(error, match=message):
        FieldExplorer(given["image"], network, given["modules"], grid=given["grid"])


def test_a_layer_without_a_map_is_refused() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    with pytest.raises(ValueError, match=r"layer 'all' has shape \(2,\)"):
        FieldExplorer(np.zeros((3, 4)), network, {"all": ""}, grid=1)


def test_the_bundle_holds_a_still_picture(network) -> None:
    explorer = FieldExplorer(IMAGE, network, MODULES, grid=2, title="Noise")
    data, _ = explorer._repr_mimebundle_()
    assert len(data["image/png"]) > 1000
    assert data["text/plain"] == "Noise and what a network looks at."
