"""The series of an exam, side by side, with heat maps and lesions."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import traitlets
from matplotlib.figure import Figure

from medimg_utils import plotting
from medimg_utils.viewers import base

PLANES = ("sagittal", "coronal", "axial")
HEAT_SIDE = 40


class SeriesViewer(base.Viewer):
    """Show the series of an exam side by side: a pane and a slice slider for each.

    The reader scrolls through the slices, sets one window for all series, reads off
    single pixels, jumps to the hottest slice, and lays heat maps and the outline of
    the true lesion over the pictures. Below each picture a strip shows how hot every
    slice is. All of it is computed in the browser, so the viewer needs no kernel.

    Series whose names begin with sagittal, coronal or axial are linked: dashed lines
    mark in each where the slices of the others lie, and a click moves the others
    there. MRNet stores no geometry, so these marks are proportional: they assume
    sagittal slices from the patient's left to the right, coronal ones from the back
    to the front, axial ones from above downward, and one middle for all.

    Args:
        stacks: for each series its slices (S, H, W) in any unit. They are shown in 64
            grey levels; the 0.05 % lowest and highest intensities are clipped.
        heat: for some or all series a map (S, H, W) between 0 and 1, such as a class
            activation map. It is kept at low resolution and drawn smoothly.
        mask: for some or all series the true lesion (S, H, W), zeros and ones.
        start: the slices to begin with, counted from 0. Otherwise the hottest slice,
            the slice with most lesion, or the middle one.
        opacity: of the hottest places of the map, between 0 and 1.
        covered: share of the other series' field of view that the slices of a series
            span together, for the marks. A protocol for the knee covers some 100 mm
            with its slices and sees some 145 mm in them.
        title: heading of the viewer.
        alt: description of the picture for those who cannot see it.
        max_side: larger slices are shrunk to this many pixels, to keep pages small.
            Three series of 30 slices at 144 pixels take about 1.2 MB of a page.

    Raises:
        ValueError: no series, names that are not among the stacks, shapes that differ,
            pixels that are NaN, heat outside 0 to 1, masks that are not 0 or 1, a slice
            that does not exist.

    >>> import numpy as np
    >>> stack = np.arange(4 * 8 * 8).reshape(4, 8, 8)
    >>> heat = np.zeros((4, 8, 8))
    >>> heat[2, 5, 1] = 1
    >>> viewer = SeriesViewer({"sagittal T2": stack}, heat={"sagittal T2": heat})
    >>> viewer.hottest("sagittal T2")
    (2, 5, 1)
    >>> viewer.slices
    [2]
    """

    _esm = base.javascript("series.js")

    names = traitlets.List(traitlets.Unicode()).tag(sync=True)
    planes = traitlets.List(traitlets.Unicode()).tag(sync=True)
    # For each series: slices, rows and columns given, then rows and columns stored.
    shapes = traitlets.List(traitlets.List(traitlets.Int())).tag(sync=True)
    heat_shapes = traitlets.List(traitlets.List(traitlets.Int())).tag(sync=True)
    with_mask = traitlets.List(traitlets.Bool()).tag(sync=True)
    ranges = traitlets.List(traitlets.List(traitlets.Float())).tag(sync=True)
    stack_data = traitlets.Bytes().tag(sync=True)
    heat_data = traitlets.Bytes().tag(sync=True)
    mask_data = traitlets.Bytes().tag(sync=True)
    peaks = traitlets.List(traitlets.List(traitlets.Float())).tag(sync=True)
    hottest_places = traitlets.List(traitlets.List(traitlets.Int())).tag(sync=True)
    covered = traitlets.Float().tag(sync=True)
    slices = traitlets.List(traitlets.Int()).tag(sync=True)
    window_centre = traitlets.Float(0.5).tag(sync=True)
    window_width = traitlets.Float(1.0).tag(sync=True)
    opacity = traitlets.Float().tag(sync=True)
    show_heat = traitlets.Bool(True).tag(sync=True)
    show_mask = traitlets.Bool(True).tag(sync=True)
    show_marks = traitlets.Bool(True).tag(sync=True)

    def __init__(
        self,
        stacks: Mapping[str, npt.ArrayLike],
        *,
        heat: Mapping[str, npt.ArrayLike] | None = None,
        mask: Mapping[str, npt.ArrayLike] | None = None,
        start: Mapping[str, int] | None = None,
        opacity: float = 0.6,
        covered: float = 0.7,
        title: str = "",
        alt: str = "",
        max_side: int = 144,
    ) -> None:
        if not stacks:
            raise ValueError("stacks is empty, expected at least one series")
        names = list(stacks)
        for name, given in (("heat", heat), ("mask", mask), ("start", start)):
            base.check_keys(name, given or {}, "stacks", names)
        heat, mask, start = heat or {}, mask or {}, start or {}
        if not 0 < covered <= 1:
            raise ValueError(f"covered is {covered}, expected above 0 and at most 1")
        series = [
            _Series(name, stacks[name], heat.get(name), mask.get(name), max_side)
            for name in names
        ]
        slices = [
            one.start if one.name not in start else one.check_slice(start[one.name])
            for one in series
        ]
        self._series = series
        super().__init__(
            names=names,
            planes=[_plane(name) for name in names],
            shapes=[[*one.shape, *one.image.shape[1:]] for one in series],
            heat_shapes=[
                [0, 0] if one.heat is None else list(one.heat.shape[1:])
                for one in series
            ],
            with_mask=[one.mask is not None for one in series],
            ranges=[list(one.range) for one in series],
            stack_data=base.pack_all([one.image for one in series]),
            heat_data=base.pack_all([one.heat for one in series]),
            mask_data=base.pack_all([one.mask for one in series]),
            peaks=[one.peaks for one in series],
            hottest_places=[list(one.hottest) for one in series],
            covered=float(covered),
            slices=slices,
            opacity=base.check_fraction("opacity", opacity),
            **base.heading(
                title, alt, "Exam", f": slices of the series {', '.join(names)}."
            ),
        )

    def hottest(self, name: str) -> tuple[int, int, int]:
        """Slice, row and column of the highest heat of the series ``name``."""
        one = self._series[self.names.index(name)]
        if one.heat is None:
            raise ValueError(f"the viewer was made without heat of the series {name!r}")
        return one.hottest

    def still(self) -> Figure:
        """Draw the viewer's present state as a figure."""
        figure = Figure(figsize=(3.2 * len(self._series), 3.5), layout="tight")
        for k, one in enumerate(self._series):
            at = self.slices[k]
            low, high = one.range
            centre = low + (high - low) * self.window_centre
            window = (centre, (high - low) * self.window_width)
            image = low + (high - low) * one.image[at] / 255
            axes = figure.add_subplot(1, len(self._series), k + 1)
            plotting.show_image(
                axes, image, window=window, title=f"{one.name}, slice {at + 1}"
            )
            if one.heat is not None and self.show_heat:
                rows, columns = image.shape
                axes.imshow(
                    one.heat[at] / 255,
                    cmap="viridis",
                    vmin=0,
                    vmax=1,
                    alpha=self.opacity * one.heat[at] / 255,
                    extent=(-0.5, columns - 0.5, rows - 0.5, -0.5),
                    interpolation="bilinear",
                )
            if one.mask is not None and self.show_mask and one.mask[at].any():
                axes.contour(one.mask[at], levels=[0.5], colors=[plotting.TRUTH])
        return figure


class _Series:
    """One series, checked and made small."""

    def __init__(
        self,
        name: str,
        stack: npt.ArrayLike,
        heat: npt.ArrayLike | None,
        mask: npt.ArrayLike | None,
        max_side: int,
    ) -> None:
        voxels = base.check_image(f"stack {name!r}", stack, 3, "(S, H, W)")
        self.name = name
        self.shape = voxels.shape
        self.range = base.robust_range(voxels)
        small = base.reduce_bytes
        grey = np.stack(
            [small(base.to_bytes(v, *self.range), max_side) for v in voxels]
        )
        self.image = base.to_greys(grey, 0, 255)
        self.start = len(voxels) // 2
        self.mask: npt.NDArray[np.uint8] | None = None
        if mask is not None:
            full = base.check_mask(f"mask {name!r}", mask, voxels.shape)
            # A lesion thinner than a pixel of the viewer must not vanish.
            part = np.stack([small(np.uint8(255) * m, max_side) for m in full])
            self.mask = (part >= 64).astype(np.uint8)
            if full.any():
                self.start = int(full.sum(axis=(1, 2)).argmax())
        self.heat: npt.NDArray[np.uint8] | None = None
        self.peaks: list[float] = []
        self.hottest = (0, 0, 0)
        if heat is not None:
            levels = base.check_probability(f"heat {name!r}", heat, voxels.shape)
            side = min(HEAT_SIDE, max_side)
            self.heat = np.stack([small(level, side) for level in levels])
            self.peaks = np.round(levels.max(axis=(1, 2)) / 255, 3).tolist()
            place = np.unravel_index(np.argmax(np.asarray(heat)), voxels.shape)
            self.hottest = (int(place[0]), int(place[1]), int(place[2]))
            self.start = self.hottest[0]

    def check_slice(self, index: Any) -> int:
        count = self.shape[0]
        if not 0 <= index < count or index != int(index):
            raise ValueError(
                f"start of the series {self.name!r} is {index}, "
                f"expected a whole number from 0 to {count - 1}"
            )
        return int(index)


def _plane(name: str) -> str:
    """The plane that the name of a series begins with, or nothing."""
    return next((plane for plane in PLANES if name.lower().startswith(plane)), "")
