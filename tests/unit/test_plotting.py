import base64
import io
import re

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from medimg_utils import plotting


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """What was displayed, instead of displaying it."""
    bundles: list[dict] = []
    monkeypatch.setattr(
        plotting, "_publish", lambda data, metadata=None: bundles.append(data)
    )
    return bundles


def luminance(colour: str) -> float:
    parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts
    ]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


def test_mask_colours_stand_out_on_black() -> None:
    for colour in (plotting.TRUTH, plotting.PREDICTION):
        assert (luminance(colour) + 0.05) / 0.05 > 7
    for colour in plotting.LABELS[:3]:  # of overlay_labels, where a pattern helps
        assert (luminance(colour) + 0.05) / 0.05 > 4.5


def test_classes_differ_in_pattern_and_absent_ones_stay_in_the_legend() -> None:
    axes = Figure().subplots()
    labels = np.kron([[1, 2], [0, 4]], np.ones((4, 4)))
    names = {1: "core", 3: "nowhere", 2: "oedema"}
    handles = plotting.overlay_labels(axes, labels, names)
    assert [handle.get_label() for handle in handles] == list(names.values())
    assert len({handle.get_hatch() for handle in handles}) == 3
    # an area and an outline for each of the two that are there; 4 has no name
    assert len(axes.collections) == 4
    with pytest.raises(ValueError, match="at most 3"):
        plotting.overlay_labels(axes, labels, dict.fromkeys(range(4), "x"))


def test_figure_carries_alt_text_and_caption(shown: list[dict]) -> None:
    figure = Figure()
    figure.subplots().plot([0, 1])
    plotting.show_figure(figure, alt='A "line" <up>', caption="It rises & rises.")
    page = shown[0]["text/html"]
    assert 'alt="A &quot;line&quot; &lt;up&gt;"' in page
    assert "<figcaption>It rises &amp; rises.</figcaption>" in page
    png = Image.open(io.BytesIO(base64.b64decode(shown[0]["image/png"])))
    small = base64.b64decode(re.search(r"image/webp;base64,([^\"]+)", page)[1])
    webp = Image.open(io.BytesIO(small))
    assert (png.format, webp.format) == ("PNG", "WEBP")
    difference = np.asarray(png.convert("RGB"), float) - np.asarray(webp, float)
    assert np.abs(difference).mean() < 2


@pytest.mark.parametrize("missing", ["alt", "caption"])
def test_figure_without_words_is_refused(missing: str) -> None:
    words = {"alt": "A line.", "caption": "It rises.", missing: " "}
    with pytest.raises(ValueError, match="both an alt text and a caption"):
        plotting.show_figure(Figure(), **words)


def test_pyplot_does_not_show_the_figure_again(shown: list[dict]) -> None:
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, _ = plt.subplots()
    plotting.show_figure(figure, alt="Empty axes.", caption="Nothing.")
    assert not plt.fignum_exists(figure.number)


def test_reliability_of_a_calibrated_score_lies_on_the_diagonal() -> None:
    rng = np.random.default_rng(0)
    probabilities = rng.uniform(size=20_000)
    labels = rng.uniform(size=20_000) < probabilities
    points = (
        plotting.reliability_plot(probabilities, labels).axes[0].lines[1].get_xydata()
    )
    assert len(points) == 10
    assert np.abs(points[:, 0] - points[:, 1]).max() < 0.05


def test_reliability_refuses_logits() -> None:
    with pytest.raises(ValueError, match="must lie in"):
        plotting.reliability_plot([-3.0, 2.0], [0, 1])


def test_gallery_lays_a_small_image_under_a_large_mask() -> None:
    masks = np.zeros((1, 40, 60), dtype=bool)
    masks[0, 10:20, 10:20] = True
    figure = plotting.gallery(np.zeros((1, 20, 30)), masks)
    axes = figure.axes[0]
    assert tuple(axes.images[0].get_extent()) == (-0.5, 59.5, 39.5, -0.5)
    assert len(axes.collections) == 2


def test_gallery_refuses_lists_of_other_lengths() -> None:
    with pytest.raises(ValueError, match="2 titles for 1 images"):
        plotting.gallery(np.zeros((1, 4, 4)), titles=["a", "b"])
    with pytest.raises(ValueError, match="no images"):
        plotting.gallery([])


def test_truth_and_prediction_differ_in_more_than_colour() -> None:
    mask = np.zeros((20, 20))
    mask[5:15, 5:15] = 1
    axes = Figure().subplots()
    plotting.overlay(axes, mask, mask)
    _, truth, hatched, prediction = axes.collections
    assert hatched.hatches == ["///"]
    assert truth.get_linestyle() != prediction.get_linestyle()


def test_table_has_headers_and_a_caption(shown: list[dict]) -> None:
    table = pd.DataFrame({"a<b": ["1 & 2"]}, index=pd.Index(["row"], name="what"))
    plotting.show_table(table, caption="One row.")
    page = shown[0]["text/html"]
    assert "<caption>One row.</caption>" in page
    assert '<th scope="col">a&lt;b</th>' in page
    assert '<th scope="row">row</th><td>1 &amp; 2</td>' in page


def test_versus_paper_says_which_data(shown: list[dict]) -> None:
    plotting.versus_paper(
        {"AUC": ("0.92", "0.95")},
        paper="Gooßen et al. 2019",
        ours="lab size",
        data="200 simulated radiographs",
    )
    page = shown[0]["text/html"]
    assert "Lab size was measured on 200 simulated radiographs." in page
    assert "<td>0.92</td><td>0.95</td>" in page


def test_needs_are_rounded(shown: list[dict]) -> None:
    plotting.show_needs(
        {
            "tiny": {
                "minutes": 1.234,
                "memory_gb": 2.0,
                "device": "CPU",
                "download_mb": 141.8,
            }
        }
    )
    page = shown[0]["text/html"]
    assert "<td>1.2</td><td>2</td><td>CPU</td><td>140</td>" in page


def test_importing_changes_nothing() -> None:
    import subprocess
    import sys

    code = (
        "import sys, warnings; before = list(warnings.filters);"
        "import medimg_utils.plotting;"
        "assert 'matplotlib.pyplot' not in sys.modules;"
        "assert 'IPython' not in sys.modules;"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
