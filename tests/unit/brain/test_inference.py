import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch.nn import functional as F

from medimg_utils.brain.experiment import compare_shares
from medimg_utils.brain.inference import (
    MODES,
    RIM,
    Networks,
    Segmentation,
    Segmenter,
    coarsen,
    dilate,
    find,
    large_parts,
    pad_to_multiple,
    published_tiles,
    ready,
    run_tiles,
    thinned_tiles,
    touching,
    whole_box,
    without_doubtful_enhancing,
)
from medimg_utils.brain.models import (
    BORDER,
    CLASSES,
    FixedNorm,
    PaddedUNet,
    UnpaddedUNet,
    fix_statistics,
)
from medimg_utils.brain.preprocess import cut, prepare
from medimg_utils.errors import InputError

shapes = st.tuples(*[st.integers(1, 130)] * 3)


# --------------------------------------------------------------------------------- tiles


def covered(shape, tiles, rim=0):
    count = np.zeros(shape, int)
    for start, size in tiles:
        count[
            tuple(slice(a, a + n - rim) for a, n in zip(start, size, strict=True))
        ] += 1
    return count


def test_the_published_tiling():
    tiles = published_tiles((90, 90, 80))
    assert len(tiles) == 900
    count = covered((90, 90, 80), tiles)
    assert count.min() == 1  # the first corner
    assert count.max() == 64


@given(shapes)
@settings(max_examples=50, deadline=None)
def test_thinned_tiles_cover_the_box_with_a_quarter_of_the_work(shape):
    tiles, published = thinned_tiles(shape), published_tiles(shape)
    # a quarter on average, and a sixth at least where few tiles overlap
    assert (6 * covered(shape, tiles) >= covered(shape, published)).all()
    assert set(tiles) <= set(published)
    assert len(tiles) <= (len(published) + 9) / 4


def test_thinned_tiles_are_a_latin_square():
    """Where all published tiles overlap, each pair of starts along two axes is once."""
    shape, voxel = (63, 63, 63), 30
    starts = [
        start
        for start, _ in thinned_tiles(shape)
        if all(a <= voxel < a + 36 for a in start)
    ]
    assert len(starts) == 16
    for axes in ((0, 1), (0, 2), (1, 2)):
        assert len({tuple(start[axis] for axis in axes) for start in starts}) == 16


def test_tiles_without_tumour_are_left_out_and_nothing_is_missed():
    mask = np.zeros((100, 60, 60), bool)
    mask[5:20, 5:20, 5:20] = True
    tiles = thinned_tiles(mask.shape)
    kept = touching(tiles, mask)
    assert 0 < len(kept) < len(tiles) / 2
    assert (covered(mask.shape, kept) == covered(mask.shape, tiles))[mask].all()


@given(shapes, st.sampled_from([2, 8, 32]), st.integers(10**7, 10**10))
@settings(max_examples=60, deadline=None)
def test_pieces_cover_the_box_begin_at_multiples_of_8_and_fit(shape, width, memory):
    tiles = whole_box(shape, width, 2, memory)
    assert covered(shape, tiles, RIM).min() >= 1
    for start, size in tiles:
        assert all(a % 8 == 0 for a in start)
        assert all(n % 8 == 4 for n in size)
    side = max(tiles[0][1])
    voxels = np.prod([n + 2 * BORDER for n in tiles[0][1]])
    assert 3 * width * 2 * voxels <= memory or side <= 20


def test_a_box_that_fits_is_one_piece():
    assert len(whole_box((90, 90, 80), 32, 2)) == 1
    assert len(whole_box((240, 240, 155), 32, 4)) > 1


class Middle(torch.nn.Module):
    """Answers with the first channel of the middle, as the logit of class 1."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x):
        inner = x[:, :1, BORDER:-BORDER, BORDER:-BORDER, BORDER:-BORDER]
        zero = torch.zeros_like(inner)
        return torch.cat([zero, inner, zero, zero], dim=1)


@pytest.mark.parametrize(
    "tiles", [published_tiles, thinned_tiles, lambda s: whole_box(s, 2, 4)]
)
def test_every_voxel_gets_its_own_answer(tiles):
    """A network without context: whatever the tiling, the answer is the voxel's own."""
    torch.manual_seed(0)
    image = torch.randn(5, 50, 44, 40)
    box = (slice(3, 48), slice(0, 20), slice(10, 40))
    engine = ready(Middle(), exact=True)
    found = run_tiles(engine, image, box, tiles((45, 20, 30)))
    logits = torch.zeros(4, 45, 20, 30)
    logits[1] = image[(0, *box)]
    assert torch.allclose(found, logits.softmax(0), atol=1e-6)


def test_where_no_tile_comes_background_is_certain():
    image = torch.randn(5, 40, 40, 40)
    box = (slice(0, 40),) * 3
    found = run_tiles(ready(Middle()), image, box, [((0, 0, 0), (4, 4, 4))])
    assert (found[0, 4:] == 1).all()
    assert (found[1:, 4:] == 0).all()


# -------------------------------------------------------------------------------- one pass


@pytest.fixture(scope="module")
def fixed():
    torch.manual_seed(0)
    patch = torch.randn(1, 5, 92, 92, 92)
    return fix_statistics(UnpaddedUNet(1), [patch]).eval()


def test_one_pass_does_not_depend_on_the_tiling(fixed):
    image = torch.randn(5, 40, 12, 14)
    box = (slice(2, 35), slice(1, 9), slice(3, 12))
    shape = (33, 8, 9)
    engine = ready(fixed, exact=True)
    whole = run_tiles(engine, image, box, whole_box(shape, 1, 4), rim=RIM)
    pieces = whole_box(shape, 1, 4, memory=15 * 10**6)
    assert len(pieces) >= 3
    parts = run_tiles(engine, image, box, pieces, rim=RIM)
    assert (whole - parts).abs().max() < 1e-6
    assert whole.std() > 0.01


def test_bfloat16_changes_few_voxels(fixed):
    image = torch.randn(5, 30, 12, 14)
    box = (slice(0, 30), slice(0, 12), slice(0, 14))
    tiles = whole_box((30, 12, 14), 1, 4)
    exact = run_tiles(ready(fixed, exact=True), image, box, tiles, rim=RIM)
    quick = run_tiles(ready(fixed), image, box, tiles, rim=RIM)
    assert (exact - quick).abs().mean() < 0.02
    assert (exact.argmax(0) == quick.argmax(0)).float().mean() > 0.9


# ----------------------------------------------------------------------------------- rules


def test_coarsening_and_padding():
    x = torch.randn(2, 5, 6, 7)
    assert torch.equal(coarsen(x, 1), x)
    small = coarsen(x, 2)
    assert small.shape == (2, 3, 3, 4)
    assert small.sum().item() * 8 == pytest.approx(x.sum().item(), abs=1e-4)
    assert torch.allclose(small[:, :2, :3, :3], F.avg_pool3d(x[:, :4, :6, :6], 2))
    padded = pad_to_multiple(x)
    assert padded.shape == (2, 8, 8, 8)
    assert torch.equal(cut(padded, (0, 0, 0), (5, 6, 7)), x)


def test_parts_touch_over_corners():
    mask = np.zeros((9, 9, 9), bool)
    mask[0, 0, 0] = mask[1, 1, 1] = mask[2, 2, 2] = True  # three, by corners
    mask[6, 6, 6:8] = True  # two, by a face
    found = large_parts(mask)
    assert found.sum() == 3
    assert found[1, 1, 1]
    assert np.array_equal(large_parts(mask, 2 / 3), mask)
    assert np.array_equal(large_parts(mask, 0.67), found)
    for share in (0.1, 1.0):
        assert not large_parts(np.zeros((3, 3, 3), bool), share).any()


def test_one_of_two_equal_parts_is_kept_or_both():
    mask = np.zeros((5, 1, 1), bool)
    mask[[0, 2]] = True
    assert large_parts(mask).sum() == 1
    assert large_parts(mask, 0.99).sum() == 2


def test_dilation_is_that_of_a_ball():
    mask = np.zeros((15, 16, 17), bool)
    mask[0, 8, 8] = mask[9, 12, 3] = True
    far = ndimage.distance_transform_edt(~mask)
    for voxels in (1, 2, 3):
        assert np.array_equal(dilate(mask, voxels), far <= voxels)
    assert dilate(mask, 0) is mask


def test_doubtful_enhancing_tumours_become_core():
    labels = np.array([1, 2, 3, 3, 0], np.uint8).reshape(1, 1, 5)
    found = Segmentation(labels, certain=2, parts=1)
    assert np.array_equal(without_doubtful_enhancing(found, 0.5, 1.0), labels)
    changed = without_doubtful_enhancing(found, 0.5, 1.01)
    assert changed.ravel().tolist() == [1, 2, 1, 1, 0]
    assert labels.ravel().tolist() == [1, 2, 3, 3, 0]
    none_certain = Segmentation(labels, certain=0, parts=1)
    assert np.array_equal(without_doubtful_enhancing(none_certain, 0.5, 0.0), labels)


# -------------------------------------------------------------------------------- both steps


class Bright(PaddedUNet):
    """Step 1 that calls tumour what is bright on FLAIR, where it is asked to."""

    def __init__(self, level=1.5):
        super().__init__(width=1)
        self.level = level

    def forward(self, x):
        return torch.stack([torch.zeros_like(x[:, 4]), x[:, 4] - self.level], dim=1)


class ByChannel(UnpaddedUNet):
    """Step 2 that reads the class off the channels of the middle voxel."""

    def forward(self, x):
        inner = x[:, :, BORDER:-BORDER, BORDER:-BORDER, BORDER:-BORDER]
        flair, t1ce, t2 = inner[:, 4], inner[:, 1], inner[:, 3]
        tumour = 8 * (flair - 1.5)
        logits = [
            torch.zeros_like(flair),
            tumour + 8 * (t2 - 3),
            tumour,
            tumour + 8 * (t1ce - 2),
        ]
        return torch.stack(logits, dim=1)


def patient(shape=(40, 44, 36)):
    """Images and labels: a tumour whose parts differ plainly, and a far bright spot."""
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"))
    middle = np.array(shape).reshape(3, 1, 1, 1) / 2
    brain = ((grid - middle) ** 2).sum(0) < 17**2
    away = np.sqrt(
        ((grid - middle - np.array([5, 3, 0]).reshape(3, 1, 1, 1)) ** 2).sum(0)
    )
    labels = np.zeros(shape, np.uint8)
    labels[(away < 8) & brain] = 2
    labels[away < 6] = 3
    labels[away < 3] = 1
    random = np.random.default_rng(0)
    images = random.normal(100, 25, (4, *shape)).clip(20, 180)
    images[1][labels == 3] = 300
    images[2][labels == 1] = 300
    images[3][labels > 0] = 300
    images[3][8:10, 21:23, 17:19] = 300  # bright, but no tumour
    return np.where(brain, images, 0).astype(np.float32), labels


def networks(**changes):
    one_pass = UnpaddedUNet(1, FixedNorm)
    parts = {
        "find": Bright(), "segment": ByChannel(1), "one_pass": one_pass, "factor": 1,
        "margin": 0,
    }  # fmt: skip
    return Networks(**(parts | changes))


@pytest.mark.parametrize("mode", ["reference", "fast"])
@pytest.mark.parametrize("voxel", [1.0, 2.0])
def test_two_steps_find_the_tumour_and_its_parts(mode, voxel):
    images, labels = patient()
    prepared = prepare(images, (1.0, 1.0, 1.0), voxel)
    margin = 0 if voxel == 1 else 1
    answer = Segmenter(networks(margin=margin), mode).segment(prepared)
    found = answer.labels
    assert found.shape == labels.shape
    if voxel == 1:
        assert (found == labels).mean() > 0.999
    for label in (1, 2, 3):
        both = (found == label) & (labels == label)
        total = (found == label).sum() + (labels == label).sum()
        assert 2 * both.sum() / total > (0.97 if voxel == 1 else 0.6)
    assert not found[7:11, 20:24, 16:20].any()  # not of the largest part
    assert 0 < answer.certain <= (found == 3).sum()


def test_a_second_tumour_is_kept_if_it_is_large_enough():
    images, _ = patient()
    prepared = prepare(images, (1.0, 1.0, 1.0), 1.0)
    seen = []
    for parts in (1.0, 0.1, 0.0001):
        answer = Segmenter(networks(parts=parts), "fast").segment(prepared)
        second = bool(answer.labels[8:10, 21:23, 17:19].any())
        seen.append((second, answer.parts))
    # 8 voxels beside a ball of hundreds
    assert seen == [(False, 1), (False, 1), (True, 2)]


def test_shares_of_parts_are_compared_against_the_truth():
    images, labels = patient()
    prepared = prepare(images, (1.0, 1.0, 1.0), 1.0)
    second = labels.copy()
    second[8:10, 21:23, 17:19] = 2
    kept = {}
    for name, truth in (("spot", labels), ("tumour", second)):
        shares = (1.0, 0.1, 0.0001)
        found = compare_shares(
            networks(), [prepared], [(truth, 0.001)], "fast", 0.0, shares=shares
        )
        assert found["n"] == 1
        assert found["several"] == {"1.0": 0, "0.1": 0, "0.0001": 1}
        kept[name] = {share: row["WT"] for share, row in found["dice"].items()}
        assert kept[name]["1.0"] == kept[name]["0.1"]  # 8 voxels of thousands
        labels_now = Segmenter(networks(parts=0.0001), "fast").segment(prepared).labels
        overlap = 2 * ((labels_now > 0) & (truth > 0)).sum()
        total = (labels_now > 0).sum() + (truth > 0).sum()
        assert kept[name]["0.0001"] == pytest.approx(overlap / total)
    assert kept["spot"]["0.0001"] < kept["spot"]["1.0"]
    assert kept["tumour"]["0.0001"] > kept["tumour"]["1.0"]


def test_a_few_voxels_are_no_brain():
    image = torch.zeros(5, 3, 8, 5)
    with pytest.raises(InputError, match=r"only 3 × 8 × 5 voxels.*size of the voxels"):
        find(ready(Bright(1.0)), image)


def test_step_1_can_be_coarser():
    images, labels = patient()
    image = prepare(images, (1.0, 1.0, 1.0), 1.0).image()
    mask = find(ready(Bright(1.0)), image, factor=2)
    assert mask.shape == image.shape[1:]
    assert mask.any()
    for axis in range(3):  # blocks of two voxels
        size = mask.shape[axis] // 2 * 2
        even, odd = (mask.take(range(k, size, 2), axis) for k in (0, 1))
        assert np.array_equal(even, odd)
    assert 0.6 < mask.sum() / (labels > 0).sum() < 1.6


def test_without_a_find_the_whole_brain_is_searched():
    images, labels = patient()
    prepared = prepare(images, (1.0, 1.0, 1.0), 1.0)
    answer = Segmenter(networks(find=Bright(99.0)), "fast").segment(prepared)
    found = answer.labels
    assert answer.parts == 0
    assert (found == labels).mean() > 0.99
    assert found[9, 22, 18]  # now the bright spot counts as well
    assert not found[images.max(0) == 0].any()


def test_one_pass_uses_its_own_weights(monkeypatch):
    from medimg_utils.brain import inference

    images, labels = patient()
    prepared = prepare(images, (1.0, 1.0, 1.0), 1.0)
    monkeypatch.setattr(inference, "fuse", lambda network: network)
    own = ByChannel(1, FixedNorm)
    segmenter = Segmenter(networks(one_pass=own, segment=Middle()), "one-pass")
    assert (segmenter.segment(prepared).labels == labels).mean() > 0.99


def test_an_unknown_mode_is_refused():
    with pytest.raises(InputError, match="reference, fast, one-pass"):
        Segmenter(networks(), "best")
    assert MODES[0] == "reference"


def test_probabilities_sum_to_one():
    images, _ = patient()
    prepared = prepare(images, (1.0, 1.0, 1.0), 1.0)
    segmenter = Segmenter(networks(), "fast")
    probability, allowed, _ = segmenter.probabilities(prepared.image())
    assert probability.shape == (CLASSES, *allowed.shape)
    assert torch.allclose(probability.sum(0), torch.ones(allowed.shape), atol=1e-5)
