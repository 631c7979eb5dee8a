import numpy as np
import pytest
import torch
from torch import nn

from medimg_utils.inspect_network import trace
from medimg_utils.viewers import FieldExplorer

NETWORK = nn.Sequential(
    nn.Conv2d(1, 1, 3, padding=1), nn.MaxPool2d(2), nn.Conv2d(1, 1, 5)
)
FOUND = trace(NETWORK, 1, 24, 32)
LAYERS = {"first": 1, "last": 3}
IMAGE = np.random.default_rng(0).random((24, 32))


def maps(**replaced):
    return {name: np.ones((2, 3, 24, 32)) for name in LAYERS} | replaced


def test_fields_are_those_of_the_trace() -> None:
    explorer = FieldExplorer(IMAGE, FOUND, LAYERS, maps(), row=10, column=20)
    assert explorer.fields() == {
        "first": ((9, 11), (19, 21)),
        "last": FOUND.fields(3, (10 * 8 // 24, 20 * 12 // 32))[0],
    }


def test_the_place_starts_in_the_middle() -> None:
    explorer = FieldExplorer(IMAGE, FOUND, LAYERS, maps())
    assert (explorer.row, explorer.column, explorer.layer) == (12, 16, 1)


def test_influence_is_kept_as_a_logarithm() -> None:
    spot = np.zeros((1, 1, 24, 32))
    spot[..., :12, :] = 1.0
    spot[..., 12:, :16] = 0.1
    alone = {"first": spot}
    explorer = FieldExplorer(IMAGE, FOUND, {"first": 1}, alone)
    levels = explorer._maps[0, 0, 0]
    assert levels[0, 0] == 15
    assert levels[-1, 0] == 10  # a factor of ten is a third of the range
    assert levels[-1, -1] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image": np.zeros((24, 30))}, r"image has shape \(24, 30\)"),
        ({"layers": {"first": 1}}, "expected the same names"),
        ({"layers": {}, "influences": {}}, "expected the same names"),
        ({"influences": maps(last=np.ones((2, 3, 24, 30)))}, r"influence of 'last'"),
        ({"influences": maps(last=np.ones((2, 2, 24, 32)))}, "grids"),
        ({"influences": maps(last=-np.ones((2, 3, 24, 32)))}, "not 0 or more"),
        ({"influences": maps(last=np.full((2, 3, 24, 32), np.nan))}, "not 0 or more"),
    ],
)
def test_wrong_input_is_refused(options: dict, message: str) -> None:
    given = {"image": IMAGE, "layers": LAYERS, "influences": maps()} | options
    with pytest.raises(ValueError, match=message):
        FieldExplorer(given["image"], FOUND, given["layers"], given["influences"])


def test_a_layer_without_a_map_is_refused() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    found = trace(network, 1, 3, 4)
    with pytest.raises(ValueError, match=r"layer 'all' has shape \(2,\)"):
        FieldExplorer(
            torch.zeros(3, 4).numpy(),
            found,
            {"all": len(found.layers) - 1},
            {"all": np.ones((1, 1, 3, 4))},
        )


def test_the_bundle_holds_a_still_picture() -> None:
    explorer = FieldExplorer(IMAGE, FOUND, LAYERS, maps(), title="Noise")
    data, _ = explorer._repr_mimebundle_()
    assert len(data["image/png"]) > 1000
    assert data["text/plain"] == "Noise and what a network looks at."
