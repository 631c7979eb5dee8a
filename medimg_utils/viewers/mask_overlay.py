"""An image with a mask, a probability map, a window and a read-out."""

import numpy as np
import numpy.typing as npt
import traitlets
from matplotlib.figure import Figure

from medimg_utils import metrics, plotting
from medimg_utils.viewers import base


class MaskOverlayViewer(base.ImageViewer):
    """Show an image with a mask and, if given, a map of probabilities.

    The reader changes window, opacity and threshold, zooms, and reads off single
    pixels. All of it is computed in the browser, so the viewer needs no kernel.

    Args:
        image: intensities (H, W) in any unit.
        mask: true mask (H, W) of zeros and ones.
        probability: predicted probabilities (H, W) between 0 and 1. They are kept in
            255 steps.
        threshold: pixels at or above it form the predicted mask.
        window: centre and width of the shown intensities; the full range if missing.
        opacity: of the overlay, between 0 and 1.
        unit: of the intensities, such as ``"HU"``.
        title: heading of the viewer.
        alt: description of the picture for those who cannot see it.
        mask_name: what the legend calls the mask.
        max_side: larger images are shrunk to this many pixels, to keep pages small.
            The Dice coefficient that is shown is then that of the shrunken masks.

    Raises:
        ValueError: shapes that differ, pixels that are NaN, masks that are not 0 or 1,
            probabilities outside 0 to 1.

    >>> import numpy as np
    >>> image = np.linspace(0, 1, 64).reshape(8, 8)
    >>> viewer = MaskOverlayViewer(image, image > 0.5, probability=image)
    >>> round(viewer.dice(), 2)
    1.0
    """

    _esm = base.javascript("mask_overlay.js")

    image_data = traitlets.Bytes().tag(sync=True)
    mask_data = traitlets.Bytes().tag(sync=True)
    probability_data = traitlets.Bytes().tag(sync=True)
    value_range = traitlets.List(traitlets.Float()).tag(sync=True)
    unit = traitlets.Unicode().tag(sync=True)
    mask_name = traitlets.Unicode().tag(sync=True)
    window_centre = traitlets.Float().tag(sync=True)
    window_width = traitlets.Float().tag(sync=True)
    opacity = traitlets.Float().tag(sync=True)
    threshold = traitlets.Float().tag(sync=True)
    show_mask = traitlets.Bool(True).tag(sync=True)
    show_prediction = traitlets.Bool(True).tag(sync=True)
    show_map = traitlets.Bool(False).tag(sync=True)

    def __init__(
        self,
        image: npt.ArrayLike,
        mask: npt.ArrayLike | None = None,
        *,
        probability: npt.ArrayLike | None = None,
        threshold: float = 0.5,
        window: tuple[float, float] | None = None,
        opacity: float = 0.5,
        unit: str = "",
        title: str = "",
        alt: str = "",
        mask_name: str = "True mask",
        max_side: int = 768,
    ) -> None:
        pixels = base.check_image("image", image, 2)
        low, high = float(pixels.min()), float(pixels.max())
        if low == high:
            high = low + 1.0
        self._image = base.reduce_bytes(base.to_bytes(pixels, low, high), max_side)
        self._mask: npt.NDArray[np.bool_] | None = None
        if mask is not None:
            full = base.check_mask("mask", mask, pixels.shape).astype(np.uint8)
            self._mask = base.reduce_bytes(full, max_side, average=False).astype(bool)
        self._probability: npt.NDArray[np.uint8] | None = None
        if probability is not None:
            levels = base.check_probability("probability", probability, pixels.shape)
            self._probability = base.reduce_bytes(levels, max_side)
        if window is None:
            window = ((low + high) / 2, high - low)
        if window[1] <= 0:
            raise ValueError(f"the window's width is {window[1]}, expected above 0")
        rows, columns = self._image.shape
        super().__init__(
            rows=rows,
            columns=columns,
            image_data=base.pack(self._image),
            mask_data=b"" if self._mask is None else base.pack(self._mask),
            probability_data=(
                b"" if self._probability is None else base.pack(self._probability)
            ),
            value_range=[low, high],
            unit=unit,
            mask_name=mask_name,
            window_centre=float(window[0]),
            window_width=float(window[1]),
            opacity=base.check_fraction("opacity", opacity),
            threshold=base.check_fraction("threshold", threshold),
            **base.heading(title, alt, "Image", f", {rows} by {columns} pixels."),
        )

    def predicted(self) -> npt.NDArray[np.bool_]:
        """Pixels (H, W) at or above the present threshold."""
        if self._probability is None:
            raise ValueError("the viewer was made without probabilities")
        return self._probability / 255 >= self.threshold

    def dice(self) -> float:
        """Dice coefficient at the present threshold; see `medimg_utils.metrics.dice`."""
        if self._mask is None:
            raise ValueError("the viewer was made without a mask")
        return metrics.dice(self.predicted(), self._mask)

    def still(self) -> Figure:
        """Draw the viewer's present state as a figure."""
        low, high = self.value_range
        figure = Figure(figsize=(5, 5 * self.rows / self.columns))
        axes = figure.add_axes((0, 0, 1, 1))
        image = low + (high - low) * self._image / 255
        plotting.show_image(axes, image, window=(self.window_centre, self.window_width))
        predicted = None if self._probability is None else self.predicted()
        plotting.overlay(axes, mask=self._mask, predicted=predicted)
        return figure
