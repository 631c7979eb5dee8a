"""What a network is made of, what it costs, and what each of its outputs looks at.

`trace` runs a network once on the `meta` device, where tensors have shapes but no
memory, and notes every operation: also those that are no modules, such as the pooling
and joining in a U-Net's `forward`. The result counts multiply-adds and memory, goes
back from an output to the pixels it depends on (`Trace.fields`) and can be drawn
(`draw`). `influence` measures the same dependence by its gradient.

Terms: a *multiply-add* is one multiplication and one addition; torch's own counter
counts them as two operations. The *theoretical receptive field* holds every pixel that
can change an output. The *effective* one weighs each pixel by how much it does
(Luo et al. 2016, arXiv 1701.04128).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from medimg_utils import plotting
from medimg_utils.errors import InputError

Interval = tuple[int, int]  # first and last index, both included
Field = tuple[Interval, ...]  # one interval for each axis


@dataclass(frozen=True)
class Window:
    """How one axis of an output looks at its input.

    Output index o sees the input indices o · stride − padding + t · dilation for
    t = 0 ... size − 1. With `spread` it is the other way round, as in a transposed
    convolution: *input* index i reaches the outputs i · stride − padding + t · dilation.
    """

    size: int = 1
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    spread: bool = False

    def back(self, seen: Interval, length: int) -> Interval:
        """The interval of an input of `length` that an interval of outputs depends on.

        >>> Window(size=3, stride=2, padding=1).back((0, 1), 8)
        (0, 3)
        >>> Window(size=2, stride=2, spread=True).back((5, 6), 8)
        (2, 3)
        """
        first, last = seen
        reach = self.dilation * (self.size - 1)
        if self.spread:
            low = -((reach - first - self.padding) // self.stride)
            high = (last + self.padding) // self.stride
        else:
            low = first * self.stride - self.padding
            high = last * self.stride - self.padding + reach
        return max(0, low), min(length - 1, high)


@dataclass(frozen=True)
class Layer:
    """One operation of a network.

    Attributes:
        name: of the module that did it, such as `contract.0.0`.
        kind: `input`, `convolution`, `transposed convolution`, `linear`, `pooling`,
            `normalisation`, `join`, `sum`, `mean` (or another summary of the whole map),
            `activation`, `reshape` or `other`.
        shape: of what comes out, without the batch: (C, ...).
        inputs: places in the trace of what goes in.
        windows: one for each axis after the channels; empty where every output
            depends on the whole input.
        parameters: numbers that training adjusts, counted where they are used first.
        multiply_adds: for one image.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    inputs: tuple[int, ...] = ()
    windows: tuple[Window, ...] = ()
    parameters: int = 0
    multiply_adds: int = 0


@dataclass(frozen=True)
class Trace:
    """The operations of a network for one size of input, first to last.

    Attributes:
        layers: each one's `inputs` point to earlier ones.
        kept: bytes that autograd keeps for the backward pass of one image, without the
            weights; in evaluation mode, where a dropout keeps nothing.
    """

    layers: tuple[Layer, ...]
    kept: int

    @property
    def parameters(self) -> int:
        """Numbers that training adjusts."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def multiply_adds(self) -> int:
        """Of one image, forward."""
        return sum(layer.multiply_adds for layer in self.layers)

    def find(self, name: str) -> int:
        """Place of the last operation of the module `name`; `""` is the whole network."""
        inside = f"{name}." if name else ""
        places = [
            k
            for k, layer in enumerate(self.layers)
            if layer.name == name or layer.name.startswith(inside)
        ]
        if not places:
            raise InputError(
                f"no operation of a module {name!r} was traced; there are: "
                f"{', '.join(dict.fromkeys(one.name for one in self.layers))}."
            )
        return places[-1]

    def fields(self, place: int, pixel: Sequence[int]) -> dict[int, Field]:
        """What one output position of the layer at `place` looks at, layer by layer.

        Args:
            place: in `layers`, see `find`.
            pixel: index along each axis after the channels.

        Returns:
            For each layer that it depends on, first and last index along each axis: a
            box around the theoretical receptive field, cut off at the borders of the
            image, and away from them the smallest one. Normalisations, whose statistics
            come from the whole image, count as if they looked at one position.
        """
        shape = self.layers[place].shape[1:]
        if len(pixel) != len(shape) or any(
            not 0 <= p < n for p, n in zip(pixel, shape, strict=False)
        ):
            raise InputError(f"pixel {tuple(pixel)} does not lie in a map of {shape}.")
        seen: dict[int, Field] = {place: tuple((p, p) for p in pixel)}
        for k in range(place, -1, -1):
            if k not in seen:
                continue
            layer = self.layers[k]
            for source in layer.inputs:
                lengths = self.layers[source].shape[1:]
                if layer.windows:
                    field = tuple(
                        window.back(interval, n)
                        for window, interval, n in zip(
                            layer.windows, seen[k], lengths, strict=True
                        )
                    )
                else:
                    field = tuple((0, n - 1) for n in lengths)
                seen[source] = _hull(seen.get(source), field)
        return seen

    def receptive_field(self, place: int = -1) -> tuple[int, ...]:
        """Side of the field at the input, in pixels, along each axis.

        Taken in the middle of the map. Trace the network on an image larger than the
        field, or the border cuts it off.
        """
        place = range(len(self.layers))[place]
        middle = [n // 2 for n in self.layers[place].shape[1:]]
        return tuple(high - low + 1 for low, high in self.fields(place, middle)[0])


def _hull(one: Field | None, other: Field) -> Field:
    if one is None:
        return other
    return tuple(
        (min(a[0], b[0]), max(a[1], b[1])) for a, b in zip(one, other, strict=True)
    )


# ------------------------------------------------------------------------------- tracing


def trace(network: nn.Module, *shape: int) -> Trace:
    """Note every operation of a network for one image of `shape` (C, ...).

    Nothing is computed, so the largest network is traced on a laptop in a second.

    Args:
        network: is not changed.
        shape: of one image, without the batch.

    >>> network = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2))
    >>> found = trace(network, 1, 32, 32)
    >>> [layer.kind for layer in found.layers]
    ['input', 'convolution', 'activation', 'pooling']
    >>> found.parameters, found.multiply_adds, found.receptive_field()
    (80, 64800, (4, 4))
    """
    twin = copy.deepcopy(network).to("meta").eval()
    recorder = _Recorder(twin)
    image = torch.empty(1, *shape, device="meta")
    recorder.start(image)
    kept: dict[int, int] = {}
    weights = {id(p): p for p in twin.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        if id(tensor) not in weights and not _is_view_of_weight(tensor, weights):
            storage = tensor.untyped_storage()
            kept[storage._cdata] = storage.nbytes()
            alive.append(storage)
        return tensor

    alive: list[Any] = []  # else an address could be used twice
    hooks = recorder.watch(twin)
    try:
        with (
            torch.enable_grad(),
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            recorder,
        ):
            twin(image)
    finally:
        for hook in hooks:
            hook.remove()
    return Trace(tuple(recorder.layers), sum(kept.values()))


def _is_view_of_weight(tensor: Tensor, weights: Mapping[int, Tensor]) -> bool:
    base = tensor._base
    return base is not None and id(base) in weights


class _Recorder(TorchDispatchMode):
    """Sees each operation below autograd, where functions and modules look alike."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.layers: list[Layer] = []
        self.stack: list[str] = []
        self.names = {module: name for name, module in network.named_modules()}
        self.counted: set[nn.Module] = set()
        self.modules: list[nn.Module] = []
        # By identity: tensors are kept alive, so that none takes another's place.
        self.place: dict[int, int] = {}
        self.alive: list[Tensor] = []

    def start(self, image: Tensor) -> None:
        self.layers.append(Layer("", "input", tuple(image.shape[1:])))
        self._register(image, 0)

    def watch(self, network: nn.Module) -> list[Any]:
        def enter(module: nn.Module, _: Any) -> None:
            self.modules.append(module)

        def leave(module: nn.Module, _: Any, __: Any) -> None:
            self.modules.pop()

        hooks: list[Any] = []
        for module in network.modules():
            hooks.append(module.register_forward_pre_hook(enter))
            hooks.append(module.register_forward_hook(leave))
        return hooks

    def _register(self, tensor: Tensor, place: int) -> None:
        self.place[id(tensor)] = place
        self.alive.append(tensor)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        sources = [self.place[id(x)] for x in given if id(x) in self.place]
        made = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        if not sources or not made:
            return out
        inputs = tuple(dict.fromkeys(sources))
        layer = self._describe(func, args, made[0], inputs)
        if layer is None:  # the same numbers in another order
            for tensor in made:
                self._register(tensor, inputs[0])
            return out
        self.layers.append(layer)
        for tensor in made:
            self._register(tensor, len(self.layers) - 1)
        return out

    def _describe(
        self, func: Any, args: Any, out: Tensor, inputs: tuple[int, ...]
    ) -> Layer | None:
        name = func.overloadpacket.__name__
        shape = tuple(out.shape[1:])
        axes = max(0, out.ndim - 2)
        alike = tuple(Window() for _ in range(axes))
        layer = Layer(self._name(), "other", shape, inputs, alike)
        if name == "convolution":
            return self._with_parameters(_convolution(layer, args))
        if name in ("addmm", "mm", "bmm"):
            per_output = args[1 if name == "addmm" else 0].shape[-1]
            return self._with_parameters(
                replace(
                    layer,
                    kind="linear",
                    windows=(),
                    multiply_adds=per_output * math.prod(shape),
                )
            )
        if "pool" in name:
            return _pooling(layer, name, args)
        if "norm" in name:
            return self._with_parameters(replace(layer, kind="normalisation"))
        if name == "pixel_unshuffle":
            step = int(args[1])
            return replace(layer, windows=(Window(step, step),) * axes)
        if name == "pixel_shuffle":
            step = int(args[1])
            return replace(layer, windows=(Window(step, step, spread=True),) * axes)
        if name == "slice":
            return _slice(layer, args)
        if name == "cat":
            return replace(layer, kind="join")
        if name in ("add", "add_") and len(inputs) > 1:
            return replace(layer, kind="sum")
        if (
            name in ("mean", "amax", "sum")
            and shape[1:] != self.layers[inputs[0]].shape[1:]
        ):
            return replace(layer, kind="mean", windows=())
        if name.rstrip("_") in _ACTIVATIONS:
            return replace(layer, kind="activation")
        source = self.layers[inputs[0]].shape
        if name in _REORDERINGS:
            if len(shape) == len(source) or math.prod(shape) != math.prod(source):
                return None
            return replace(layer, kind="reshape", windows=())
        return layer

    def _name(self) -> str:
        return self.names[self.modules[-1]] if self.modules else ""

    def _with_parameters(self, layer: Layer) -> Layer:
        if not self.modules or self.modules[-1] in self.counted:
            return layer
        module = self.modules[-1]
        self.counted.add(module)
        number = sum(p.numel() for p in module.parameters(recurse=False))
        return replace(layer, parameters=number)


_ACTIVATIONS = frozenset(
    ("relu", "leaky_relu", "elu", "gelu", "silu", "sigmoid", "tanh", "softmax",
     "_softmax", "hardtanh", "threshold")
)  # fmt: skip
_REORDERINGS = frozenset(
    ("view", "_unsafe_view", "reshape", "alias", "detach", "clone", "expand", "t",
     "transpose", "permute", "squeeze", "unsqueeze", "split", "split_with_sizes",
     "_to_copy", "select", "contiguous")
)  # fmt: skip


def _convolution(layer: Layer, args: Any) -> Layer:
    _, weight, _, stride, padding, dilation, transposed, *_ = args
    windows = tuple(
        Window(int(k), int(s), int(p), int(d), spread=transposed)
        for k, s, p, d in zip(weight.shape[2:], stride, padding, dilation, strict=True)
    )
    kernel = math.prod(weight.shape[2:])
    # With groups, weights have in/groups channels; transposed ones out/groups.
    if transposed:
        source_positions = math.prod(args[0].shape[2:])
        work = source_positions * weight.shape[0] * weight.shape[1] * kernel
    else:
        work = math.prod(layer.shape) * weight.shape[1] * kernel
    kind = "transposed convolution" if transposed else "convolution"
    return replace(layer, kind=kind, windows=windows, multiply_adds=work)


def _pooling(layer: Layer, name: str, args: Any) -> Layer:
    layer = replace(layer, kind="pooling")
    if "adaptive" in name:
        return replace(layer, windows=())
    axes = len(layer.windows)

    def each(value: Any, default: Any) -> list[int]:
        value = list(value) if isinstance(value, (list, tuple)) else [value]
        value = value or list(default)
        return [int(v) for v in (value * axes if len(value) == 1 else value)]

    size = each(args[1], ())
    stride = each(args[2] if len(args) > 2 else [], size)
    padding = each(args[3] if len(args) > 3 else 0, ())
    dilation = [1] * axes
    if "max" in name:
        dilation = each(args[4] if len(args) > 4 else 1, ())
    windows = tuple(map(Window, size, stride, padding, dilation))
    return replace(layer, windows=windows)


def _slice(layer: Layer, args: Any) -> Layer:
    axis = int(args[1]) if len(args) > 1 else 0
    start = int(args[2] or 0) if len(args) > 2 else 0
    step = int(args[4]) if len(args) > 4 else 1
    if axis < 2:
        return layer
    windows = list(layer.windows)
    windows[axis - 2] = Window(stride=step, padding=-start)
    return replace(layer, windows=tuple(windows))


# ----------------------------------------------------------------------------- measuring


def part(network: nn.Module, name: str) -> Callable[[Tensor], Tensor]:
    """The network up to its module `name`: image → what comes out of that module.

    >>> network = nn.Sequential(nn.Conv2d(1, 8, 3), nn.MaxPool2d(2))
    >>> part(network, "0")(torch.zeros(1, 1, 9, 9)).shape
    torch.Size([1, 8, 7, 7])
    """
    module = network.get_submodule(name)

    def response(x: Tensor) -> Tensor:
        caught: list[Tensor] = []
        hook = module.register_forward_hook(lambda *step: caught.append(step[-1]))
        try:
            network(x)
        finally:
            hook.remove()
        return caught[-1]

    return response


def influence(
    response: Callable[[Tensor], Tensor], image: Tensor, pixel: Sequence[int]
) -> Tensor:
    """How much each pixel of the image changes one output position.

    The gradient of the sum over channels of the output at `pixel`, in absolute value,
    added over the channels of the image: the effective receptive field.

    Args:
        response: the network, or its first part: (1, C, ...) → (1, K, ...).
        image: (C, ...).
        pixel: index along each axis of the output after the channels.

    Returns:
        A tensor of the image's shape after its channels.
    """
    return influences(response, image, [pixel])[0]


def influences(
    response: Callable[[Tensor], Tensor],
    image: Tensor,
    pixels: Sequence[Sequence[int]],
    *,
    at_once: int = 10,
) -> Tensor:
    """`influence` for several output positions (N, ...), with one pass forward.

    It goes back from `at_once` of them together, which takes as many times the memory.
    """
    x = image.detach().clone()[None].requires_grad_()
    maps = []
    with torch.enable_grad():
        out = response(x)
        for start in range(0, len(pixels), at_once):
            some = pixels[start : start + at_once]
            chosen = out.new_zeros(len(some), *out.shape)
            for one, pixel in zip(chosen, some, strict=True):
                one[(..., *pixel)] = 1
            (gradients,) = torch.autograd.grad(
                out, x, chosen, is_grads_batched=True, retain_graph=True
            )
            maps.append(gradients[:, 0].abs().sum(dim=1))
    return torch.cat(maps)


def half_width(field: Tensor) -> float:
    """Side of the smallest centred square with half of the influence, in pixels.

    Centred on the middle of mass of `field` (H, W).

    >>> field = torch.zeros(9, 9)
    >>> field[4, 4] = field[4, 8] = field[4, 0] = 1
    >>> half_width(field)
    9.0
    """
    total = float(field.sum())
    if not total > 0:
        raise InputError("the influence is 0 everywhere, so it has no width.")
    rows, columns = (torch.arange(n, dtype=field.dtype) for n in field.shape)
    middle_y = float((field.sum(1) * rows).sum()) / total
    middle_x = float((field.sum(0) * columns).sum()) / total
    distance = torch.maximum(
        (rows - middle_y).abs()[:, None], (columns - middle_x).abs()[None]
    ).ravel()
    order = distance.argsort()
    inside = field.ravel()[order].cumsum(0) >= total / 2
    return 2 * float(distance[order][int(inside.int().argmax())]) + 1


# ------------------------------------------------------------------------------- drawing

_COLOURS = {
    "input": "0.75",
    "convolution": plotting.PALETTE[5],
    "transposed convolution": plotting.PALETTE[3],
    "pooling": plotting.PALETTE[4],
    "linear": plotting.PALETTE[2],
    "mean": plotting.PALETTE[4],
    "join": "white",
    "sum": "white",
}
_HATCHES = {
    "transposed convolution": "//",
    "pooling": "..",
    "mean": "..",
    "linear": "xx",
}
_SIGNS = {"sum": "+", "join": "‖"}
_DROP = 0.62  # by which a map of half the size stands lower
_GAP = 0.4


@dataclass(frozen=True)
class _Box:
    """Place of an operation in a drawing; `y` is that of its middle."""

    left: float
    y: float
    width: float
    height: float

    @property
    def right(self) -> float:
        return self.left + self.width

    @property
    def top(self) -> float:
        return self.y + self.height / 2


def draw(found: Trace, *, width: float = 9.0, height: float = 3.6) -> Figure:
    """Draw a network from left to right, as it was traced.

    A box is an operation: its height stands for the size of the map, its width for the
    number of channels (both on a logarithmic scale, and channels are written below).
    Lower means coarser: a U-Net looks like a U because its maps shrink and grow.
    Normalisations and activations are left out. Lines are connections; a dashed one
    skips operations.
    """
    boxes, links = _lay_out(found)
    figure = Figure(figsize=(width, height), layout="tight")
    axes = figure.subplots()
    named: set[str] = set()
    for place, box in boxes.items():
        layer = found.layers[place]
        axes.add_patch(
            Rectangle(
                (box.left, box.y - box.height / 2), box.width, box.height,
                facecolor=_COLOURS[layer.kind], hatch=_HATCHES.get(layer.kind),
                edgecolor="black", linewidth=0.8, zorder=3,
                label=None if layer.kind in named else layer.kind,
            )
        )  # fmt: skip
        named.add(layer.kind)
        middle = box.left + box.width / 2
        axes.text(middle, box.y, _SIGNS.get(layer.kind, ""), ha="center",
                  va="center", fontsize=9, zorder=4)  # fmt: skip
        axes.text(middle, box.y - box.height / 2 - 0.08, str(layer.shape[0]),
                  ha="center", va="top", fontsize=6, zorder=4)  # fmt: skip
        for source in links[place]:
            _connect(axes, source, place, boxes)
    above = math.inf
    sizes = {box.y: _side(found.layers[place]) for place, box in boxes.items()}
    for y in sorted(sizes, reverse=True):
        if above - y > 0.3:  # else the numbers would overlap
            axes.text(-0.35, y, str(sizes[y]), ha="right", va="center", fontsize=7,
                      color="0.3")  # fmt: skip
            above = y
    axes.set_xlim(-1.6, max(box.right for box in boxes.values()) + _GAP)
    bottom = min(box.y - box.height / 2 for box in boxes.values())
    axes.set_ylim(bottom - 0.5, max(box.top for box in boxes.values()) + 0.5)
    axes.set_axis_off()
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 0), ncols=4, fontsize=7,
                frameon=False)  # fmt: skip
    return figure


def _side(layer: Layer) -> int:
    """Longest side of a map; 1 where no places are left."""
    return max(layer.shape[1:], default=1)


def _lay_out(found: Trace) -> tuple[dict[int, _Box], dict[int, list[int]]]:
    """A box for each operation that is drawn, and the boxes that lead to each."""
    stands_for: dict[int, int] = {}  # layer → the box that it is a part of
    boxes: dict[int, _Box] = {}
    links: dict[int, list[int]] = {}
    finest = max(map(_side, found.layers))
    left = 0.0
    for place, layer in enumerate(found.layers):
        before = list(dict.fromkeys(stands_for[i] for i in layer.inputs))
        if layer.kind not in _COLOURS:
            stands_for[place] = before[0]
            continue
        stands_for[place], links[place] = place, before
        width = 0.25 + 0.09 * math.log2(1 + layer.shape[0])
        tall = 0.3 + 0.22 * math.log2(_side(layer))
        y = -_DROP * math.log2(finest / _side(layer))
        boxes[place] = _Box(left, y, width, tall)
        left += width + _GAP
    return boxes, links


def _connect(axes: Any, source: int, target: int, boxes: Mapping[int, _Box]) -> None:
    """A line from box to box: straight to the next, dashed around others."""
    start, end = boxes[source], boxes[target]
    between = [box for place, box in boxes.items() if source < place < target]
    if not between:
        axes.plot([start.right, end.left], [start.y, end.y], color="0.4",
                  linewidth=0.8, zorder=1)  # fmt: skip
        return
    top = max(box.top for box in between)
    # Over the valley of a U nothing stands in the way.
    y = start.y if start.y > top else top + 0.15
    xs = [start.right, start.right + 0.15, end.left - 0.15, end.left]
    axes.plot(xs, [start.y, y, y, end.y], color=plotting.PALETTE[1], linewidth=1,
              linestyle="dashed", zorder=2)  # fmt: skip
