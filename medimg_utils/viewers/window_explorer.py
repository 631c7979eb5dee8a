"""An image beside its histogram: which values become which grey?"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import traitlets
from matplotlib.figure import Figure

from medimg_utils import plotting
from medimg_utils.viewers import base

MAX_BITS = 12


class WindowExplorer(base.ImageViewer):
    """Let the reader move a window over the histogram and see the picture follow.

    The number of greys can be reduced in two places: after the window, as a screen
    does, or before it, as a file with few bits does. All is computed in the browser.

    Args:
        image: intensities (H, W); rounded to whole units.
        window: centre and width where the reader starts.
        presets: named windows, each with its centre and width.
        bits: the picture is shown with 2 ** bits greys, 1 to 12.
        early: reduce the greys before the window, over the whole range of values,
            instead of after it.
        unit: of the intensities, e.g. ``"HU"``.
        title: heading of the viewer.
        alt: description of the picture for those who cannot see it.

    Raises:
        ValueError: not (H, W), values that are NaN or span more than 65535 units, a
            width below 1, or bits outside 1 to 12.

    >>> import numpy as np
    >>> ramp = np.arange(-1000, 1000).reshape(40, 50)
    >>> explorer = WindowExplorer(ramp, window=(0, 500), bits=4)
    >>> explorer.greys()
    16
    """

    _esm = base.javascript("window_explorer.js")

    value_data = traitlets.Bytes().tag(sync=True)
    low = traitlets.Int().tag(sync=True)
    high = traitlets.Int().tag(sync=True)
    presets = traitlets.List(traitlets.Any()).tag(sync=True)
    window_centre = traitlets.Float().tag(sync=True)
    window_width = traitlets.Float().tag(sync=True)
    bits = traitlets.Int().tag(sync=True)
    early = traitlets.Bool().tag(sync=True)
    unit = traitlets.Unicode().tag(sync=True)

    def __init__(
        self,
        image: npt.ArrayLike,
        *,
        window: tuple[float, float],
        presets: Mapping[str, tuple[float, float]] | None = None,
        bits: int = 8,
        early: bool = False,
        unit: str = "",
        title: str = "",
        alt: str = "",
    ) -> None:
        self._values = np.rint(base.check_image("image", image, 2))
        low, high = int(self._values.min()), int(self._values.max())
        if not 0 < high - low <= 65535:
            raise ValueError(
                f"image spans {high - low} units from {low}, expected 1 to 65535; "
                "clip or rescale it first"
            )
        base.check_between("bits", bits, 1, MAX_BITS)
        windows = {"start": window, **(presets or {})}
        for name, (_, width) in windows.items():
            if not width >= 1:
                raise ValueError(f"window {name!r} has width {width}, expected >= 1")
        super().__init__(
            rows=self._values.shape[0],
            columns=self._values.shape[1],
            value_data=base.pack((self._values - low).astype("<u2").view(np.uint8)),
            low=low,
            high=high,
            presets=[
                [name, float(centre), float(width)]
                for name, (centre, width) in (presets or {}).items()
            ],
            window_centre=float(window[0]),
            window_width=float(window[1]),
            bits=bits,
            early=early,
            unit=unit,
            **base.heading(title, alt, "Image", " beside the histogram of its values."),
        )

    def levels(self) -> npt.NDArray[np.uint8]:
        """Greys (H, W) from 0 to 255 that the viewer shows at present."""
        values, greys = self._values, 2**self.bits
        if self.early:
            span = self.high - self.low + 1
            cell = np.floor((values - self.low) / span * greys)
            values = self.low + (cell + 0.5) * span / greys
        share = (values - self.window_centre) / self.window_width + 0.5
        share = np.clip(share, 0, 1)
        if not self.early:
            share = np.minimum(np.floor(share * greys), greys - 1) / (greys - 1)
        return np.floor(255 * share + 0.5).astype(np.uint8)

    def greys(self) -> int:
        """How many different greys are on the screen at present."""
        return len(np.unique(self.levels()))

    def still(self) -> Figure:
        """Draw the viewer's present state as a figure."""
        figure = Figure(figsize=(9, 4), layout="tight")
        picture, plot = figure.subplots(1, 2)
        plotting.show_image(picture, self.levels(), window=(127.5, 255.0))
        counts, edges = np.histogram(self._values, bins=256)
        plot.stairs(counts, edges, fill=True, color="0.6")
        half = self.window_width / 2
        for edge in (self.window_centre - half, self.window_centre + half):
            plot.axvline(edge, color=plotting.PALETTE[1], linestyle="dashed")
        plot.set(yscale="log", xlabel=self.unit or "value", ylabel="pixels")
        return figure
