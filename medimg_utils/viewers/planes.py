"""Three planes of a volume, linked by a crosshair, with labels."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import traitlets
from matplotlib.figure import Figure

from medimg_utils import plotting
from medimg_utils.viewers import base

#: For each plane the axes of the volume that run across, down and through it.
PLANES = {"axial": (0, 1, 2), "coronal": (0, 2, 1), "sagittal": (1, 2, 0)}
#: The ends of these axes, low and high.
ENDS = ("LR", "PA", "IS")


class PlanesViewer(base.Viewer):
    """Show an axial, a coronal and a sagittal plane that meet in a crosshair.

    The reader moves the crosshair by click, keys, wheel or sliders, chooses the volume
    and the window, lays true or predicted labels over it, and reads off value and
    labels. The planes are drawn as radiologists see them: the patient's right is on
    the left, and letters on the picture say so. All of it is computed in the browser,
    so the viewer needs no kernel.

    Args:
        volumes: for each name, such as ``"FLAIR"``, the intensities (X, Y, Z), in the
            order right, anterior, superior: the first axis runs towards the patient's
            right, the second to the front, the third upward. What is the same
            background everywhere around is cut off. They are shown in 64 grey levels;
            the 0.05 % lowest and highest intensities are clipped.
        spacing: size of a voxel along these axes in mm.
        labels: true label map (X, Y, Z) of whole numbers; 0 is background.
        predicted: predicted label map (X, Y, Z).
        names: what the labels mean, such as ``{1: "necrotic core"}``.
        start: voxel (x, y, z) where the crosshair begins; otherwise in the middle of
            the labels, or of the volume.
        opacity: of the labels, between 0 and 1.
        title: heading of the viewer.
        alt: description of the picture for those who cannot see it.
        max_side: the volumes are shrunk until the longest side has this many voxels,
            to keep pages small. Four series of a brain at 96 take about 1 MB.

    Raises:
        ValueError: no volumes, shapes that differ, a spacing that is not positive,
            voxels that are NaN, labels that are no whole numbers, a start outside.

    >>> import numpy as np
    >>> volume = np.zeros((9, 9, 9))
    >>> volume[2:7, 2:7, 2:7] = np.arange(125).reshape(5, 5, 5)
    >>> viewer = PlanesViewer({"T1": volume}, (1, 1, 2), labels=volume > 100)
    >>> viewer.voxel()
    (6, 4, 4)
    """

    _esm = base.javascript("planes.js")

    names = traitlets.List(traitlets.Unicode()).tag(sync=True)
    shape = traitlets.List(traitlets.Int()).tag(sync=True)
    origin = traitlets.List(traitlets.Int()).tag(sync=True)
    steps = traitlets.List(traitlets.Float()).tag(sync=True)
    extent = traitlets.List(traitlets.Float()).tag(sync=True)
    ranges = traitlets.List(traitlets.List(traitlets.Float())).tag(sync=True)
    volume_data = traitlets.Bytes().tag(sync=True)
    label_data = traitlets.Bytes().tag(sync=True)
    predicted_data = traitlets.Bytes().tag(sync=True)
    label_values = traitlets.List(traitlets.Int()).tag(sync=True)
    label_names = traitlets.List(traitlets.Unicode()).tag(sync=True)
    colours = traitlets.List(traitlets.Unicode()).tag(sync=True)
    volume = traitlets.Unicode().tag(sync=True)
    shown_labels = traitlets.Unicode().tag(sync=True)
    # Of the crosshair, in voxels of the stored volumes.
    place = traitlets.List(traitlets.Int()).tag(sync=True)
    window_centre = traitlets.Float(0.5).tag(sync=True)
    window_width = traitlets.Float(1.0).tag(sync=True)
    opacity = traitlets.Float().tag(sync=True)
    show_crosshair = traitlets.Bool(True).tag(sync=True)

    def __init__(
        self,
        volumes: Mapping[str, npt.ArrayLike],
        spacing: Sequence[float] | npt.NDArray[np.floating],
        *,
        labels: npt.ArrayLike | None = None,
        predicted: npt.ArrayLike | None = None,
        names: Mapping[int, str] | None = None,
        start: Sequence[int] | None = None,
        opacity: float = 0.5,
        title: str = "",
        alt: str = "",
        max_side: int = 96,
    ) -> None:
        if not volumes:
            raise ValueError("volumes is empty, expected at least one volume")
        voxels = {
            name: base.check_image(f"volume {name!r}", value, 3, "(X, Y, Z)")
            for name, value in volumes.items()
        }
        whole = next(iter(voxels.values())).shape
        for name, value in voxels.items():
            base.check_shape(f"volume {name!r}", value, whole)
        sizes = base.check_spacing(spacing)
        maps = {
            name: base.check_labels(name, value, whole)
            for name, value in (("labels", labels), ("predicted", predicted))
            if value is not None
        }
        begin = _middle(maps.values()) if start is None else _check_voxel(start, whole)
        box = _box([*voxels.values(), *maps.values()], begin)
        counts = [part.stop - part.start for part in box]
        extent = [n * size for n, size in zip(counts, sizes, strict=True)]
        step = max(extent) / max_side
        shape = [
            min(n, max(1, round(length / step)))
            for n, length in zip(counts, extent, strict=True)
        ]
        steps = [n / new for n, new in zip(counts, shape, strict=True)]
        if begin is None:
            place = [new // 2 for new in shape]
        else:
            place = [
                int((at - part.start + 0.5) / step)
                for at, part, step in zip(begin, box, steps, strict=True)
            ]
        ranges = [base.robust_range(value[box]) for value in voxels.values()]
        self._volumes = [
            base.to_greys(base.resample(value[box], shape), low, high)
            for value, (low, high) in zip(voxels.values(), ranges, strict=True)
        ]
        nearest = np.ix_(
            *(
                ((np.arange(new) + 0.5) * step).astype(int)
                for new, step in zip(shape, steps, strict=True)
            )
        )
        self._maps = {name: found[box][nearest] for name, found in maps.items()}
        meanings = base.name_labels(names or {}, maps.values())
        first = next(iter(maps), "none")
        super().__init__(
            names=list(voxels),
            shape=shape,
            origin=[part.start for part in box],
            steps=steps,
            extent=extent,
            ranges=[list(one) for one in ranges],
            volume_data=base.pack_all(self._volumes),
            label_data=base.pack_all([self._maps.get("labels")]),
            predicted_data=base.pack_all([self._maps.get("predicted")]),
            label_values=list(meanings),
            label_names=list(meanings.values()),
            colours=plotting.label_colours(len(meanings)),
            volume=next(iter(voxels)),
            shown_labels={"labels": "true"}.get(first, first),
            place=place,
            opacity=base.check_fraction("opacity", opacity),
            **base.heading(
                title, alt, "Volume", ": an axial, a coronal and a sagittal plane."
            ),
        )

    def voxel(self) -> tuple[int, int, int]:
        """The voxel (x, y, z) of the given volumes that is under the crosshair."""
        x, y, z = (
            low + int((at + 0.5) * step)
            for low, at, step in zip(self.origin, self.place, self.steps, strict=True)
        )
        return x, y, z

    def still(self) -> Figure:
        """Draw the viewer's present state as a figure."""
        figure = Figure(figsize=(9, 3.6), layout="tight")
        shown = self._volumes[self.names.index(self.volume)]
        layers = {
            "true": [("labels", "solid")],
            "predicted": [("predicted", "dashed")],
            "both": [("labels", "solid"), ("predicted", "dashed")],
        }.get(self.shown_labels, [])
        maps = [(self._maps[name], line) for name, line in layers if name in self._maps]
        for k, (plane, runs) in enumerate(PLANES.items()):
            across, down, through = runs
            axes = figure.add_subplot(1, 3, k + 1)
            at = self.place[through]
            extent = (0, self.extent[across], 0, self.extent[down])
            plotting.show_image(
                axes,
                _cut(shown, through, at),
                window=(255 * self.window_centre, 255 * self.window_width),
                title=plane,
                extent=extent,
            )
            for labels, line in maps:
                found = _cut(labels, through, at)
                for value, colour in zip(self.label_values, self.colours, strict=True):
                    if (found == value).any():
                        axes.contour(
                            found[::-1] == value,
                            levels=[0.5],
                            colors=[colour],
                            extent=extent,
                            linewidths=1,
                            linestyles=line,
                        )
            for x, y, letter in (
                (0.02, 0.5, ENDS[across][1]),
                (0.94, 0.5, ENDS[across][0]),
                (0.48, 0.93, ENDS[down][1]),
                (0.48, 0.02, ENDS[down][0]),
            ):
                axes.text(x, y, letter, color="white", transform=axes.transAxes)
        if maps:
            plotting.label_legend(axes, self.label_names, self.colours)
        return figure


def _cut(volume: npt.NDArray[Any], through: int, at: int) -> npt.NDArray[Any]:
    """A plane as it is drawn: the high ends of both axes on the left and above."""
    return np.take(volume, at, axis=through).T[::-1, ::-1]


def _middle(maps: Iterable[npt.NDArray[np.uint8]]) -> list[int] | None:
    """The voxel of the first labels that is nearest to their centre of mass."""
    for labels in maps:
        places = np.argwhere(labels)
        if len(places):
            offsets = ((places - places.mean(axis=0)) ** 2).sum(axis=1)
            return places[offsets.argmin()].tolist()
    return None


def _check_voxel(start: Sequence[int], shape: tuple[int, ...]) -> list[int]:
    """Return ``start`` as a list of the three indices, or raise ValueError."""
    place = np.asarray(start)
    inside = place.shape == (3,) and ((place >= 0) & (place < shape)).all()
    if not inside or (place != place.astype(int)).any():
        raise ValueError(f"start is {start}, expected a voxel of the volumes, {shape}")
    return place.astype(int).tolist()


def _box(
    volumes: Iterable[npt.NDArray[Any]], begin: Sequence[int] | None
) -> tuple[slice, ...]:
    """The smallest box with all that is not background, and with ``begin``."""
    seen: npt.NDArray[np.bool_] = np.zeros((), dtype=bool)
    for volume in volumes:
        seen = seen | (volume != volume[0, 0, 0])
    if begin is not None:
        seen[tuple(begin)] = True
    if not seen.any():
        return tuple(slice(0, n) for n in seen.shape)
    return tuple(slice(int(at.min()), int(at.max()) + 1) for at in np.nonzero(seen))
