"""A gallery of predictions whose thresholds the reader chooses."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import traitlets
from matplotlib.figure import Figure

from medimg_utils import plotting
from medimg_utils.viewers import base


class ThresholdExplorer(base.ImageViewer):
    """Let the reader choose thresholds and see masks, Dice and error rates follow.

    Two decisions are shown. For *pixels*, those at or above ``threshold`` form the
    predicted mask of an image, unless they are fewer than ``min_area``. For *exams*,
    those with a score at or above ``score_threshold`` are called positive; the list of
    scores may be longer than the gallery. All of it is computed in the browser.

    Args:
        images: intensities (N, H, W) in any unit.
        masks: true masks (N, H, W) of zeros and ones; empty for negative exams.
        probabilities: (N, H, W) between 0 and 1. They are kept in 255 steps.
        scores: one probability for each exam; the largest of each map if missing.
        labels: 0 or 1 for each score; whether there is a true mask if missing.
        titles: one for each image.
        threshold, min_area, score_threshold: where the reader starts.
        opacity: of the overlay, between 0 and 1.
        title: heading of the viewer.
        alt: description of the picture for those who cannot see it.
        max_side: background images are shrunk to this many pixels, to keep pages
            small. Masks and probabilities are not: what is measured stays exact.

    Raises:
        ValueError: shapes or lengths that differ, pixels that are NaN, masks or labels
            that are not 0 or 1, probabilities outside 0 to 1.

    >>> import numpy as np
    >>> maps = np.linspace(0, 1, 128).reshape(2, 8, 8)
    >>> explorer = ThresholdExplorer(maps, maps > 0.75, maps, threshold=0.75)
    >>> explorer.statistics()["mean_dice"]
    1.0
    """

    _esm = base.javascript("threshold_explorer.js")

    image_rows = traitlets.Int().tag(sync=True)
    image_columns = traitlets.Int().tag(sync=True)
    image_data = traitlets.Bytes().tag(sync=True)
    mask_data = traitlets.Bytes().tag(sync=True)
    probability_data = traitlets.Bytes().tag(sync=True)
    titles = traitlets.List(traitlets.Unicode()).tag(sync=True)
    scores = traitlets.List(traitlets.Float()).tag(sync=True)
    labels = traitlets.List(traitlets.Int()).tag(sync=True)
    threshold = traitlets.Float().tag(sync=True)
    min_area = traitlets.Int().tag(sync=True)
    max_area = traitlets.Int().tag(sync=True)
    score_threshold = traitlets.Float().tag(sync=True)
    opacity = traitlets.Float().tag(sync=True)

    def __init__(
        self,
        images: npt.ArrayLike,
        masks: npt.ArrayLike,
        probabilities: npt.ArrayLike,
        *,
        scores: Sequence[float] | npt.NDArray[np.floating] | None = None,
        labels: Sequence[int] | npt.NDArray[np.integer] | None = None,
        titles: Sequence[str] | None = None,
        threshold: float = 0.5,
        min_area: int = 0,
        score_threshold: float = 0.5,
        opacity: float = 0.6,
        title: str = "",
        alt: str = "",
        max_side: int = 256,
    ) -> None:
        pixels = base.check_image("images", images, 3)
        self._masks = base.check_mask("masks", masks, pixels.shape)
        self._probabilities = base.check_probability(
            "probabilities", probabilities, pixels.shape
        )
        if scores is None:
            scores = (self._probabilities.max(axis=(1, 2)) / 255).tolist()
        if labels is None:
            labels = self._masks.any(axis=(1, 2)).astype(int).tolist()
        if titles is None:
            titles = [f"Image {k + 1}" for k in range(len(pixels))]
        if len(titles) != len(pixels):
            raise ValueError(f"{len(titles)} titles for {len(pixels)} images")
        shown = [
            base.reduce_bytes(base.to_bytes(p, p.min(), p.max()), max_side)
            for p in pixels
        ]
        self._shown = np.stack(shown)
        numbers, classes = base.check_scores(scores, labels)
        count, rows, columns = pixels.shape
        super().__init__(
            rows=rows,
            columns=columns,
            image_rows=self._shown.shape[1],
            image_columns=self._shown.shape[2],
            image_data=base.pack(self._shown),
            mask_data=base.pack(self._masks),
            probability_data=base.pack(self._probabilities),
            titles=list(titles),
            scores=numbers,
            labels=classes,
            threshold=base.check_fraction("threshold", threshold),
            min_area=int(min_area),
            max_area=max(int(min_area), rows * columns // 100, 1),
            score_threshold=base.check_fraction("score_threshold", score_threshold),
            opacity=base.check_fraction("opacity", opacity),
            **base.heading(
                title, alt, "Gallery", f": {count} images with their masks."
            ),
        )

    def predicted(self) -> npt.NDArray[np.bool_]:
        """Predicted masks (N, H, W) at the present thresholds."""
        masks = self._probabilities / 255 >= self.threshold
        large = masks.sum(axis=(1, 2)) >= self.min_area
        return masks & large[:, None, None]

    def statistics(self) -> dict[str, float]:
        """What the viewer shows at the present thresholds; NaN where undefined."""
        predicted = self.predicted()
        both = (self._masks & predicted).sum(axis=(1, 2))
        total = self._masks.sum(axis=(1, 2)) + predicted.sum(axis=(1, 2))
        positive = self._masks.any(axis=(1, 2))
        called = np.array(self.scores) >= self.score_threshold
        labels = np.array(self.labels, dtype=bool)
        return {
            "mean_dice": _mean(2 * both[positive] / total[positive]),
            "sensitivity": _mean(called[labels]),
            "specificity": _mean(~called[~labels]),
        }

    def still(self) -> Figure:
        """Draw the viewer's present state as a figure."""
        return plotting.gallery(
            self._shown,
            masks=self._masks,
            predicted=self.predicted(),
            titles=self.titles,
        )


def _mean(values: npt.NDArray) -> float:
    return float(values.mean()) if len(values) else float("nan")
