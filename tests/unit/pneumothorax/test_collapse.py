"""A collapse moves one lung, loses no tissue, and leaves everything else alone."""

import functools
import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from medimg_utils.physics.deform import sample
from medimg_utils.pneumothorax.collapse import (
    KINDS,
    Cavity,
    carry,
    collapse,
    random_pneumothorax,
)
from medimg_utils.pneumothorax.phantom import (
    ANATOMIES,
    COARSE,
    LEFT,
    RIGHT,
    load_chest,
)
from medimg_utils.settings import get_settings

FROM_BELOW = ("basal", "complete", "tension")


@pytest.fixture(params=itertools.product(ANATOMIES, (RIGHT, LEFT)), ids=str)
def chest_and_side(request):
    name, side = request.param
    return load_chest(name, get_settings().data), side


@pytest.fixture
def chest():
    return load_chest("chest3", get_settings().data)  # the smallest


@functools.cache
def cavity_of(name, side, below):
    chest = load_chest(name, get_settings().data)
    return Cavity.of(chest, side, with_base=below)


def gap(chest, side, kind, amplitude, seed=3):
    cavity = cavity_of(chest.name, side, kind in FROM_BELOW)
    return cavity, cavity.width(cavity.gap(kind, seed), amplitude)


def fine(chest, cavity, values):
    """A field of the cavity on the grid of the densities, and the box where it stands."""
    (field,), box = chest.refine(values.float()[None], cavity.slices)
    return field, box


def test_wall_and_base_meet_in_a_round_edge(chest):
    """The lung's lower edge, with two planes for chest wall and diaphragm.

    By hand on the diagonal: the smooth minimum of two equal distances d is d - 9 ln 2.
    """
    shape = chest.depth.shape
    x, _, z = torch.meshgrid(*(COARSE * torch.arange(n) for n in shape), indexing="ij")
    x, z = x - 60.0, z - 60.0
    planes = replace(chest, wall=x.clamp(min=0), base=z.clamp(min=0))
    cavity = Cavity.of(planes, RIGHT, with_base=True)
    x, z = x[cavity.slices], z[cavity.slices]
    sharp = torch.minimum(x, z).clamp(min=0)
    assert (cavity.wall >= 0).all()
    assert (cavity.wall <= sharp).all()
    assert (sharp - cavity.wall).max() < 9 * math.log(2) + 1e-3
    deep = (x == z) & (x > 15)
    assert deep.any()
    torch.testing.assert_close(cavity.wall[deep], x[deep] - 9 * math.log(2))
    far = (x > 10) & (z > x + 60)
    assert far.any()
    torch.testing.assert_close(cavity.wall[far], x[far], atol=0.02, rtol=0)
    # on a way around the edge the normal turns bit by bit, not by 90 degrees at once
    level = (x > 20) & (z > 20)
    turns = []
    for field in (cavity.wall, sharp):
        step = torch.stack(torch.gradient(field, spacing=COARSE))
        step = step / step.norm(dim=0).clamp(min=1e-6)
        cosine = (step[:, 1:] * step[:, :-1]).sum(0)[(level[1:] & level[:-1])]
        turns.append(float(torch.rad2deg(torch.acos(cosine.clamp(-1, 1))).max()))
    assert turns[0] < 10 < 40 < turns[1]


def test_without_the_base_the_wall_stays_as_it_is(chest_and_side):
    chest, side = chest_and_side
    cavity = Cavity.of(chest, side, with_base=False)
    assert torch.equal(cavity.wall, chest.wall[cavity.slices])
    below = Cavity.of(chest, side, with_base=True)
    assert (below.wall <= cavity.wall.clamp(min=0) + 1e-3).all()


def test_without_a_gap_nothing_changes(chest_and_side):
    chest, side = chest_and_side
    cavity = Cavity.of(chest, side, with_base=True)
    same = collapse(chest, cavity, torch.zeros_like(cavity.wall))
    assert torch.equal(same, chest.soft)
    assert same is not chest.soft


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_moves_its_own_lung_alone_and_keeps_its_mass(
    chest_and_side, kind, monkeypatch
):
    """The lung's mass is kept, but for the pleura, which is drawn on top.

    Within 9 %: the densities are capped.  Where the lung is lifted off the diaphragm,
    wall and base meet in an edge, and more of it reaches the cap.
    """
    monkeypatch.setattr("medimg_utils.pneumothorax.collapse._PLEURA_MM", 0.0)
    chest, side = chest_and_side
    before = chest.soft.clone()
    cavity, g = gap(chest, side, kind, 15.0)
    assert torch.isfinite(g).all()
    assert 10 < g.max() < 40
    after = collapse(chest, cavity, g)
    assert torch.equal(chest.soft, before)  # the shared chest is not written to
    assert torch.isfinite(after).all()
    inside, box = fine(chest, cavity, cavity.inside)
    old, new = chest.soft[box], after[box]
    before[box] = new
    assert torch.equal(after, before)  # nothing changes outside the box
    changed = new != old
    assert changed.any()
    assert not (changed & (inside <= -COARSE)).any()
    other = ((chest.side != side) & (chest.depth > COARSE))[cavity.slices]
    other = fine(chest, cavity, other)[0] > 0.5
    assert other.any()
    assert not (changed & other).any()
    # most of the gap was lung, and is now air
    air = fine(chest, cavity, cavity.shares(g)[0])[0] > 0.99
    assert air.sum() > 250
    assert old[air].mean() > 0.08
    assert new[air].mean() < 0.05
    lung = fine(chest, cavity, cavity.inside > 0)[0] > 0.5
    change = float((new - old).sum(dtype=torch.float64))
    assert abs(change) / float(old[lung].sum()) < (0.14 if kind == "basal" else 0.09)


def test_what_is_left_of_a_squeezed_lung_is_denser(chest_and_side):
    chest, side = chest_and_side
    cavity, g = gap(chest, side, "complete", 25.0)
    deep, box = fine(chest, cavity, (cavity.wall > g + 8) & (cavity.inside > 5))
    new, old = (
        soft[box][deep > 0.5] for soft in (collapse(chest, cavity, g), chest.soft)
    )
    assert 1.1 < float(new.mean() / old.mean()) < 3
    assert new.max() <= max(1.05, float(old.max())) + 1e-3


def test_the_pleural_line_shows(chest_and_side):
    """A sheet denser than the lung under it and the air over it."""
    chest, side = chest_and_side
    cavity, g = gap(chest, side, "apicolateral", 20.0)
    distance, box = fine(chest, cavity, torch.where(g > 5, cavity.wall - g, 99.0))
    inside = fine(chest, cavity, cavity.inside)[0] > 3
    after = collapse(chest, cavity, g)[box]
    line = after[inside & (distance.abs() < 0.4)].mean()
    air = after[inside & (distance < -4)].mean()
    lung = after[inside & (distance > 3) & (distance < 8)].mean()
    assert line > max(air, lung) + 0.2


def test_carry_moves_the_surface_by_the_gap_and_leaves_the_hilum(chest_and_side):
    chest, side = chest_and_side
    cavity, g = gap(chest, side, "apicolateral", 15.0)
    axes = [
        o + COARSE * torch.arange(n)
        for o, n in zip(cavity.origin, cavity.wall.shape, strict=True)
    ]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
    inside = cavity.inside > COARSE
    mediastinal = inside & (chest.medial[cavity.slices] < 6) & (cavity.wall > 25)
    points = grid[mediastinal]
    moved = (carry(cavity, g, points) - points).norm(dim=1)
    assert moved.median() < 1.5
    surface = inside & (cavity.wall < 4) & (g > 6)
    points = grid[surface]
    after = carry(cavity, g, points)
    moved = (after - points).norm(dim=1)
    wanted = sample(g[None], points, cavity.origin, COARSE)[0]
    assert float((moved / wanted).median()) == pytest.approx(1, abs=0.25)
    # and it moves away from the wall
    wall = sample(cavity.wall[None], after, cavity.origin, COARSE)[0]
    assert (
        float(
            (wall > sample(cavity.wall[None], points, cavity.origin, COARSE)[0])
            .float()
            .mean()
        )
        > 0.98
    )


@pytest.mark.parametrize(
    ("kind", "amplitude", "left"),
    # where wall and diaphragm meet, what falls from the one stays close to the other
    [("apicolateral", 15.0, 0.01), ("complete", 20.0, 0.08)],
)
def test_hardly_a_vessel_is_left_in_the_air(chest_and_side, kind, amplitude, left):
    chest, side = chest_and_side
    cavity, g = gap(chest, side, kind, amplitude)
    points = chest.vessels[chest.vessels[:, 4] == side, :3]
    air = cavity.shares(g)[0][None]
    before, after = (
        float((sample(air, p, cavity.origin, COARSE)[0] > 0.9).float().mean())
        for p in (points, carry(cavity, g, points))
    )
    assert before > 0.08  # there was something to move
    assert after < left


def test_without_a_gap_carry_moves_nothing(chest):
    cavity = Cavity.of(chest, LEFT, with_base=False)
    points = chest.vessels[:500, :3]
    assert torch.allclose(
        carry(cavity, torch.zeros_like(cavity.wall), points), points, atol=1e-4
    )


@pytest.mark.parametrize("kind", KINDS)
def test_more_amplitude_is_more_air(chest, kind):
    cavity = cavity_of(chest.name, RIGHT, kind in FROM_BELOW)
    pattern = cavity.gap(kind, 5)
    airs = []
    previous = torch.zeros_like(pattern)
    for amplitude in (0.0, 5.0, 15.0, 45.0, 135.0):
        g = cavity.width(pattern, amplitude)
        assert (g >= previous).all()
        assert (
            g <= 0.88 * cavity.thickness.clamp(min=1) + 1e-4
        ).all()  # the hilum stays
        air, lung = cavity.shares(g)
        torch.testing.assert_close(
            air + lung, (cavity.inside / COARSE + 0.5).clamp(0, 1)
        )
        airs.append(float(air.sum()))
        previous = g
    assert airs[0] == 0
    assert airs == sorted(set(airs))


@pytest.mark.parametrize("side", [RIGHT, LEFT])
def test_kinds_are_where_their_names_say(chest, side):
    cavities = {
        below: Cavity.of(chest, side, with_base=below) for below in (True, False)
    }
    x, _, z = torch.meshgrid(
        *(torch.linspace(0, 1, n) for n in cavities[True].wall.shape), indexing="ij"
    )
    height, lateral = {}, {}
    for kind in ("apical", "apicolateral", "basal"):
        for seed in range(4):
            cavity, g = gap(chest, side, kind, 20.0, seed)
            air = cavity.shares(g)[0]
            height.setdefault(kind, []).append(float((air * z).sum() / air.sum()))
            lateral.setdefault(kind, []).append(float((air * x).sum() / air.sum()))
    mean = {kind: np.mean(values) for kind, values in height.items()}
    assert mean["apical"] > mean["apicolateral"] > mean["basal"] + 0.2
    assert max(height["basal"]) < 0.45
    assert min(height["apical"]) > 0.55
    outward = np.mean(lateral["apicolateral"])
    assert (outward > 0.5) == (side == RIGHT)  # x grows to the patient's right


def test_the_seed_gives_the_shape(chest):
    cavity = Cavity.of(chest, LEFT, with_base=False)
    assert torch.equal(cavity.gap("several", 1), cavity.gap("several", 1))
    assert not torch.equal(cavity.gap("several", 1), cavity.gap("several", 2))


def test_unknown_kinds_are_refused(chest):
    with pytest.raises(ValueError, match=r"'hydro'.*apical, apicolateral"):
        Cavity.of(chest, LEFT, with_base=False).gap("hydro", 0)


def test_kinds_are_drawn_at_their_rates_and_fit_the_area():
    generator = np.random.default_rng(0)
    drawn = [random_pneumothorax(0.015, generator) for _ in range(4000)]
    for kind, rate in KINDS.items():
        share = np.mean([p.kind == kind for p in drawn])
        assert share == pytest.approx(rate, abs=4 * np.sqrt(rate * (1 - rate) / 4000))
    assert np.mean([p.side == RIGHT for p in drawn]) == pytest.approx(0.54, abs=0.03)
    assert sum(KINDS.values()) == pytest.approx(1)
    small = {random_pneumothorax(0.005, generator).kind for _ in range(500)}
    assert not small & {"complete", "tension"}
    large = [random_pneumothorax(0.05, generator).kind for _ in range(2000)]
    assert large.count("loculated") < 2000 * KINDS["loculated"] / 2
