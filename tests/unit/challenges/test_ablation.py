import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from medimg_utils import results
from medimg_utils.brain.preprocess import Grid, Prepared
from medimg_utils.challenges import ablation
from medimg_utils.challenges.ablation import Chance, Design, Draws
from medimg_utils.errors import InputError


def prepared(depth: int = 20, height: int = 24, planes: int = 30) -> Prepared:
    """A brain of ones with oedema in planes 8 to 23 and a core within."""
    channels = np.ones((4, depth, height, planes), np.float16)
    target = np.zeros((3, depth, height, planes), np.uint8)
    target[1, 4:14, 4:14, 8:24] = 255
    target[:, 6:10, 6:12, 12:20] = np.array([255, 0, 0]).reshape(3, 1, 1, 1)
    target[2, 6:10, 12:14, 12:20] = 255
    box = (slice(0, depth), slice(0, height), slice(0, planes))
    grid = Grid((depth, height, planes), box, (1.0, 1.0, 1.0), (2.0, 2.0, 2.0))
    return Prepared(channels, 1.0, grid, target)


# ------------------------------------------------------------------------------ designs


def test_designs_differ_from_the_baseline_in_one_choice() -> None:
    base = asdict(ablation.DESIGNS[ablation.BASELINE])
    seen = set()
    for name, design in ablation.DESIGNS.items():
        changed = {k: v for k, v in asdict(design).items() if v != base[k]}
        assert len(changed) == (name != ablation.BASELINE)
        seen.add(json.dumps(changed))
    assert len(seen) == len(ablation.DESIGNS)


@pytest.mark.parametrize("design", ablation.DESIGNS.values(), ids=ablation.DESIGNS)
def test_every_design_answers_for_its_patches_and_for_whole_slices(
    design: Design,
) -> None:
    whole = ablation.EXPERIMENTS["lab"].side
    network = ablation.build(design, 0)
    for side in (whole, whole // design.shrink):
        assert network(torch.zeros(2, 4, side, side)).shape == (2, 1, side, side)


def test_normalisations_have_as_many_weights() -> None:
    counts = {
        norm: sum(w.numel() for w in ablation.build(Design(norm=norm), 0).parameters())
        for norm in ablation.NORMS
    }
    assert len(set(counts.values())) == 1


def test_without_normalisation_an_image_of_twice_the_contrast_is_another() -> None:
    image = torch.rand(1, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    shift = {}
    for norm in ablation.NORMS:
        first = ablation.build(Design(norm=norm), 0).contract[0].eval()
        with torch.inference_mode():
            deep = nn.functional.pixel_unshuffle(image, 2)
            shift[norm] = float((first(2 * deep) - first(deep)).abs().max())
    # statistics of the image at hand undo the factor, fixed ones do not
    assert max(shift["instance"], shift["group"]) < 1e-3
    assert min(shift["none"], shift["batch"]) > 0.05


def test_the_seed_decides_the_weights() -> None:
    one, same, other = (ablation.build(Design(), seed) for seed in (3, 3, 4))
    pairs = zip(one.parameters(), same.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(one.head.weight, other.head.weight)


# --------------------------------------------------------------------------------- data


def test_slices_run_through_the_tumour_and_hold_its_core() -> None:
    patient = ablation.slices_of(prepared(), "A", 32)
    assert patient.images.shape == (ablation.SLICES, 4, 32, 32)
    # 20 × 24 voxels in the middle of 32 × 32
    inside = patient.images[0, 0] == 1
    assert inside.sum() == 20 * 24
    assert inside[6:26, 4:28].all()
    # core and enhancing tumour, 4 × 6 and 4 × 2, where the slice meets them
    assert set(patient.core.sum(axis=(1, 2)).tolist()) == {0, 32}
    assert patient.core[:, 12:16, 10:18].any()


def test_without_masks_slices_lie_in_the_middle_and_nothing_is_told() -> None:
    patient = ablation.slices_of(prepared(), "A", 32, masked=False)
    assert patient.images.shape == (ablation.SLICES, 4, 32, 32)
    assert not patient.core.any()


def test_patients_that_cannot_be_used_are_named() -> None:
    with pytest.raises(InputError, match="A: a slice has 20 × 24 voxels"):
        ablation.slices_of(prepared(), "A", 16)
    healthy = replace(prepared(), target=np.zeros((3, 20, 24, 30), np.uint8))
    with pytest.raises(InputError, match="B: there is no tumour"):
        ablation.slices_of(healthy, "B", 32)


def test_a_draw_follows_from_seed_and_place(cohorts) -> None:
    first, same, other = (Draws(cohorts.pool, Design(), 40, seed) for seed in (1, 1, 2))
    assert torch.equal(first[7]["image"], same[0, 7]["image"])
    assert not torch.equal(first[7]["image"], other[7]["image"])
    assert not torch.equal(first[7]["image"], first[8]["image"])
    names = {first[k]["image_id"] for k in range(40)}
    assert len(names) > 4


def test_without_augmentation_a_draw_is_a_slice(cohorts) -> None:
    item = Draws(cohorts.pool, Design(augment=0), 9, 0)[3]
    owner = next(one for one in cohorts.pool if one.name == item["image_id"])
    places = [
        k for k in range(ablation.SLICES)
        if np.array_equal(owner.images[k], item["image"].numpy().astype(np.float16))
    ]  # fmt: skip
    assert len(places) == 1
    np.testing.assert_array_equal(owner.core[places[0]], item["mask"][0] > 0)


def test_patches_are_cut_alike_and_often_hold_tumour() -> None:
    image = torch.arange(64.0 * 64).reshape(1, 64, 64)
    mask = torch.zeros(1, 64, 64)
    mask[0, 0, 0] = 1  # in a corner: chance alone meets it once in 33²
    hits = 0
    for seed in range(60):
        generator = torch.Generator().manual_seed(seed)
        cut, inside = ablation.patch(image, mask, 2, generator)
        assert cut.shape == inside.shape == (1, 32, 32)
        assert torch.equal(inside[0] > 0, cut[0] == 0)
        hits += int(inside.any())
    assert 60 / 6 < hits < 60 / 2  # about a third


def test_cohorts_are_read_apart(tmp_path: Path) -> None:
    from medimg_utils.brain.simulate import ensure_release

    small = replace(
        ablation.EXPERIMENTS["tiny"], training=3, validation=1, archive=1, test=2
    )
    release = ensure_release("tiny")
    found = ablation.read_cohorts([release], small, progress=False)
    assert [len(part) for part in found] == [4, 1, 2]
    names = [one.name for part in found for one in part]
    assert len(set(names)) == len(names)
    assert not found.archive[0].core.any()
    assert all(one.core.any() for one in [*found.pool, *found.test])
    with pytest.raises(InputError, match="30 patients are needed for the test"):
        ablation.read_cohorts([release], replace(small, test=30), progress=False)


def test_a_seed_draws_its_training_patients(cohorts) -> None:
    training, rest = ablation.divide(cohorts.pool, 4, seed=1)
    assert len(training) == 4
    assert {one.name for one in training + rest} == {one.name for one in cohorts.pool}
    drawn = {tuple(p.name for p in ablation.divide(cohorts.pool, 4, k)[0])
             for k in range(6)}  # fmt: skip
    assert len(drawn) > 1


# --------------------------------------------------------------------------------- loss


def test_losses_by_hand() -> None:
    logits = torch.tensor([[[[0.0, 0.0], [50.0, -50.0]]]])
    mask = torch.tensor([[[[1.0, 0.0], [1.0, 0.0]]]])
    entropy = ablation.core_loss(logits, mask, "cross-entropy")
    assert float(entropy) == pytest.approx(np.log(2) / 2)
    # probabilities 0.5, 0.5, 1, 0: overlap 1.5, sums 2 and 2
    overlap = ablation.core_loss(logits, mask, "Dice")
    assert float(overlap) == pytest.approx(1 - 3 / 4, abs=1e-4)
    both = ablation.core_loss(logits, mask, "both")
    assert float(both) == pytest.approx(float(entropy + overlap))


def test_filling_in_is_judged_inside_the_brain_and_never_sees_the_answer() -> None:
    images = torch.ones(3, 4, 8, 8)
    images[..., :4] = 0
    seen = []

    def echo(x: torch.Tensor) -> torch.Tensor:
        seen.append(x)
        return torch.full_like(x, 3.0)

    assert float(ablation.fill_in_loss(echo, images)) == pytest.approx(2.0)
    withheld = (seen[0] == 0).all(dim=(2, 3))
    assert withheld.sum(dim=1).tolist() == [1, 1, 1]


# ----------------------------------------------------------------------------- training


def test_a_network_learns_and_the_seed_decides_the_rest(
    cohorts, experiment, tmp_path: Path
) -> None:
    scores = {}
    for name, chance in (("a", Chance(0, 0, 0)), ("b", Chance(0, 0, 0)),
                         ("c", Chance(0, 0, 1))):  # fmt: skip
        network = ablation.train_network(
            Design(), chance, cohorts, experiment, tmp_path / name
        )
        scores[name] = ablation.scores_of(network, cohorts.test)
    np.testing.assert_array_equal(scores["a"], scores["b"])
    assert not np.array_equal(scores["a"], scores["c"])
    untrained = ablation.scores_of(ablation.build(Design(), 0), cohorts.test)
    assert scores["a"].mean() > untrained.mean() + 0.3


def test_pretraining_hands_over_all_but_the_head(
    cohorts, experiment, tmp_path: Path
) -> None:
    start = ablation.pretrain(0, cohorts, experiment, tmp_path / "before")
    design, chance = Design(pretrained=True), Chance(0, 0, 0)
    with pytest.raises(InputError, match="no weights to begin with"):
        ablation.train_network(design, chance, cohorts, experiment, tmp_path / "x")
    still = replace(experiment, learning_rate=0.0)
    network = ablation.train_network(
        design, chance, cohorts, still, tmp_path / "after", start=start
    )
    own = ablation.build(design, 0).state_dict()
    for name, value in network.state_dict().items():
        expected = own[name] if "head" in name else start[name]
        torch.testing.assert_close(value, expected)


def test_a_run_is_stored_and_not_repeated(
    cohorts, experiment, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(ablation, "ensure_release", lambda size, **_: tmp_path)
    monkeypatch.setattr(ablation, "read_cohorts", lambda *a, **k: cohorts)
    short = replace(experiment, steps=3)
    designs = {
        "baseline": Design(), "patches": Design(shrink=2), "pre": Design(pretrained=True)
    }  # fmt: skip

    def run(**changes):
        return ablation.run_ablation(
            tmp_path / "runs", "lab", experiment=replace(short, **changes),
            designs=designs, folder=tmp_path, progress=False,
        )  # fmt: skip

    first = run()
    stored = results.load(ablation.NAME, tmp_path)
    assert stored["designs"].keys() == designs.keys()
    for one in stored["designs"].values():
        assert ablation.unpack(one["scores"]).shape == (2, 3)
        assert len(one["validation"]) == 2
    # what all sources share is the baseline with seed 0
    alone = stored["sources"]
    assert alone.keys() == {"patients", "weights", "order"}
    assert {lines[0] for lines in alone.values()} == {
        stored["designs"]["baseline"]["scores"][0]
    }
    assert stored["about"]["n"] == {"test patients": 3, "networks": 9, "seeds": 2}
    assert stored["about"]["seed"] == 0

    monkeypatch.setattr(ablation, "train_network", None)  # would fail if it were called
    again = run()
    assert {**again, "about": None} == {**first, "about": None}
    assert (
        run(seeds=1)["designs"]["pre"]["scores"]
        == first["designs"]["pre"]["scores"][:1]
    )
    with pytest.raises(TypeError, match="not callable"):
        run(steps=4)  # other networks


def test_other_data_are_measured_anew(
    cohorts, experiment, tmp_path: Path, monkeypatch
) -> None:
    data = {"simulation": "first"}
    monkeypatch.setattr(ablation, "ensure_release", lambda size, **_: tmp_path)
    monkeypatch.setattr(ablation, "describe_release", lambda release: dict(data))
    monkeypatch.setattr(ablation, "read_cohorts", lambda *a, **k: cohorts)

    def run():
        ablation.run_ablation(
            tmp_path / "runs", "lab", experiment=replace(experiment, steps=3, seeds=1),
            designs={"pre": Design(pretrained=True)}, folder=tmp_path, progress=False,
        )  # fmt: skip
        files = (tmp_path / "runs").rglob("last.safetensors")
        return {file.parent.name: file.read_bytes() for file in files}

    first = run()
    assert first.keys() == {"pre-0", "pre-0-0-0"}
    data["simulation"] = "second"
    assert run() == first  # another name for the same patients
    darker = [replace(one, images=one.images / 2) for one in cohorts.archive]
    cohorts = cohorts._replace(archive=darker)
    data["simulation"] = "third"
    third = run()
    assert third.keys() == first.keys()
    assert third["pre-0"] != first["pre-0"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "layer"}, "norm is 'layer'"),
        ({"loss": "hinge"}, "loss is 'hinge'"),
        ({"levels": 5}, "levels is 5"),
        ({"shrink": 0}, "shrink is 0"),
    ],
)
def test_wrong_designs_are_refused(options, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Design(**options)


def test_scores_survive_packing() -> None:
    scores = np.random.default_rng(0).random((3, 50))
    found = ablation.unpack([ablation.pack(row) for row in scores])
    np.testing.assert_allclose(found, scores, atol=0.0005)
