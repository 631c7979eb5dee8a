import numpy as np
import pytest

from medimg_utils.viewers import ThresholdExplorer


def example(**options) -> ThresholdExplorer:
    maps = np.stack([np.linspace(0, 1, 400).reshape(20, 20) for _ in range(3)])
    masks = maps > 0.75
    masks[2] = False
    return ThresholdExplorer(maps, masks, maps, **options)


def test_statistics_by_hand() -> None:
    masks = np.zeros((2, 2, 2), dtype=bool)
    masks[0, 0] = True  # the upper row, two pixels
    maps = np.zeros((2, 2, 2))
    maps[0, 0, 0] = maps[0, 1, 0] = 0.8  # one right, one wrong
    scores = [0.9, 0.6, 0.4, 0.5]
    explorer = ThresholdExplorer(
        masks.astype(float), masks, maps, scores=scores, labels=[1, 0, 1, 0]
    )
    # Dice 2 * 1 / (2 + 2); one of two positives reaches 0.5, no negative stays below.
    assert explorer.statistics() == {
        "mean_dice": 0.5,
        "sensitivity": 0.5,
        "specificity": 0.0,
    }
    explorer.score_threshold = 0.55
    assert explorer.statistics()["specificity"] == 0.5


def test_a_small_region_is_dropped() -> None:
    explorer = example(threshold=0.75, min_area=0)
    area = int(explorer.predicted()[0].sum())
    explorer.min_area = area
    assert explorer.predicted()[0].sum() == area
    explorer.min_area = area + 1
    assert explorer.predicted()[0].sum() == 0
    assert explorer.statistics()["mean_dice"] == 0.0


def test_scores_and_labels_come_from_the_maps_if_missing() -> None:
    explorer = example()
    assert explorer.labels == [1, 1, 0]
    assert explorer.scores == [1.0, 1.0, 1.0]


def test_statistics_without_positives_are_not_numbers() -> None:
    maps = np.zeros((2, 4, 4))
    statistics = ThresholdExplorer(maps, maps, maps).statistics()
    assert np.isnan(statistics["mean_dice"])
    assert np.isnan(statistics["sensitivity"])
    assert statistics["specificity"] == 1.0


def test_large_images_are_shrunk_but_not_what_is_measured() -> None:
    maps = np.random.default_rng(0).uniform(size=(2, 300, 200))
    masks = maps > 0.5
    explorer = ThresholdExplorer(maps, masks, maps, max_side=100)
    assert (explorer.image_rows, explorer.image_columns) == (100, 67)
    predicted = np.rint(255 * maps) / 255 >= 0.5
    dice = (
        2
        * (masks & predicted).sum((1, 2))
        / (masks.sum((1, 2)) + predicted.sum((1, 2)))
    )
    assert explorer.statistics()["mean_dice"] == pytest.approx(dice.mean())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scores": [0.5], "labels": [1, 0]}, "equally long"),
        ({"scores": [0.5, 1.5], "labels": [1, 0]}, "outside 0 to 1"),
        ({"scores": [0.5, float("nan")], "labels": [1, 0]}, "NaN"),
        ({"scores": [0.5, 0.5], "labels": [1, 2]}, "other than 0 and 1"),
        ({"titles": ["one"]}, "1 titles for 3 images"),
        ({"score_threshold": 7}, "score_threshold is 7"),
    ],
)
def test_wrong_input_is_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        example(**options)


def test_masks_of_another_shape_are_refused() -> None:
    maps = np.zeros((2, 4, 4))
    with pytest.raises(ValueError, match=r"masks has shape \(2, 4, 5\)"):
        ThresholdExplorer(maps, np.zeros((2, 4, 5)), maps)


def test_the_bundle_holds_a_still_picture() -> None:
    data, metadata = example(title="Wedges")._repr_mimebundle_()
    assert len(data["image/png"]) > 1000
    assert metadata["image/png"]["alt"] == "Wedges: 3 images with their masks."
