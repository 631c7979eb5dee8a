"""Methods on networks whose explanation is known, measures by hand, sanity checks."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from medimg_utils import metrics
from medimg_utils.challenges import attribution
from medimg_utils.challenges.classifier import FilmNet
from medimg_utils.errors import InputError


class Linear(nn.Module):
    """z = Σ w x: everything about it is known."""

    def __init__(self, weight):
        super().__init__()
        self.weight = weight
        self.layer = nn.Identity()

    def forward(self, x):
        return (self.weight * self.layer(x)).sum((1, 2, 3))


@pytest.fixture(name="linear")
def _linear():
    torch.manual_seed(0)
    return Linear(torch.randn(1, 16, 16))


def raw(network, name, images, **settings):
    one = attribution.explainers(network, "layer", **settings)[name]
    return one(images.clone().requires_grad_()).detach()


def test_saliency_of_a_linear_network_is_its_weight(linear):
    found = raw(linear, "saliency", torch.randn(2, 1, 16, 16))
    assert torch.allclose(found, linear.weight.abs().expand(2, -1, -1))


def test_integrated_gradients_of_a_linear_network_are_weight_times_difference():
    torch.manual_seed(0)
    linear, images = Linear(torch.randn(1, 64, 64)), torch.randn(2, 1, 64, 64)
    found = raw(linear, "integrated gradients", images)
    expected = linear.weight * (images - attribution.blurred(images))
    assert torch.allclose(found, expected[:, 0].clamp(min=0), atol=1e-5)


def test_blurring_removes_detail_and_keeps_the_level():
    images = 3 + torch.randn(1, 1, 96, 96)
    found = attribution.blurred(images)
    assert found.std() < 0.1 * images.std()
    assert abs(float(found.mean() - images.mean())) < 0.05


def test_occlusion_finds_what_the_network_looks_at():
    weight = torch.zeros(1, 16, 16)
    weight[0, 4:8, 8:12] = 1
    found = raw(Linear(weight), "occlusion", torch.ones(1, 1, 16, 16), window=4)[0]
    assert found[4:8, 8:12].min() > found[12:, :4].max()
    assert found[12:, :4].max() == 0


def test_edges_ask_no_network():
    image = torch.zeros(1, 1, 8, 8)
    image[..., 4:] = 1
    found = attribution.edges(image)[0]
    assert torch.equal(found[:, 3], torch.ones(8))
    assert found.sum() == 8


def test_all_methods_give_maps_that_sum_to_one():
    torch.manual_seed(0)
    network = FilmNet().eval()
    images = torch.randn(2, 1, 96, 96)
    before = [p.clone() for p in network.parameters()]
    for name, one in attribution.explainers(network, "blocks.4", steps=4).items():
        heat = attribution.explain(one, images)
        assert heat.shape == (2, 96, 96), name
        assert heat.min() >= 0, name
        assert np.allclose(heat.sum(axis=(1, 2)), 1), name
    assert all(map(torch.equal, before, network.parameters()))
    assert all(p.grad is None for p in network.parameters())


def test_a_map_of_nothing_points_nowhere():
    heat = attribution.explain(lambda x: torch.zeros(1, 4, 4), torch.ones(1, 1, 4, 4))
    assert np.allclose(heat, 1 / 16)


def test_a_layer_that_is_not_there_is_refused(linear):
    with pytest.raises(InputError, match=r"no layer 'blocks\.9'"):
        attribution.explainers(linear, "blocks.9")


def test_measures_of_perfect_and_of_blind_maps():
    finding = np.zeros((20, 20), bool)
    finding[5:10, 5:10] = True
    perfect = attribution.measure(finding.astype(float), finding)
    assert perfect == {"pointing": 1.0, "inside": 1.0}
    even = attribution.measure(np.full((20, 20), 0.1), finding)
    assert even["inside"] == pytest.approx(25 / 400)
    assert even["inside"] == pytest.approx(attribution.chance(finding)["inside"])


def test_chance_is_the_mean_of_pointing_everywhere():
    finding = np.zeros((9, 9), bool)
    finding[2, 3:6] = True
    hits = []
    for place in np.ndindex(9, 9):
        heat = np.zeros((9, 9))
        heat[place] = 1
        hits.append(attribution.measure(heat, finding, tolerance=1.0)["pointing"])
    assert attribution.chance(finding, 1.0)["pointing"] == pytest.approx(np.mean(hits))


def test_negative_maps_are_refused():
    with pytest.raises(InputError, match="lowest value"):
        attribution.measure(np.array([[-1.0, 2.0]]), np.array([[True, False]]))


def test_the_centre_map_is_highest_in_the_middle():
    found = attribution.centre_map((9, 7))
    assert np.unravel_index(found.argmax(), found.shape) == (4, 3)


def test_forgetting_changes_the_named_modules_of_a_copy_alone():
    network = FilmNet()
    kept = {name: value.clone() for name, value in network.state_dict().items()}
    twin = attribution.randomise(network, ["head", "blocks.4"], seed=3)
    again = attribution.randomise(network, ["head", "blocks.4"], seed=3)
    for name, value in twin.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
        assert torch.equal(network.state_dict()[name], kept[name])
        forgotten = name.startswith(("head", "blocks.4.0"))
        assert torch.equal(value, kept[name]) != forgotten, name


@pytest.mark.parametrize("name", ["nothing", "dropout"])
def test_what_cannot_forget_is_refused(name):
    with pytest.raises(InputError, match="no module"):
        attribution.randomise(FilmNet(), [name])


def test_similarity_is_of_order_alone():
    random = np.random.default_rng(0)
    one = random.random((6, 6))
    assert attribution.similarity(one, one**3) == 1
    assert attribution.similarity(one, -one) == -1
    assert attribution.similarity(one, np.ones((6, 6))) == 0
    assert abs(attribution.similarity(one, random.random((6, 6)))) < 0.5


def test_edges_survive_what_no_explanation_should():
    torch.manual_seed(0)
    network = FilmNet().eval()
    images = torch.randn(2, 1, 96, 96)
    other = attribution.randomise(network, ["head", "blocks"], seed=5).eval()
    maps = [
        {
            name: attribution.explain(one, images)
            for name, one in attribution.explainers(net, "blocks.4").items()
            if name in ("edges", "saliency")
        }
        for net in (network, other)
    ]
    found = attribution.compare_with(*maps)
    assert found["edges"] == [1, 1]
    assert max(found["saliency"]) < 1


def test_a_mean_over_networks_is_wider_than_over_patients_alone():
    random = np.random.default_rng(0)
    values = random.normal(0, 0.1, (5, 1)) + random.normal(0, 0.1, (1, 40))
    both = attribution.mean_of(values)
    alone = attribution.mean_of(values.mean(axis=0))
    assert both.value == pytest.approx(values.mean())
    assert alone.value == pytest.approx(values.mean())
    assert both.high - both.low > 1.5 * (alone.high - alone.low)
    # with one network it is the usual interval over patients
    usual = stats.ttest_1samp(values.mean(axis=0), 0).confidence_interval()
    assert alone[1:] == pytest.approx(usual)


def test_films_of_one_patient_count_as_one_draw():
    values = np.repeat(np.random.default_rng(1).normal(size=30), 4)
    single = attribution.mean_of(values[::4])
    several = attribution.mean_of(values, np.repeat(np.arange(30), 4))
    assert several == pytest.approx(single)


def test_no_hit_at_all_is_no_certainty():
    none = attribution.mean_of(np.zeros((5, 17)), np.arange(17) // 2, bounds=(0, 1))
    assert none == metrics.proportion(0, 9)  # of patients
    every = attribution.mean_of(np.ones(12), bounds=(0, 1))
    assert every == metrics.proportion(12, 12)
    # a difference or a similarity that never varies is no share
    assert attribution.mean_of(np.zeros((5, 17))) == (0, 0, 0)
    assert attribution.mean_of(np.ones((5, 17)), bounds=(-1, 1)) == (1, 1, 1)


def alike(between, lost, heart, seeds=4, people=12):
    """Similarities of a method, with a little noise; ones on the diagonal."""
    random = np.random.default_rng(2)

    def noisy(mean, *shape):
        return mean + random.normal(0, 0.01, shape)

    pairs = noisy(between, seeds, seeds, people)
    pairs[np.arange(seeds), np.arange(seeds)] = 1.0
    return pairs, noisy(lost, seeds, people), noisy(heart, seeds, people)


@pytest.mark.parametrize(
    ("similarities", "passed"),
    [
        ((0.8, 0.1, 0.2), (True, True, True)),
        ((0.1, 0.12, 0.0), (False, False, True)),  # another network, another map
        ((0.8, 0.82, 0.1), (True, False, True)),  # repeats the film without its weights
        (
            (0.8, 0.1, 0.82),
            (True, True, False),
        ),  # the same for what was learned by heart
    ],
)
def test_each_way_to_fail_a_sanity_check_is_seen(similarities, passed):
    found = attribution.sanity_checks(*alike(*similarities))
    assert found.passed(bar=0.5) == passed
    assert found.seeds.value == pytest.approx(similarities[0], abs=0.01)
    assert found.weights.value == pytest.approx(
        similarities[0] - similarities[1], abs=0.02
    )


def test_a_network_is_never_compared_with_itself():
    pairs, lost, heart = alike(0.3, 0.0, 0.0)
    found = attribution.sanity_checks(pairs, lost, heart)
    assert found.seeds.high < 0.35  # ones on the diagonal would lift it


def test_a_map_that_asks_nobody_fails():
    ones = np.ones((3, 3, 5))
    found = attribution.sanity_checks(ones, ones[0], ones[0])
    assert found.passed() == (True, False, False)


def test_similarities_that_do_not_belong_together_are_refused():
    with pytest.raises(InputError, match=r"\(S, S, P\)"):
        attribution.sanity_checks(np.ones((3, 3, 5)), np.ones((3, 4)), np.ones((3, 5)))
