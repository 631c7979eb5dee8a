"""A kernel of 3 × 3 weights that slides over an image and leaves a response."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import traitlets
from matplotlib.figure import Figure

from medimg_utils import plotting
from medimg_utils.viewers import base

SIDE = 3
MAX_STRIDE = 4


class KernelExplorer(base.ImageViewer):
    """Let the reader choose the weights of a kernel and watch it slide over an image.

    What networks call a convolution is shown: the kernel is laid over the image as it
    is, values and weights are multiplied and added. All is computed in the browser.

    Args:
        image: intensities (H, W) in any unit; shown from 0 (darkest) to 1 in 255 steps.
        kernel: weights (3, 3) where the reader starts.
        presets: named kernels (3, 3).
        stride: pixels between two places of the kernel, 1 to 4.
        pad: surround the image with zeros, so that the response keeps its size.
        rectify: show negative responses as 0, as a ReLU does.
        title: heading of the viewer.
        alt: description of the picture for those who cannot see it.
        max_side: larger images are shrunk to this many pixels, to keep pages small.

    Raises:
        ValueError: an image that is not (H, W), smaller than the kernel or not finite,
            a kernel that is not (3, 3) or not finite, a stride outside 1 to 4.

    >>> import numpy as np
    >>> step = np.repeat([[0.0, 0.0, 1.0, 1.0]], 4, axis=0)
    >>> explorer = KernelExplorer(step, [[0, 0, 0], [-1, 0, 1], [0, 0, 0]])
    >>> explorer.response().tolist()
    [[1.0, 1.0], [1.0, 1.0]]
    """

    _esm = base.javascript("kernel_explorer.js")

    image_data = traitlets.Bytes().tag(sync=True)
    kernel = traitlets.List(traitlets.Float()).tag(sync=True)
    presets = traitlets.List(traitlets.Any()).tag(sync=True)
    stride = traitlets.Int().tag(sync=True)
    pad = traitlets.Bool().tag(sync=True)
    rectify = traitlets.Bool().tag(sync=True)
    slid = traitlets.Float(100.0).tag(sync=True)

    def __init__(
        self,
        image: npt.ArrayLike,
        kernel: npt.ArrayLike,
        *,
        presets: Mapping[str, npt.ArrayLike] | None = None,
        stride: int = 1,
        pad: bool = False,
        rectify: bool = False,
        title: str = "",
        alt: str = "",
        max_side: int = 256,
    ) -> None:
        pixels = base.check_image("image", image, 2)
        levels = base.to_bytes(pixels, pixels.min(), pixels.max())
        self._levels = base.reduce_bytes(levels, max_side)
        if min(self._levels.shape) < SIDE:
            raise ValueError(
                f"image has shape {self._levels.shape}, expected {SIDE} × {SIDE} or more"
            )
        base.check_between("stride", stride, 1, MAX_STRIDE)
        super().__init__(
            rows=self._levels.shape[0],
            columns=self._levels.shape[1],
            image_data=base.pack(self._levels),
            kernel=_weights("kernel", kernel),
            presets=[
                [name, _weights(f"preset {name!r}", one)]
                for name, one in (presets or {}).items()
            ],
            stride=stride,
            pad=pad,
            rectify=rectify,
            **base.heading(title, alt, "Image", " beside the response of a kernel."),
        )

    def response(self) -> npt.NDArray[np.float64]:
        """What the kernel leaves at present, (h, w)."""
        image = np.pad(self._levels / 255, int(self.pad))
        windows = np.lib.stride_tricks.sliding_window_view(image, (SIDE, SIDE))
        windows = windows[:: self.stride, :: self.stride]
        weights = np.reshape(self.kernel, (SIDE, SIDE))
        response = np.einsum("yxij,ij->yx", windows, weights)
        return response.clip(min=0) if self.rectify else response

    def still(self) -> Figure:
        """Draw the viewer's present state as a figure."""
        response = self.response()
        figure = Figure(figsize=(9, 4.6), layout="tight")
        before, after = figure.subplots(1, 2)
        plotting.show_image(before, self._levels, title="image")
        most = max(float(np.abs(response).max()), np.finfo(float).tiny)
        plotting.show_image(after, response, window=(0, 2 * most), title="response")
        return figure


def _weights(name: str, value: npt.ArrayLike) -> list[float]:
    """Return nine finite weights, row by row, or raise ValueError."""
    weights = base.check_image(name, value, 2)
    if weights.shape != (SIDE, SIDE):
        raise ValueError(f"{name} has shape {weights.shape}, expected ({SIDE}, {SIDE})")
    return weights.ravel().tolist()
