"""Model cards and data cards, written from the stored results.

A card says what a network is, what it is for, on whom it was measured and how well, by
group, and where it fails (Mitchell et al. 2019); a data card says the same of the exams
(Gebru et al. 2021). What a person must decide is written here once; every number comes
from the results, so that a card cannot lag behind its network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from medimg_utils import metrics, results
from medimg_utils.errors import InputError


@dataclass(frozen=True)
class Words:
    """What no result can say of a network; one sentence or two each."""

    title: str
    network: str
    trained_on: str
    made_for: str
    not_made_for: str
    limits: str
    made_from: str
    shows: str
    lacks: str
    command: str


WORDS = {
    "pneumothorax": Words(
        title="Pneumothorax in chest radiographs",
        network="A {term}`U-Net` for one grey-value channel, built by "
        "`medimg_utils.pneumothorax.models.UNet`; the mean of the highest logits is the "
        "score of the film.",
        trained_on="Simulated radiographs. No real radiograph was used.",
        made_for="Teaching: looking at probability maps, choosing a threshold, finding "
        "failures.",
        not_made_for="Any decision about a patient. It was never tested in a clinic, and "
        "simulated exams are simpler than real ones.",
        limits="All exams come from a handful of scans, so habitus, age and disease vary "
        "less than in a hospital. The scans were taken with the arms raised, which "
        "changes the shoulder girdle. Scores on simulated exams say little about scores "
        "on real ones.",
        made_from="Chest CTs of the anatomy listed under [](../data.md), deformed, with a "
        "collapsed lung where a finding is wanted, sent through the physics of X-rays.",
        shows="Films of standing and lying patients in the layout of SIIM-ACR, with drains, "
        "lines, skin folds, effusions and opacities, and the true mask of every "
        "pneumothorax.",
        lacks="Children, operated chests, most diseases of the lung, other makers' "
        "processing, and every accident that nobody thought of.",
        command="python -m medimg_utils predict pneumothorax --run lab FILE --out DIR",
    ),
    "knee": Words(
        title="Injuries in knee MRI",
        network="One MRNet for each of three series, with SqueezeNet's features and an "
        "output for each of three diagnoses, built by `medimg_utils.knee.models.MRNet`; "
        "the standard histograms of the series; the regressions that join the three.",
        trained_on="Simulated exams, starting from ImageNet weights. No real exam was "
        "used; the texture of marrow and muscle comes from a real scan.",
        made_for="Teaching: combining series, reading activation maps and measuring them, "
        "finding failures.",
        not_made_for="Any decision about a patient. It was never tested in a clinic, and "
        "simulated exams are simpler than real ones.",
        limits="Two anatomies stand behind all exams of the training, one behind the test "
        "on an unseen anatomy. Not every network has learned its task; the chapter on "
        "MRNet shows which. An activation map has coarse cells and shows what speaks for "
        "an answer, not whether it is right.",
        made_from="Label maps of three knees, listed under [](../data.md), reshaped, with "
        "tears and other findings drawn in, rendered by the signal equations of MR.",
        shows="Exams of three series in the layout of MRNet, lean to heavy, left and right, "
        "at 1.5 and 3 tesla, with tears of several kinds and grades.",
        lacks="Children, implants, operated knees, fractures, and signal of coils and "
        "scanners beyond those that were modelled.",
        command="python -m medimg_utils predict knee --run lab --data MRNet-v1.0 "
        "--split valid --out DIR",
    ),
    "brain": Words(
        title="Brain tumours in MRI, and survival",
        network="A padded 3-D U-Net that finds the tumour at 4 mm, an unpadded one that "
        "labels it at 2 mm, and a copy of the second whose normalisation is fixed, so "
        "that it takes the whole box in one pass; built by `medimg_utils.brain.models`; "
        "the survival models beside them.",
        trained_on="Simulated patients at 2 mm. No real brain with a tumour was used.",
        made_for="Teaching: looking at labels in three planes, comparing ways of "
        "inference, seeing what survival models can and cannot say.",
        not_made_for="Any decision about a patient, and least of all a statement about how "
        "long somebody will live. The networks were never tested in a clinic.",
        limits="One template, deformed, stands behind all brains, so sulci and ventricles "
        "vary less than in people. The voxels of the networks are 2 mm wide: thin "
        "enhancing rims are blurred, and their Dice is the lowest.",
        made_from="The brain template listed under [](../data.md), deformed, with grown "
        "tumours, rendered by the signal equations of MR.",
        shows="Four MR images of each patient in the layout of BraTS, tumours of high and "
        "low grade, and days of survival drawn from a known law.",
        lacks="Tumours after surgery, cavities, bleeding, other diseases than glioma, and "
        "any cause of death but the simulated one.",
        command="python -m medimg_utils predict brain --run lab CASE_FOLDER --out DIR",
    ),
}

#: Names of groups as readers know them.
GROUPS = {
    "view": "projection", "drain": "chest drain", "anatomy": "anatomy", "sex": "sex",
    "age": "age", "habitus": "habitus", "field": "field strength (T)", "grade": "grade",
    "field_t": "field strength (T)", "side": "side", "kind": "kind",
}  # fmt: skip


def _words(name: str) -> Words:
    if name not in WORDS:
        raise InputError(f"there is no card {name!r}; there are {', '.join(WORDS)}.")
    return WORDS[name]


def _interval(value: float, low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return f"{value:.2f}"
    return f"{value:.2f} ({low:.2f} to {high:.2f})"


def _share(values: list[bool]) -> str:
    return _interval(*metrics.proportion(sum(values), len(values)))


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _pneumothorax(test: Mapping[str, Any]) -> dict[str, str]:
    area, overlap, point = test["auc"], test["dice"], test["operating_point"]
    ill = [c["score"] >= point["threshold"] for c in test["cases"] if c["label"]]
    well = [c["score"] < point["threshold"] for c in test["cases"] if not c["label"]]
    return {
        "AUC": _interval(area["value"], *area["bootstrap"]),
        "Dice of positives": _interval(*(overlap[k] for k in ("value", "low", "high"))),
        "sensitivity at the threshold": _share(ill),
        "specificity at the threshold": _share(well),
        "calibration error": f"{test['calibration']['expected_calibration_error']:.2f}",
    }


def _knee(test: Mapping[str, Any]) -> dict[str, str]:
    told = {}
    way = test["combination"]
    for diagnosis, found in test["diagnoses"].items():
        area, point = found["combined"]["auc"], found["combined"]["operating_point"]
        told[f"AUC, {diagnosis}"] = _interval(area["value"], *area["bootstrap"])
        called = [
            (case["labels"][diagnosis],
             case["combined"][way][diagnosis] >= point["threshold"])
            for case in test["cases"]
        ]  # fmt: skip
        told[f"sensitivity, {diagnosis}"] = _share([c for ill, c in called if ill])
        told[f"specificity, {diagnosis}"] = _share([not c for i, c in called if not i])
    return told


def _brain(test: Mapping[str, Any]) -> dict[str, str]:
    told = {}
    for region, found in test["regions"].items():
        overlap, far = found["dice"], found["hausdorff95_mm"]
        told[f"Dice, {region}"] = _interval(overlap["mean"], *overlap["interval"])
        told[f"Hausdorff 95 % (mm), median, {region}"] = f"{far['median']:.1f}"
    run = test["survival"]["run"]
    told["survival class right"] = _share(
        [True] * round(run["accuracy"] * run["n"])
        + [False] * (run["n"] - round(run["accuracy"] * run["n"]))
    )
    return told


MEASURES = {"pneumothorax": _pneumothorax, "knee": _knee, "brain": _brain}


def measured(name: str, stored: Mapping[str, Any] | None = None) -> str:
    """Markdown table: every measure on every test, with its 95 % interval."""
    tests = (stored or results.load(f"{name}-lab"))["tests"]
    columns = {key: MEASURES[name](test) for key, test in tests.items()}
    names = list(dict.fromkeys(row for told in columns.values() for row in told))
    head = ["measure"] + [
        f"{key.replace('-', ' ')} (n = {_count(tests[key])})" for key in columns
    ]
    rows = [[row, *(told.get(row, "–") for told in columns.values())] for row in names]
    return _table(head, rows)


def _count(test: Mapping[str, Any]) -> int:
    n = test["n"]
    return n if isinstance(n, int) else next(iter(n.values()))


def by_group(name: str, stored: Mapping[str, Any] | None = None) -> str:
    """Markdown table: the first test by group, each group with its number of exams."""
    tests = (stored or results.load(f"{name}-lab"))["tests"]
    key = "unseen-patients" if "unseen-patients" in tests else next(iter(tests))
    rows = []
    for attribute, groups in tests[key]["subgroups"].items():
        if attribute not in GROUPS or (
            name == "knee" and attribute in ("kind", "grade")
        ):
            continue
        for group, found in groups.items():
            told = _group(name, found)
            if told is not None:
                rows.append([GROUPS[attribute], str(group), *told])
    return _table(["by", "group", "exams", "measured"], rows)


def _group(name: str, found: Mapping[str, Any]) -> list[str] | None:
    if name == "knee":
        first = next(iter(found.values()))
        exams = first["positives"] + first["negatives"]
        text = ", ".join(
            f"AUC {diagnosis} {_interval(*(one[k] for k in ('value', 'low', 'high')))}"
            for diagnosis, one in found.items()
            if one["value"] is not None
        )
        return [str(exams), text]
    if name == "brain":
        regions = [k for k in found if k != "n" and found[k] is not None]
        return [str(found["n"]), ", ".join(f"Dice {k} {found[k]:.2f}" for k in regions)]
    exams = f"{found['positives']} ill, {found['negatives']} well"
    told = [
        f"{label} {found[k]:.2f}"
        for label, k in (("AUC", "auc"), ("Dice", "dice"))
        if found.get(k) is not None
    ]
    return [exams, ", ".join(told)] if told else None


def model_card(name: str) -> str:
    """The card of a shipped network, in Markdown.

    Args:
        name: `pneumothorax`, `knee` or `brain`.

    >>> "### Intended use" in model_card("knee")
    True
    """
    words, stored = _words(name), results.load(f"{name}-lab")
    training = stored["training"]
    about, headline = training["about"], stored["headline"]
    parts = {
        "Model": f"{words.network} Run size `{about['size']}`, seed {about['seed']}, "
        f"commit `{about['commit']}`, PyTorch {about['versions']['torch']}; "
        f"{training['minutes']:.0f} minutes on {headline['hardware']}.",
        "Intended use": f"{words.made_for}\n\n**Not for:** {words.not_made_for}\n\n"
        f"`{words.command}`",
        "Training data": f"{words.trained_on} {_composition(about)}",
        "Measured": "With 95 % intervals. All exams are simulated; how each threshold was "
        "chosen is told in the chapters. Intervals of shares are Wilson's, which takes "
        f"exams for independent.\n\n{measured(name, stored)}",
        "By group": "On unseen patients. Small groups say little, and many groups are "
        f"compared: one of twenty differs by chance.\n\n{by_group(name, stored)}",
        "Known limits": words.limits,
    }
    return "\n\n".join(f"### {head}\n\n{text}" for head, text in parts.items())


def _composition(about: Mapping[str, Any]) -> str:
    data, n = about["data"], about["n"]
    counts = [
        f"{value} {key}" for key, value in data.items()
        if isinstance(value, int) and not isinstance(value, bool)
    ]  # fmt: skip
    split = ", ".join(f"{value} for {key}" for key, value in n.items())
    kind = "Simulated" if data["simulated"] else "Real"
    return f"{kind}: {', '.join(counts)}; {split}."


def data_card(name: str) -> str:
    """The card of the exams of a use case, in Markdown.

    >>> "### What is not in it" in data_card("brain")
    True
    """
    words, stored = _words(name), results.load(f"{name}-lab")
    tests = {
        key: {**test["about"], "n": {"testing": _count(test)}}
        for key, test in stored["tests"].items()
    }
    lists = "\n".join(
        f"- *{key.replace('-', ' ')}*: {_composition(about)}"
        for key, about in {
            "training release": stored["training"]["about"],
            **tests,
        }.items()
    )
    parts = {
        "What it shows": words.shows,
        "How it was made": f"{words.made_from} The scans of a few people are behind all of "
        "them; no exam was taken of a patient. The same seed gives the same exams.",
        "How many": lists,
        "Who labelled it": "Nobody: the finding was put in, so the label is known. Real "
        "labels are opinions, and differ.",
        "What is not in it": words.lacks,
        "Terms": "Apache-2.0 as part of this project; the anatomy keeps the terms listed "
        "under [](../data.md). Exams may be passed on. They must not be called patients.",
    }
    return "\n\n".join(f"### {head}\n\n{text}" for head, text in parts.items())


def page(name: str) -> str:
    """A page of the book with both cards."""
    return (
        f"# {_words(name).title}: cards\n\n"
        "<!-- Written from the stored results by `make cards`; change "
        "medimg_utils/challenges/cards.py instead. -->\n\n"
        "```{warning}\nNot for clinical use. Every exam behind this page is simulated.\n"
        f"```\n\n## Model card\n\n{model_card(name)}\n\n## Data card\n\n{data_card(name)}\n"
    )
