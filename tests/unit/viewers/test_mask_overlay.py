import base64
import io
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from IPython.core.formatters import DisplayFormatter
from PIL import Image

from medimg_utils.viewers import MaskOverlayViewer


def example(**options) -> MaskOverlayViewer:
    image = np.linspace(-1000, 400, 30 * 40).reshape(30, 40)
    probability = np.linspace(0, 1, 30 * 40).reshape(30, 40)
    options = {"mask": probability > 0.5, "probability": probability, **options}
    return MaskOverlayViewer(image, **options)


def unpack(data: bytes, shape: tuple[int, int]) -> np.ndarray:
    return np.frombuffer(zlib.decompress(data), dtype=np.uint8).reshape(shape)


def test_pixels_survive_the_way_to_the_browser() -> None:
    viewer = example()
    low, high = viewer.value_range
    assert (low, high) == (-1000, 400)
    shown = low + (high - low) * unpack(viewer.image_data, (30, 40)) / 255
    expected = np.linspace(-1000, 400, 1200).reshape(30, 40)
    assert np.abs(shown - expected).max() <= (high - low) / 510 + 1e-9
    assert unpack(viewer.mask_data, (30, 40)).sum() == 600
    probability = unpack(viewer.probability_data, (30, 40)) / 255
    assert np.abs(probability - np.linspace(0, 1, 1200).reshape(30, 40)).max() < 0.002


def test_mask_and_probability_are_optional() -> None:
    viewer = MaskOverlayViewer(np.eye(8))
    assert viewer.mask_data == b""
    assert viewer.probability_data == b""
    with pytest.raises(ValueError, match="without probabilities"):
        viewer.predicted()
    with pytest.raises(ValueError, match="without a mask"):
        viewer.dice()


@given(threshold=st.floats(0, 1))
def test_dice_is_that_of_the_definition(threshold: float) -> None:
    viewer = example(threshold=threshold)
    predicted = {tuple(p) for p in np.argwhere(viewer.predicted())}
    truth = {tuple(p) for p in np.argwhere(unpack(viewer.mask_data, (30, 40)))}
    expected = 2 * len(predicted & truth) / (len(predicted) + len(truth))
    assert viewer.dice() == pytest.approx(expected)


def test_two_empty_masks_agree() -> None:
    empty = np.zeros((4, 4))
    assert MaskOverlayViewer(np.eye(4), empty, probability=empty).dice() == 1


def test_a_large_image_is_shrunk_with_its_masks() -> None:
    image = np.zeros((200, 400))
    image[40:160, 100:300] = 1
    viewer = MaskOverlayViewer(image, image, probability=image, max_side=100)
    assert (viewer.rows, viewer.columns) == (50, 100)
    assert viewer.dice() == 1.0
    assert unpack(viewer.mask_data, (50, 100)).mean() == 0.3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask": np.zeros((4, 4))}, r"mask has shape \(4, 4\).*\(30, 40\)"),
        ({"mask": np.full((30, 40), 0.5)}, "only 0 and 1"),
        ({"probability": np.full((30, 40), 1.5)}, "sigmoid"),
        ({"probability": np.full((30, 40), np.nan)}, "1200 NaN"),
        ({"probability": np.zeros((30, 40, 1))}, r"expected \(H, W\)"),
        ({"threshold": 2}, "threshold is 2"),
        ({"opacity": -0.1}, "opacity is -0.1"),
        ({"window": (0, 0)}, "width is 0"),
    ],
)
def test_wrong_input_is_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        example(**options)


def test_an_image_that_is_no_image_is_refused() -> None:
    with pytest.raises(ValueError, match="image has shape"):
        MaskOverlayViewer(np.zeros((1, 8, 8)))
    with pytest.raises(ValueError, match="nothing to show"):
        MaskOverlayViewer(np.zeros((0, 8)))
    with pytest.raises(ValueError, match="NaN or infinite"):
        MaskOverlayViewer(np.full((8, 8), np.inf))


def test_the_bundle_holds_a_widget_and_a_still_picture() -> None:
    viewer = example(alt="A wedge.", threshold=0.5)
    data, metadata = viewer._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in data
    assert data["text/plain"] == "A wedge."
    assert metadata["image/png"]["alt"] == "A wedge."
    still = Image.open(io.BytesIO(base64.b64decode(data["image/png"])))
    assert np.asarray(still.convert("L")).std() > 10


def test_ipython_shows_the_whole_bundle() -> None:
    # Also with ipywidgets 7, whose widgets display themselves.
    assert example()._ipython_display_ is None
    data, metadata = DisplayFormatter().format(example(alt="A wedge."))
    assert {"application/vnd.jupyter.widget-view+json", "image/png"} <= set(data)
    assert metadata["image/png"]["alt"] == "A wedge."


def test_the_still_picture_follows_the_threshold() -> None:
    viewer = example()
    before = viewer._repr_mimebundle_()[0]["image/png"]
    viewer.threshold = 0.9
    assert viewer._repr_mimebundle_()[0]["image/png"] != before


def test_a_constant_image_can_be_shown() -> None:
    assert MaskOverlayViewer(np.full((4, 4), 7.0)).value_range == [7.0, 8.0]
