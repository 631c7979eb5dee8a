"""A loss of two weights, and how an optimiser walks down it."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import traitlets
from matplotlib.figure import Figure

from medimg_utils import plotting
from medimg_utils.viewers import base

LOSSES = ("cross-entropy", "squared error")
OPTIMISERS = ("SGD", "momentum", "Adam")
_SECOND, _TINY = 0.999, 1e-8  # Adam's second decay and the number it adds below


class Minimum(NamedTuple):
    """The lowest point of a loss, and how curved the surface is there.

    Where a line separates the classes the cross-entropy falls for ever: there are no
    weights, and loss and curvature are what it tends to, 0.
    """

    weights: tuple[float, float] | None
    loss: float
    curvature: float


class DescentExplorer(base.Viewer):
    r"""Let the reader choose optimiser, learning rate and start, and see the path.

    The model has two weights $w$ and no bias: the logit of image $i$ is
    $z_i = x_i \cdot w$. Two losses of it can be chosen, the mean cross-entropy of
    $\sigma(z_i)$, and half the mean squared distance of $z_i$ from ±1, whose surface is
    a bowl. The path uses all images in each step, so nothing about it is random. All of
    it is computed in the browser. The lowest point is marked, if there is one.

    Args:
        features: (N, 2), what is known of each image.
        labels: (N,) 0 or 1.
        names: of the two features.
        limit: largest weight, to both sides of 0, that the picture shows.
        loss: one of `LOSSES`.
        optimiser: one of `OPTIMISERS`; `momentum` is their decay of the past.
        learning_rate: between 0.001 and 100.
        momentum: 0 to 0.99; the first decay of Adam.
        steps: 1 to 300.
        start: the two weights at step 0.
        title: heading of the viewer.
        alt: description of the picture for those who cannot see it.

    Raises:
        ValueError: shapes that differ, NaN, labels other than 0 and 1, an unknown loss
            or optimiser, a rate outside its range, or two features that say the same,
            so that the loss has no single lowest point.

    >>> explorer = DescentExplorer([[1, 0], [1, 0], [0, 1], [0, 1]], [1, 0, 1, 0],
    ...                            loss="squared error", start=(2, 2), learning_rate=1,
    ...                            steps=1)
    >>> explorer.path().tolist()
    [[2.0, 2.0], [1.0, 1.0]]
    """

    _esm = base.javascript("descent_explorer.js")

    features = traitlets.List(traitlets.List(traitlets.Float())).tag(sync=True)
    labels = traitlets.List(traitlets.Int()).tag(sync=True)
    names = traitlets.List(traitlets.Unicode()).tag(sync=True)
    limit = traitlets.Float().tag(sync=True)
    minima = traitlets.Dict().tag(sync=True)
    losses = traitlets.List(traitlets.Unicode(), list(LOSSES)).tag(sync=True)
    optimisers = traitlets.List(traitlets.Unicode(), list(OPTIMISERS)).tag(sync=True)
    loss = traitlets.Unicode().tag(sync=True)
    optimiser = traitlets.Unicode().tag(sync=True)
    log_rate = traitlets.Float().tag(sync=True)
    momentum = traitlets.Float().tag(sync=True)
    steps = traitlets.Int().tag(sync=True)
    start_1 = traitlets.Float().tag(sync=True)
    start_2 = traitlets.Float().tag(sync=True)

    def __init__(
        self,
        features: npt.ArrayLike,
        labels: npt.ArrayLike,
        *,
        names: tuple[str, str] = ("weight 1", "weight 2"),
        limit: float = 4.0,
        loss: str = "cross-entropy",
        optimiser: str = "SGD",
        learning_rate: float = 0.3,
        momentum: float = 0.9,
        steps: int = 60,
        start: tuple[float, float] = (-2.0, 2.0),
        title: str = "",
        alt: str = "",
    ) -> None:
        self._x, self._y = _check_data(features, labels)
        for kind, value, known in (
            ("loss", loss, LOSSES),
            ("optimiser", optimiser, OPTIMISERS),
        ):
            if value not in known:
                raise ValueError(f"{kind} is {value!r}, expected one of {known}")
        base.check_between("learning_rate", learning_rate, 1e-3, 100)
        base.check_between("momentum", momentum, 0, 0.99)
        base.check_between("steps", steps, 1, 300)
        if not (limit > 0 and max(map(abs, start)) <= limit):
            raise ValueError(f"start {start} lies outside the picture, ±{limit}")
        minima = {name: self._minimum(name) for name in LOSSES}
        super().__init__(
            features=self._x.tolist(),
            labels=self._y.astype(int).tolist(),
            names=list(names),
            limit=float(limit),
            minima={name: list(found) for name, found in minima.items()},
            loss=loss,
            optimiser=optimiser,
            log_rate=float(np.log10(learning_rate)),
            momentum=float(momentum),
            steps=int(steps),
            start_1=float(start[0]),
            start_2=float(start[1]),
            **base.heading(
                title, alt, "A loss of two weights", ": contours and a path."
            ),
        )

    def loss_at(self, weights: npt.ArrayLike, loss: str | None = None) -> float:
        """The loss at two weights."""
        z = self._x @ np.asarray(weights, float)
        if (loss or self.loss) == "squared error":
            return float(np.mean((z - (2 * self._y - 1)) ** 2) / 2)
        return float(np.mean(np.logaddexp(0, z) - self._y * z))

    def gradient_at(
        self, weights: npt.ArrayLike, loss: str | None = None
    ) -> npt.NDArray[np.float64]:
        """Slope (2,) of the loss at two weights."""
        z = self._x @ np.asarray(weights, float)
        if (loss or self.loss) == "squared error":
            wrong = z - (2 * self._y - 1)
        else:
            wrong = 1 / (1 + np.exp(-np.clip(z, -500, 500))) - self._y
        return wrong @ self._x / len(self._x)

    def path(self) -> npt.NDArray[np.float64]:
        """Weights (steps + 1, 2) from the start on; it ends early where they overflow.

        The rules are those of `torch.optim.SGD` and `torch.optim.Adam`.
        """
        rate, decay = 10**self.log_rate, self.momentum
        weights = np.array([self.start_1, self.start_2])
        first, second = np.zeros(2), np.zeros(2)
        walked = [weights]
        for step in range(1, self.steps + 1):
            slope = self.gradient_at(weights)
            if self.optimiser == "Adam":
                first = decay * first + (1 - decay) * slope
                second = _SECOND * second + (1 - _SECOND) * slope**2
                length = np.sqrt(second / (1 - _SECOND**step)) + _TINY
                move = first / (1 - decay**step) / length
            elif self.optimiser == "momentum":
                move = first = decay * first + slope
            else:
                move = slope
            weights = weights - rate * move
            if not np.abs(weights).max() < 1e12:
                break
            walked.append(weights)
        return np.array(walked)

    def statistics(self) -> dict[str, float | str]:
        """What the viewer shows in its table, and its verdict."""
        losses = np.array([self.loss_at(weights) for weights in self.path()])
        _, lowest, curvature = self.minima[self.loss]
        climb = losses[0] - lowest
        rises = np.diff(losses[len(losses) // 2 :])
        if len(losses) <= self.steps or losses[-1] > losses[0]:
            verdict = "diverges"
        elif losses[-1] - lowest < 0.01 * climb:
            verdict = "arrived"
        elif (rises > 0.01 * climb).any():
            verdict = "swings"
        else:
            verdict = "on its way"
        return {
            "first": float(losses[0]),
            "last": float(losses[-1]),
            "lowest": lowest,
            "limit": 2 / curvature if curvature else float("inf"),
            "verdict": verdict,
        }

    def still(self) -> Figure:
        """Draw the viewer's present state as a figure."""
        side = np.linspace(-self.limit, self.limit, 81)
        grid = np.array([[self.loss_at((u, v)) for u in side] for v in side])
        place, lowest, _ = self.minima[self.loss]
        figure = Figure(figsize=(8, 3.8), layout="tight")
        left, right = figure.subplots(1, 2)
        left.contourf(side, side, np.log(grid), levels=14, cmap="cividis")
        walked = self.path()
        left.plot(*walked.T, "-o", color="white", markersize=3, markeredgecolor="black")
        if place is not None:
            left.plot(*place, "X", color="#D55E00", markeredgecolor="black", ms=10)
        left.set(xlim=(-self.limit, self.limit), ylim=(-self.limit, self.limit))
        left.set(xlabel=self.names[0], ylabel=self.names[1], aspect="equal")
        losses = [self.loss_at(weights) for weights in walked]
        right.semilogy(losses, color=plotting.PALETTE[0])
        if lowest > 0:
            right.axhline(lowest, color="0.4", linestyle="dotted")
        right.set(xlabel="step", ylabel=self.loss)
        return figure

    def _minimum(self, loss: str) -> Minimum:
        """Newton's method; one step is enough for the bowl of the squared error."""
        weights = np.zeros(2)
        if np.linalg.matrix_rank(self._bend(weights, loss)) < 2:
            raise ValueError(
                f"the {loss} has no single lowest point: the two features say the same, "
                "or one of them is always 0"
            )
        for _ in range(100):
            slope, bend = self.gradient_at(weights, loss), self._bend(weights, loss)
            if np.abs(slope).max() < 1e-12:
                break
            step, here = np.linalg.solve(bend, slope), self.loss_at(weights, loss)
            while self.loss_at(weights - step, loss) > here + 1e-15:
                step /= 2
            weights = weights - step
            right = (self._x @ weights) * (2 * self._y - 1) > 0
            if loss == "cross-entropy" and right.all():
                return Minimum(None, 0.0, 0.0)
        curvature = float(np.linalg.eigvalsh(self._bend(weights, loss))[-1])
        place = (float(weights[0]), float(weights[1]))
        return Minimum(place, self.loss_at(weights, loss), curvature)

    def _bend(
        self, weights: npt.NDArray[np.float64], loss: str
    ) -> npt.NDArray[np.float64]:
        """Second derivatives (2, 2) of the loss."""
        if loss == "squared error":
            return self._x.T @ self._x / len(self._x)
        p = 1 / (1 + np.exp(-np.clip(self._x @ weights, -500, 500)))
        return (self._x * (p * (1 - p))[:, None]).T @ self._x / len(self._x)


def _check_data(
    features: npt.ArrayLike, labels: npt.ArrayLike
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return features (N, 2) and labels (N,) as floats, or raise ValueError."""
    x, y = np.asarray(features, float), np.asarray(labels, float)
    if x.ndim != 2 or x.shape[1] != 2 or y.shape != x.shape[:1] or not len(x):
        raise ValueError(
            f"features have shape {x.shape} and labels {y.shape}, "
            "expected (N, 2) and (N,)"
        )
    if not np.isfinite(x).all():
        raise ValueError("features hold NaN or infinite numbers, expected none")
    if not np.isin(y, (0, 1)).all():
        raise ValueError("labels hold values other than 0 and 1")
    return x, y
