import itertools

import numpy as np
import pytest
import torch
from scipy.signal import correlate2d

from medimg_utils.viewers import KernelExplorer

IMAGE = np.random.default_rng(0).integers(0, 256, (11, 14)) / 255
IMAGE.flat[:2] = 0, 1  # so that the stored levels are the image itself
KERNEL = np.array([[1.0, 2.0, -1.0], [0.5, 0.0, -2.0], [3.0, -1.0, 0.25]])


@pytest.mark.parametrize(
    ("stride", "pad"), list(itertools.product((1, 2, 3, 4), (False, True)))
)
def test_the_response_is_that_of_torch(stride: int, pad: bool) -> None:
    explorer = KernelExplorer(IMAGE, KERNEL, stride=stride, pad=pad)
    image, weight = (torch.from_numpy(a)[None, None] for a in (IMAGE, KERNEL))
    theirs = torch.nn.functional.conv2d(image, weight, stride=stride, padding=int(pad))
    np.testing.assert_allclose(explorer.response(), theirs[0, 0], atol=1e-12)


def test_the_response_is_a_correlation_and_no_flipped_convolution() -> None:
    ours = KernelExplorer(IMAGE, KERNEL).response()
    np.testing.assert_allclose(ours, correlate2d(IMAGE, KERNEL, "valid"), atol=1e-12)


def test_a_relu_cuts_what_is_negative() -> None:
    explorer = KernelExplorer(IMAGE, KERNEL)
    plain = explorer.response()
    explorer.rectify = True
    assert plain.min() < 0
    np.testing.assert_array_equal(explorer.response(), np.maximum(plain, 0))


def test_a_large_image_is_shrunk() -> None:
    explorer = KernelExplorer(np.eye(600), KERNEL, max_side=100)
    assert (explorer.rows, explorer.columns) == (100, 100)
    assert explorer.response().shape == (98, 98)


@pytest.mark.parametrize(
    ("image", "kernel", "options", "message"),
    [
        (IMAGE, np.ones((2, 3)), {}, r"kernel has shape \(2, 3\)"),
        (IMAGE, np.full((3, 3), np.nan), {}, "kernel holds 9 NaN"),
        (IMAGE, KERNEL, {"presets": {"a": [[1]]}}, "preset 'a' has shape"),
        (IMAGE, KERNEL, {"stride": 0}, "stride is 0"),
        (IMAGE, KERNEL, {"stride": 5}, "stride is 5"),
        (np.eye(2), KERNEL, {}, "expected 3 × 3 or more"),
        (np.array([[np.inf, 0]]), KERNEL, {}, "infinite"),
    ],
)
def test_wrong_input_is_refused(image, kernel, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        KernelExplorer(image, kernel, **options)


def test_the_bundle_holds_a_still_picture() -> None:
    data, _ = KernelExplorer(IMAGE, KERNEL, title="Noise")._repr_mimebundle_()
    assert len(data["image/png"]) > 1000
    assert data["text/plain"] == "Noise beside the response of a kernel."
