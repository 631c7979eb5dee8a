"""Figures and tables that look alike everywhere and can be read by everybody.

Colours are those of Okabe and Ito, which colour-blind readers can tell apart. The true
mask has a solid outline, the prediction is hatched with a dashed one. `show_figure`
puts a figure on the page together with its alt text and its caption.
"""

import base64
import html
import io
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
#: Of the classes of a label map, in the order of their values.
LABELS = ("#56B4E9", "#F0E442", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#0072B2")
TRUTH = "#E69F00"
PREDICTION = "#56B4E9"
HATCHES = ("xxx", "...", "///")  # of the classes, beside their colours


def label_colours(count: int) -> list[str]:
    """Colours for the classes of a label map, in the order of their values."""
    return [LABELS[k % len(LABELS)] for k in range(count)]


def label_legend(axes: Axes, names: Sequence[str], colours: Sequence[str]) -> None:
    """Say in a corner of a dark picture which colour is which class.

    >>> axes = Figure().subplots()
    >>> label_legend(axes, ["oedema"], ["#E69F00"])
    >>> axes.get_legend().get_texts()[0].get_text()
    'oedema'
    """
    patches = [Patch(color=c, label=n) for n, c in zip(names, colours, strict=True)]
    axes.legend(
        handles=patches,
        loc="lower left",
        fontsize="small",
        labelcolor="white",
        facecolor="black",
    )


def show_image(
    axes: Axes,
    image: npt.ArrayLike,
    *,
    window: tuple[float, float] | None = None,
    title: str = "",
    extent: tuple[float, float, float, float] | None = None,
) -> None:
    """Draw ``image`` (H, W) in grey, without axes.

    Args:
        axes: where to draw.
        image: intensities (H, W).
        window: centre and width of the intensities that span black to white.
        title: short heading.
        extent: left, right, bottom, top in pixels, to lay it under a larger mask.

    >>> axes = Figure().subplots()
    >>> show_image(axes, np.eye(4), window=(0.5, 1.0), title="Identity")
    >>> axes.get_title()
    'Identity'
    """
    low, high = (None, None)
    if window is not None:
        centre, width = window
        low, high = centre - width / 2, centre + width / 2
    axes.imshow(image, cmap="gray", vmin=low, vmax=high, extent=extent)
    axes.set_axis_off()
    if title:
        axes.set_title(title, fontsize="medium")


def overlay(
    axes: Axes,
    mask: npt.ArrayLike | None = None,
    predicted: npt.ArrayLike | None = None,
    *,
    probability: npt.ArrayLike | None = None,
) -> None:
    """Draw masks (H, W) over an image: truth solid, prediction hatched and dashed.

    ``probability`` (H, W) is drawn as a transparent colour map below the masks.
    """
    if probability is not None:
        p = np.ma.masked_less(np.asarray(probability, dtype=float), 0.03)
        axes.imshow(p, cmap="cividis", vmin=0, vmax=1, alpha=0.6)
    if mask is not None and np.any(mask):
        truth = np.asarray(mask, dtype=float)
        axes.contourf(truth, levels=[0.5, 1.5], colors=[TRUTH], alpha=0.3)
        axes.contour(truth, levels=[0.5], colors=[TRUTH], linewidths=1.2)
    if predicted is not None and np.any(predicted):
        guess = np.asarray(predicted, dtype=float)
        filled = axes.contourf(guess, levels=[0.5, 1.5], colors="none", hatches=["///"])
        filled.set_edgecolor(PREDICTION)
        filled.set_linewidth(0)
        axes.contour(
            guess,
            levels=[0.5],
            colors=[PREDICTION],
            linewidths=1.2,
            linestyles="dashed",
        )


def overlay_labels(
    axes: Axes,
    labels: npt.ArrayLike,
    names: Mapping[int, str],
    *,
    dashed: bool = False,
) -> list[Patch]:
    """Draw a map of up to three classes over an image, each with colour and pattern.

    Args:
        axes: where to draw.
        labels: (H, W) class of each pixel; values without a name are left out.
        names: value to name, in the order of the legend.
        dashed: outlines as of a prediction.

    Returns:
        One handle a class for a legend, whether or not the class is in the picture.

    >>> handles = overlay_labels(Figure().subplots(), np.eye(4), {1: "diagonal"})
    >>> handles[0].get_label()
    'diagonal'
    """
    if len(names) > len(HATCHES):
        raise ValueError(f"{len(names)} classes, but at most {len(HATCHES)}")
    values, handles = np.asarray(labels), []
    for (value, name), colour, hatch in zip(
        names.items(), LABELS, HATCHES, strict=False
    ):
        part = (values == value).astype(float)
        if part.any():
            filled = axes.contourf(
                part, levels=[0.5, 1.5], colors="none", hatches=[hatch]
            )
            filled.set_edgecolor(colour)
            filled.set_linewidth(0)
            line = "dashed" if dashed else "solid"
            axes.contour(
                part, levels=[0.5], colors=[colour], linewidths=1.2, linestyles=line
            )
        handles.append(
            Patch(facecolor="none", edgecolor=colour, hatch=hatch, label=name)
        )
    return handles


def gallery(
    images: Sequence[npt.NDArray[Any]] | npt.NDArray[Any],
    masks: Sequence[npt.NDArray[Any]] | npt.NDArray[Any] | None = None,
    titles: Sequence[str] | None = None,
    *,
    predicted: Sequence[npt.NDArray[Any]] | npt.NDArray[Any] | None = None,
    columns: int = 4,
    size: float = 2.4,
) -> Figure:
    """Draw ``images`` in a grid, each with its mask, prediction and title.

    Masks may have more pixels than their image; they are laid over the same area.

    >>> figure = gallery(np.zeros((5, 8, 8)), titles=list("abcde"))
    >>> [axes.get_title() for axes in figure.axes]
    ['a', 'b', 'c', 'd', 'e']
    """
    if len(images) == 0:
        raise ValueError("there are no images to show")
    for name, values in (
        ("masks", masks),
        ("titles", titles),
        ("predicted", predicted),
    ):
        if values is not None and len(values) != len(images):
            raise ValueError(f"{len(values)} {name} for {len(images)} images")
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    figure = Figure(figsize=(size * columns, (size + 0.35) * rows), layout="tight")
    for k, image in enumerate(images):
        axes = figure.add_subplot(rows, columns, k + 1)
        mask = None if masks is None else masks[k]
        guess = None if predicted is None else predicted[k]
        above = next((m for m in (mask, guess) if m is not None), image)
        height, width = np.shape(above)
        extent = (-0.5, width - 0.5, height - 0.5, -0.5)
        show_image(axes, image, title=titles[k] if titles else "", extent=extent)
        overlay(axes, mask, guess)
    return figure


def reliability_plot(
    probabilities: npt.ArrayLike, labels: npt.ArrayLike, *, bins: int = 10
) -> Figure:
    """Draw observed rates against predicted probabilities, in bins of equal width.

    The numbers of exams in the bins are written beside the points.

    >>> figure = reliability_plot([0.1, 0.1, 0.9, 0.9], [0, 0, 1, 1], bins=2)
    >>> [text.get_text() for text in figure.axes[0].texts]
    ['2', '2']
    """
    from medimg_utils import metrics

    predicted, observed, count = metrics.calibration_bins(labels, probabilities, bins)
    used = np.flatnonzero(count)
    figure = Figure(figsize=(4.6, 4.4), layout="tight")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.45", linestyle="dotted", label="calibrated")
    points = predicted[used], observed[used]
    axes.plot(*points, "o-", color=PALETTE[0], label="observed")
    for x, y, number in zip(*points, count[used].tolist(), strict=True):
        axes.annotate(str(number), (x, y), (6, -10), textcoords="offset points")
    axes.set(xlabel="predicted probability", ylabel="share of positive exams")
    axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), aspect="equal")
    axes.legend(loc="upper left", fontsize="small")
    return figure


def show_figure(figure: Figure, *, alt: str, caption: str, dpi: int = 110) -> None:
    """Show ``figure`` with its alt text and caption, in a notebook or on the site.

    Args:
        figure: a Matplotlib figure, with pyplot or without.
        alt: what the picture shows, for those who cannot see it.
        caption: what the reader should see in it: the finding.
        dpi: dots per inch of the PNG.
    """
    if not alt.strip() or not caption.strip():
        raise ValueError("a figure needs both an alt text and a caption")
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=dpi, bbox_inches="tight", facecolor="white")
    data = base64.b64encode(png.getvalue()).decode("ascii")
    # Films are grainy: as WebP a page of them is a fifth of its size as PNG.
    webp = io.BytesIO()
    Image.open(png).convert("RGB").save(webp, "WEBP", quality=90, method=6)
    small = base64.b64encode(webp.getvalue()).decode("ascii")
    # "dark-light" keeps the theme from changing the contrast in dark mode.
    page = (
        '<figure class="medimg-figure">'
        f'<img class="dark-light" src="data:image/webp;base64,{small}" '
        f'alt="{html.escape(alt)}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )
    _publish(
        {"text/html": page, "image/png": data, "text/plain": f"{caption} [{alt}]"},
        {"image/png": {"alt": alt}},
    )
    if "matplotlib.pyplot" in sys.modules:
        # Otherwise a figure made with pyplot is shown again when the cell ends.
        sys.modules["matplotlib.pyplot"].close(figure)


def show_table(table: pd.DataFrame, *, caption: str) -> None:
    """Show ``table``; its index holds the headers of the rows.

    Cells are shown as they are: format numbers before.
    """
    if not caption.strip():
        raise ValueError("a table needs a caption")
    corner = html.escape(str(table.index.name or ""))
    head = "".join(
        f'<th scope="col">{html.escape(str(name))}</th>' for name in table.columns
    )
    body = ""
    for name, cells in zip(table.index, table.to_numpy(), strict=True):
        row = "".join(f"<td>{html.escape(str(cell))}</td>" for cell in cells)
        body += f'<tr><th scope="row">{html.escape(str(name))}</th>{row}</tr>'
    first = f'<th scope="col">{corner}</th>' if corner else "<td></td>"
    page = (
        f'<table class="medimg-table"><caption>{html.escape(caption)}</caption>'
        f"<thead><tr>{first}{head}</tr></thead><tbody>{body}</tbody></table>"
    )
    _publish({"text/html": page, "text/plain": f"{caption}\n{table.to_string()}"})


def spread(values: npt.ArrayLike, form: str = ".0f") -> str:
    """Mean of repetitions, and where the middle 95 % of them lie, for a table or caption.

    Args:
        values: one number a repetition; NaN is left out.
        form: of each number, as in an f-string.

    >>> spread([1, 2, 3], ".2f")
    '2.00 (1.05 to 2.95)'
    """
    numbers = np.asarray(values, dtype=np.float64)
    low, high = np.nanquantile(numbers, [0.025, 0.975])
    return f"{np.nanmean(numbers):{form}} ({low:{form}} to {high:{form}})"


def versus_paper(
    rows: Mapping[str, tuple[str, str]], *, paper: str, ours: str, data: str
) -> None:
    """Show the paper's numbers beside ours, and say which data ours come from.

    Args:
        rows: for each measure the paper's value and ours, as text.
        paper: heading of the paper's column, such as ``"Gooßen et al. 2019"``.
        ours: heading of our column, such as ``"lab size"``.
        data: what our numbers were measured on.
    """
    table = pd.DataFrame(list(rows.values()), index=list(rows), columns=[paper, ours])
    table.index.name = "measure"
    note = f"{ours} was measured on {data}. The two columns come from different data."
    show_table(table, caption=f"Versus the paper. {note[0].upper()}{note[1:]}")


def show_needs(sizes: Mapping[str, Mapping[str, Any]]) -> None:
    """Show what each run size of a chapter needs.

    Args:
        sizes: for each run size a mapping with ``minutes``, ``memory_gb``, ``device``
            and ``download_mb``, taken from the stored results.
    """
    table = pd.DataFrame(
        {
            "minutes": [_short(needs["minutes"]) for needs in sizes.values()],
            "memory (GB)": [_short(needs["memory_gb"]) for needs in sizes.values()],
            "device": [needs["device"] for needs in sizes.values()],
            "download (MB)": [_short(needs["download_mb"]) for needs in sizes.values()],
        },
        index=pd.Index(list(sizes), name="run size"),
    )
    show_table(table, caption="What this chapter needs, as measured.")


def _short(number: float) -> str:
    """Write ``number`` with two significant digits."""
    return f"{float(f'{number:.2g}'):g}"


def _publish(data: dict[str, str], metadata: dict[str, Any] | None = None) -> None:
    from IPython.display import display

    display(data, raw=True, metadata=metadata or {})
