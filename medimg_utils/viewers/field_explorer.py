"""What an output of a network looks at, layer by layer."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
import traitlets
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch.nn import functional as F

from medimg_utils import plotting
from medimg_utils.inspect_network import Field, Trace
from medimg_utils.viewers import base

SIDE = 56  # of the maps of influence
DECADES = 3.0  # of influence that are shown
LEVELS = 15


class FieldExplorer(base.Viewer):
    """Let the reader click on an image and see what each layer sees of it there.

    Boxes are theoretical receptive fields; they are computed in the browser, exactly
    and for every pixel, by going back through the traced network. The colour is the
    measured influence; it was computed before, on a grid of places.

    Args:
        image: (H, W), what the network was traced for.
        found: the traced network.
        layers: name and place in the trace of the layers to show, first to last.
        influences: for each name the influence (R, C, H, W) of the image's pixels on
            the layer's output in the middle of each cell of a grid of R × C cells; see
            `medimg_utils.inspect_network.influence`.
        pixel_mm: width of a pixel, if known.
        row, column: the pixel where the reader starts; the middle if missing.
        title: heading of the viewer.
        alt: description of the picture for those who cannot see it.

    Raises:
        ValueError: shapes that do not fit together, a layer that has no map, or names
            that differ.
    """

    _esm = base.javascript("field_explorer.js")
    _css = base.STYLES

    rows = traitlets.Int().tag(sync=True)
    columns = traitlets.Int().tag(sync=True)
    image_data = traitlets.Bytes().tag(sync=True)
    network = traitlets.List(traitlets.Any()).tag(sync=True)
    names = traitlets.List(traitlets.Unicode()).tag(sync=True)
    places = traitlets.List(traitlets.Int()).tag(sync=True)
    grid = traitlets.List(traitlets.Int()).tag(sync=True)
    side = traitlets.Int(SIDE).tag(sync=True)
    map_data = traitlets.Bytes().tag(sync=True)
    pixel_mm = traitlets.Float(allow_none=True).tag(sync=True)
    layer = traitlets.Int().tag(sync=True)
    row = traitlets.Int().tag(sync=True)
    column = traitlets.Int().tag(sync=True)

    def __init__(
        self,
        image: npt.ArrayLike,
        found: Trace,
        layers: Mapping[str, int],
        influences: Mapping[str, npt.ArrayLike],
        *,
        pixel_mm: float | None = None,
        row: int | None = None,
        column: int | None = None,
        title: str = "",
        alt: str = "",
    ) -> None:
        pixels = base.check_image("image", image, 2)
        base.check_shape("image", pixels, found.layers[0].shape[1:])
        if not layers or list(layers) != list(influences):
            raise ValueError(
                f"layers are {list(layers)} and influences {list(influences)}, "
                "expected the same names in the same order"
            )
        for name, place in layers.items():
            if len(found.layers[place].shape) != 3:
                shape = found.layers[place].shape
                raise ValueError(
                    f"layer {name!r} has shape {shape}, expected (C, h, w)"
                )
        self._found, self._layers = found, dict(layers)
        self._levels = base.to_bytes(pixels, pixels.min(), pixels.max())
        maps = [_pack_levels(name, v, pixels.shape) for name, v in influences.items()]
        if len({one.shape for one in maps}) != 1:
            raise ValueError(
                f"influences have grids {[one.shape[:2] for one in maps]}, expected one"
            )
        self._maps = np.stack(maps)
        height, width = pixels.shape
        super().__init__(
            rows=height,
            columns=width,
            image_data=base.pack(self._levels),
            network=[
                [
                    list(layer.inputs),
                    [
                        [w.size, w.stride, w.padding, w.dilation, int(w.spread)]
                        for w in layer.windows
                    ],
                    list(layer.shape[1:]),
                ]
                for layer in found.layers
            ],
            names=list(layers),
            places=list(layers.values()),
            grid=list(self._maps.shape[1:3]),
            map_data=base.pack(self._maps),
            pixel_mm=pixel_mm,
            layer=len(layers) - 1,
            row=height // 2 if row is None else row,
            column=width // 2 if column is None else column,
            title=title,
            alt=alt or f"{title or 'Image'} and what a network looks at.",
        )

    def fields(self) -> dict[str, Field]:
        """Rows and columns of the image that each layer sees at the present place."""
        found = {}
        for name, place in self._layers.items():
            h, w = self._found.layers[place].shape[1:]
            pixel = (self.row * h // self.rows, self.column * w // self.columns)
            found[name] = self._found.fields(place, pixel)[0]
        return found

    def still(self) -> Figure:
        """Draw the viewer's present state as a figure."""
        figure = Figure(figsize=(5, 5), layout="tight")
        axes = figure.subplots()
        plotting.show_image(axes, self._levels, title=self.names[self.layer])
        for k, ((top, bottom), (left, right)) in enumerate(self.fields().values()):
            axes.add_patch(
                Rectangle(
                    (left - 0.5, top - 0.5), right - left + 1, bottom - top + 1,
                    fill=False, edgecolor=plotting.TRUTH,
                    linewidth=2 if k == self.layer else 0.8,
                )
            )  # fmt: skip
        return figure


def _pack_levels(
    name: str, value: npt.ArrayLike, shape: tuple[int, ...]
) -> npt.NDArray[np.uint8]:
    """Influence (R, C, H, W) → levels 0 to 15 of its logarithm, (R, C, SIDE, SIDE)."""
    array = np.asarray(value, dtype=np.float32)
    if array.ndim != 4 or array.shape[2:] != shape:
        raise ValueError(
            f"influence of {name!r} has shape {array.shape}, expected (R, C) + {shape}"
        )
    if not np.isfinite(array).all() or array.min() < 0:
        raise ValueError(f"influence of {name!r} holds values that are not 0 or more")
    small = F.adaptive_avg_pool2d(torch.from_numpy(array), SIDE).numpy()
    most = small.max(axis=(2, 3), keepdims=True)
    tiny = np.finfo(np.float32).tiny
    share = np.log10(np.maximum(small, tiny) / np.maximum(most, tiny))
    levels = np.ceil(LEVELS * np.clip(1 + share / DECADES, 0, 1))
    return np.where(small > 0, levels, 0).astype(np.uint8)
