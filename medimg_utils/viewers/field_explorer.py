"""What an output of a network looks at, layer by layer."""

from collections.abc import Mapping
from itertools import product

import numpy as np
import numpy.typing as npt
import torch
import traitlets
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor, nn
from torch.nn import functional as F

from medimg_utils import plotting
from medimg_utils.inspect_network import Field, Trace, influences, part, trace
from medimg_utils.viewers import base

NEAR = 28  # cells along a side of the field of a layer
FAR = 32  # cells along a side of the image, for influence from outside the field
DECADES = 3.0  # of influence that are shown
LEVELS = 15


class FieldExplorer(base.ImageViewer):
    """Let the reader click on an image and see what each layer of a network sees there.

    The reader chooses among the places of a grid, which are marked, and all that is
    drawn belongs to the chosen one. Boxes are theoretical receptive fields, computed
    in the browser by going back through the traced network. The colour is the measured
    influence (`medimg_utils.inspect_network.influences`), computed when the viewer is
    made: one pass backward for each place and layer.

    Args:
        image: (H, W), what the network gets.
        network: (1, 1, H, W) → maps.
        modules: the layers to show, in the order of the network: what they are called
            here, and the name of the module. The last one is the output that is asked;
            `""` names the whole network.
        grid: places along each side.
        pixel_mm: width of a pixel, if known.
        row, column: the pixel near which the reader starts; the middle if missing.
        title: heading of the viewer.
        alt: description of the picture for those who cannot see it.

    Raises:
        ValueError: no modules, a module that gives no map, a grid without places or
            finer than the image.
        InputError: a module that the network does not use.
    """

    _esm = base.javascript("field_explorer.js")

    image_data = traitlets.Bytes().tag(sync=True)
    network = traitlets.List(traitlets.Any()).tag(sync=True)
    names = traitlets.List(traitlets.Unicode()).tag(sync=True)
    places = traitlets.List(traitlets.Int()).tag(sync=True)
    grid = traitlets.Int().tag(sync=True)
    cells = traitlets.Dict({"near": NEAR, "far": FAR}).tag(sync=True)
    near_data = traitlets.Bytes().tag(sync=True)
    far_data = traitlets.Bytes().tag(sync=True)
    pixel_mm = traitlets.Float(allow_none=True).tag(sync=True)
    layer = traitlets.Int().tag(sync=True)
    grid_row = traitlets.Int().tag(sync=True)
    grid_column = traitlets.Int().tag(sync=True)

    def __init__(
        self,
        image: npt.ArrayLike,
        network: nn.Module,
        modules: Mapping[str, str],
        *,
        grid: int = 10,
        pixel_mm: float | None = None,
        row: int | None = None,
        column: int | None = None,
        title: str = "",
        alt: str = "",
    ) -> None:
        pixels = base.check_image("image", image, 2)
        height, width = pixels.shape
        if not modules:
            raise ValueError("modules is empty, expected at least the output")
        if not 1 <= grid <= min(height, width):
            raise ValueError(
                f"grid is {grid}, expected 1 to {min(height, width)} places along each "
                f"side of an image of {pixels.shape}"
            )
        self._found = trace(network, 1, height, width)
        places = {name: self._found.find(module) for name, module in modules.items()}
        for name, place in places.items():
            shape = self._found.layers[place].shape
            if len(shape) != 3:
                raise ValueError(
                    f"layer {name!r} has shape {shape}, expected (C, h, w)"
                )
        self._levels = base.to_bytes(pixels, pixels.min(), pixels.max())
        self._middles = [
            [(2 * k + 1) * n // (2 * grid) for k in range(grid)] for n in pixels.shape
        ]
        film = torch.from_numpy(pixels).float()[None]
        measured = [
            self._measure(film, network, module, place)
            for module, place in zip(modules.values(), places.values(), strict=True)
        ]
        self._near, self._far = (np.stack(maps) for maps in zip(*measured, strict=True))
        start = (
            height // 2 if row is None else row,
            width // 2 if column is None else column,
        )
        super().__init__(
            rows=height,
            columns=width,
            image_data=base.pack(self._levels),
            network=_for_the_browser(self._found),
            names=list(places),
            places=list(places.values()),
            grid=grid,
            near_data=base.pack(self._near),
            far_data=base.pack(self._far),
            pixel_mm=pixel_mm,
            layer=len(places) - 1,
            grid_row=min(start[0] * grid // height, grid - 1),
            grid_column=min(start[1] * grid // width, grid - 1),
            **base.heading(title, alt, "Image", " and what a network looks at."),
        )

    @property
    def pixel(self) -> tuple[int, int]:
        """Row and column of the chosen place."""
        rows, columns = self._middles
        return rows[self.grid_row], columns[self.grid_column]

    def fields(self) -> dict[str, Field]:
        """Rows and columns of the image that each layer sees at the present place."""
        return {
            name: self._found.fields(place, self._inside(place, self.pixel))[0]
            for name, place in zip(self.names, self.places, strict=True)
        }

    def asked(self) -> dict[str, Field]:
        """Rows and columns of each layer's map that the output at this place asks."""
        output = self.places[-1]
        seen = self._found.fields(output, self._inside(output, self.pixel))
        pairs = zip(self.names, self.places, strict=True)
        return {name: seen[place] for name, place in pairs if place in seen}

    def _inside(self, place: int, pixel: tuple[int, int]) -> tuple[int, int]:
        """The position in a layer's map that covers a pixel of the image."""
        rows, columns = (
            p * n // whole
            for p, n, whole in zip(
                pixel,
                self._found.layers[place].shape[1:],
                self._found.layers[0].shape[1:],
                strict=True,
            )
        )
        return rows, columns

    def _measure(
        self, film: Tensor, network: nn.Module, module: str, place: int
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        """Levels of influence in the field (R, C, NEAR, NEAR) and outside of it."""
        response = part(network, module)
        rows, columns = self._middles
        pixels = [self._inside(place, middle) for middle in product(rows, columns)]
        parts = [
            _split(seen, self._found.fields(place, pixel)[0])
            for pixel, seen in zip(
                pixels, influences(response, film, pixels), strict=True
            )
        ]
        near, far = map(torch.stack, zip(*parts, strict=True))
        most = near.amax((1, 2), keepdim=True)
        grid = len(rows), len(columns)
        return (
            _to_levels(near, most).reshape(*grid, NEAR, NEAR),
            _to_levels(far, most).reshape(*grid, FAR, FAR),
        )

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
        axes.plot(*self.pixel[::-1], "o", color=plotting.PALETTE[0], mec="white")
        return figure


def _for_the_browser(found: Trace) -> list[list]:
    """Inputs, windows and size of the map of each operation."""
    return [
        [
            list(layer.inputs),
            [
                [w.size, w.stride, w.padding, w.dilation, int(w.spread)]
                for w in layer.windows
            ],
            list(layer.shape[1:]),
        ]
        for layer in found.layers
    ]


def _split(seen: Tensor, field: Field) -> tuple[Tensor, Tensor]:
    """Mean influence (H, W) in cells of the field, and in cells of all that is outside."""
    box = tuple(slice(first, last + 1) for first, last in field)
    near = F.adaptive_avg_pool2d(seen[box][None], NEAR)[0]
    beyond = torch.ones_like(seen)
    beyond[box] = 0
    share = F.adaptive_avg_pool2d(beyond[None], FAR)[0]
    far = F.adaptive_avg_pool2d((seen * beyond)[None], FAR)[0] / share
    return near, torch.where(share > 0, far, torch.zeros_like(far))


def _to_levels(values: Tensor, most: Tensor) -> npt.NDArray[np.uint8]:
    """Levels 0 to 15 of the logarithm of `values`, 15 for what is near `most`."""
    tiny = torch.finfo(torch.float32).tiny
    share = (values.clamp(min=tiny) / most.clamp(min=tiny)).log10()
    levels = (LEVELS * (1 + share / DECADES).clamp(0, 1)).ceil()
    return torch.where(values > 0, levels, 0).to(torch.uint8).numpy()
