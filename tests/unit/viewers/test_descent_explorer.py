import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import binary_cross_entropy_with_logits

from medimg_utils.viewers import DescentExplorer
from medimg_utils.viewers.descent_explorer import LOSSES, OPTIMISERS

RANDOM = np.random.default_rng(3)
FEATURES = RANDOM.normal(size=(20, 2)) * [2, 1]
LABELS = (FEATURES @ [1, -1] + 3 * RANDOM.normal(size=20) > 0).astype(int)


def example(**options) -> DescentExplorer:
    return DescentExplorer(FEATURES, LABELS, **options)


EXAMPLE = example()


def library_loss(name: str, weights: torch.Tensor) -> torch.Tensor:
    z, y = torch.tensor(FEATURES) @ weights, torch.tensor(LABELS, dtype=torch.float64)
    if name == "squared error":
        return 0.5 * ((z - (2 * y - 1)) ** 2).mean()
    return binary_cross_entropy_with_logits(z, y)


@settings(deadline=None)
@given(u=st.floats(-4, 4), v=st.floats(-4, 4), loss=st.sampled_from(LOSSES))
def test_loss_and_slope_are_those_of_autograd(u: float, v: float, loss: str) -> None:
    weights = torch.tensor([u, v], dtype=torch.float64, requires_grad=True)
    value = library_loss(loss, weights)
    value.backward()
    assert EXAMPLE.loss_at((u, v), loss) == pytest.approx(value.item(), abs=1e-12)
    assert np.allclose(EXAMPLE.gradient_at((u, v), loss), weights.grad, atol=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_the_path_is_that_of_torch(optimiser: str, loss: str) -> None:
    weights = torch.tensor([-2.0, 1.5], dtype=torch.float64, requires_grad=True)
    build = {
        "SGD": lambda w: torch.optim.SGD(w, lr=0.1),
        "momentum": lambda w: torch.optim.SGD(w, lr=0.1, momentum=0.8),
        "Adam": lambda w: torch.optim.Adam(w, lr=0.1, betas=(0.8, 0.999)),
    }
    stepper = build[optimiser]([weights])
    explorer = example(
        loss=loss, optimiser=optimiser, learning_rate=0.1, momentum=0.8,
        start=(-2, 1.5), steps=80,
    )  # fmt: skip
    for here in explorer.path():
        assert np.allclose(here, weights.detach(), atol=1e-9)
        stepper.zero_grad()
        library_loss(loss, weights).backward()
        stepper.step()


@pytest.mark.parametrize("loss", LOSSES)
def test_the_minimum_is_flat_and_lowest(loss: str) -> None:
    explorer = example(loss=loss)
    (u, v), lowest, _ = explorer.minima[loss]
    assert np.abs(explorer.gradient_at((u, v))).max() < 1e-9
    around = [
        explorer.loss_at((u + a, v + b)) for a in (-0.1, 0.1) for b in (-0.1, 0.1)
    ]
    assert lowest < min(around)


@pytest.mark.parametrize(
    ("factor", "verdict"), [(0.95, "arrived"), (1.05, "diverges"), (30, "diverges")]
)
def test_the_bowl_is_stable_up_to_two_over_its_curvature(factor, verdict) -> None:
    limit = example(loss="squared error").statistics()["limit"]
    rate = factor * limit
    explorer = example(loss="squared error", learning_rate=rate, steps=300)
    assert explorer.statistics()["verdict"] == verdict


def test_verdicts_of_the_cross_entropy() -> None:
    verdicts = [
        example(learning_rate=rate, steps=60).statistics()["verdict"]
        for rate in (0.001, 1.0, 20.0)
    ]
    assert verdicts == ["on its way", "arrived", "swings"]


def test_a_separable_problem_falls_for_ever() -> None:
    separable = [[1, 0], [2, 1], [-1, 0], [-2, 1]], [1, 1, 0, 0]
    explorer = DescentExplorer(*separable, learning_rate=1, steps=300)
    assert explorer.minima["cross-entropy"] == [None, 0.0, 0.0]
    losses = [explorer.loss_at(weights) for weights in explorer.path()]
    assert (np.diff(losses) < 0).all()
    assert explorer.statistics()["limit"] == np.inf
    assert len(explorer._repr_mimebundle_()[0]["image/png"]) > 1000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "hinge"}, "loss is 'hinge'"),
        ({"optimiser": "adam"}, "optimiser is 'adam'"),
        ({"learning_rate": 0}, "learning_rate is 0"),
        ({"momentum": 1}, "momentum is 1"),
        ({"steps": 0}, "steps is 0"),
        ({"start": (9, 0)}, "outside the picture"),
    ],
)
def test_wrong_settings_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        example(**options)


@pytest.mark.parametrize(
    ("features", "labels", "message"),
    [
        (FEATURES[:, :1], LABELS, r"\(20, 1\)"),
        (FEATURES, LABELS[:3], r"labels \(3,\)"),
        (np.full((20, 2), np.nan), LABELS, "NaN"),
        (FEATURES, LABELS + 1, "other than 0 and 1"),
        (np.empty((0, 2)), [], r"\(0, 2\)"),
        (FEATURES[:, [0, 0]], LABELS, "say the same"),
    ],
)
def test_wrong_data_are_refused(features, labels, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DescentExplorer(features, labels)


def test_the_still_picture_follows_the_learning_rate() -> None:
    explorer = example(title="A valley")
    data, metadata = explorer._repr_mimebundle_()
    assert metadata["image/png"]["alt"].startswith("A valley")
    explorer.log_rate = 0.5
    assert explorer._repr_mimebundle_()[0]["image/png"] != data["image/png"]
