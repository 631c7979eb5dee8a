"""Model cards and data cards, written from the stored results.

A card says what a network is, what it is for, on whom it was measured and how well, by
group, and where it fails (Mitchell et al. 2019); a data card says the same of the exams
(Gebru et al. 2021). What a person must decide is written here once; every number comes
from the results, so that a card cannot lag behind its network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from string import Template
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medimg_utils import metrics, results
from medimg_utils.challenges.fairness import FEWEST, age_group
from medimg_utils.errors import InputError


def _torn_more_often(stored: Mapping[str, Any]) -> str:
    """A sentence on tears in tests and training, where the tests have more of them."""
    data = stored["training"]["about"]["data"]
    learned = data["acl"] / data["exams"]
    cases = [case for test in stored["tests"].values() for case in test["cases"]]
    met = sum(case["labels"]["acl"] for case in cases) / len(cases)
    if not met > learned:
        return ""
    return (
        f"Torn ACLs are more frequent in the tests ({met:.0%}) than in training "
        f"({learned:.0%}): probabilities fitted at the one are too low at the other.\n\n"
    )


def _nothing_more(stored: Mapping[str, Any]) -> str:
    return ""


@dataclass(frozen=True)
class Words:
    """What no result can say of a network; one sentence or two each.

    `$voxel` and the like are put in from the settings of the stored run. `frequencies`
    says what to know of those in the stored result before its measures are read.
    """

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
    intervals: str = "over patients"
    too_few: str = f"{FEWEST} ill (or {FEWEST} well, where an AUC compares them)"
    frequencies: Callable[[Mapping[str, Any]], str] = _nothing_more


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
        network="One MRNet for each of three series, with $features's features and an "
        "output for each of three diagnoses, built by `medimg_utils.knee.models.MRNet`; "
        "the standard histograms of the series; the regressions that join the three. "
        "$views views of an exam are asked, and their mean probability counts.",
        trained_on="Simulated exams, starting from $start. No real exam was "
        "used; the texture of marrow and muscle comes from a real scan.",
        made_for="Teaching: combining series, reading activation maps and measuring them, "
        "finding failures.",
        not_made_for="Any decision about a patient. It was never tested in a clinic, and "
        "simulated exams are simpler than real ones.",
        limits="Two anatomies stand behind all exams of the training, one behind the test "
        "on an unseen anatomy. Whether each network has learned its task, the chapter on "
        "MRNet shows. ${rehearsed}"
        "All views but one were added after the answer of one had missed the aim for the "
        "meniscus of the unseen anatomy: that test is no longer untouched. "
        "An activation map has coarse cells and shows what speaks "
        "for an answer, not whether it is right.",
        made_from="Label maps of three knees, listed under [](../data.md), reshaped, with "
        "tears and other findings drawn in, rendered by the signal equations of MR.",
        shows="Exams of three series in the layout of MRNet, lean to heavy, left and right, "
        "at 1.5 and 3 tesla, with tears of several kinds and grades.",
        lacks="Children, implants, operated knees, fractures, and signal of coils and "
        "scanners beyond those that were modelled.",
        command="python -m medimg_utils predict knee --run lab --data MRNet-v1.0 "
        "--split valid --out DIR",
        intervals="over exams, each of which counts as a patient of its own: the layout "
        "of MRNet names no patients, and among the simulated exams each is one",
        frequencies=_torn_more_often,
    ),
    "brain": Words(
        title="Brain tumours in MRI, and survival",
        network="A padded 3-D U-Net that finds the tumour at $coarse mm, an unpadded one "
        "that labels it at $voxel mm, and a copy of the second whose normalisation is fixed, so "
        "that it takes the whole box in one pass; built by `medimg_utils.brain.models`; "
        "the survival models beside them.",
        trained_on="Simulated patients at $voxel mm. No real brain with a tumour was used.",
        made_for="Teaching: looking at labels in three planes, comparing ways of "
        "inference, seeing what survival models can and cannot say.",
        not_made_for="Any decision about a patient, and least of all a statement about how "
        "long somebody will live. The networks were never tested in a clinic.",
        limits="One template, deformed, stands behind all brains, so sulci and ventricles "
        "vary less than in people. The voxels of the networks are $voxel mm wide: thin "
        "enhancing rims are blurred.",
        made_from="The brain template listed under [](../data.md), deformed, with grown "
        "tumours, rendered by the signal equations of MR.",
        shows="Four MR images of each patient in the layout of BraTS, tumours of high and "
        "low grade, and days of survival drawn from a known law.",
        lacks="Tumours after surgery, cavities, bleeding, other diseases than glioma, and "
        "any cause of death but the simulated one.",
        command="python -m medimg_utils predict brain --run lab CASE_FOLDER --out DIR",
        too_few=f"{FEWEST} exams",
    ),
}


def _words(name: str) -> Words:
    if name not in WORDS:
        raise InputError(f"there is no card {name!r}; there are {', '.join(WORDS)}.")
    return WORDS[name]


def _facts(stored: Mapping[str, Any]) -> dict[str, str]:
    """Settings of the run, as the words above name them."""
    ours = {row["setting"]: row["ours"] for row in stored["settings"]}
    names = {"alexnet": "AlexNet", "squeezenet": "SqueezeNet"}
    start = "ImageNet weights" if ours.get("imagenet") else "random weights"
    if ours.get("rehearse_epochs"):
        start += "; the features first learned where findings lie"
    voxel = ours.get("voxel", 0)
    rehearsed = (
        "The convolutions were shown the outlines of lesions before the training, so "
        "it is partly taught that activation maps lie on lesions. "
        if ours.get("rehearse_epochs")
        else ""
    )
    return {
        "rehearsed": rehearsed,
        "voxel": f"{voxel:g}",
        "coarse": f"{voxel * ours.get('factor', 0):g}",
        "features": names.get(ours.get("backbone", ""), str(ours.get("backbone"))),
        "views": str(ours.get("views")),
        "start": start,
    }


def _told(found: Sequence[float], form: str = ".2f") -> str:
    value, low, high = found
    return f"{value:{form}} ({low:{form}} to {high:{form}})"


def _table(head: list[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


# ----------------------------------------------------------------- measures of one test

Case = Mapping[str, Any]


def _share(hits: Sequence[bool], patients: Sequence[str]) -> str:
    """A share of exams: over patients, or Wilson's where nobody or everybody is hit."""
    if 0 < sum(hits) < len(hits):
        return _told(metrics.mean_bootstrap(hits, patients))
    independent = len(set(patients))
    return _told(metrics.proportion(independent if any(hits) else 0, independent))


def _rates(
    labels: Sequence[int],
    scores: Sequence[float],
    patients: Sequence[str],
    threshold: float,
) -> dict[str, str]:
    """Sensitivity and specificity at a threshold, and the calibration error."""
    rows = list(zip(labels, scores, patients, strict=True))
    ill = [(score >= threshold, who) for label, score, who in rows if label]
    well = [(score < threshold, who) for label, score, who in rows if not label]
    return {
        "sensitivity": _share(*zip(*ill, strict=True)),
        "specificity": _share(*zip(*well, strict=True)),
        "calibration error": _told(
            metrics.calibration_bootstrap(labels, scores, patients)
        ),
    }


def _column(cases: Sequence[Case], name: str) -> list[Any]:
    return [case[name] for case in cases]


def _pneumothorax(test: Mapping[str, Any]) -> dict[str, str]:
    area, overlap, cases = test["auc"], test["dice"], test["cases"]
    return {
        "AUC": _told([area["value"], *area["bootstrap"]]),
        "Dice of positives": _told([overlap[k] for k in ("value", "low", "high")]),
        **_rates(
            _column(cases, "label"),
            _column(cases, "score"),
            _column(cases, "patient"),
            test["operating_point"]["threshold"],
        ),
    }


def _knee(test: Mapping[str, Any]) -> dict[str, str]:
    told = {}
    way, cases = test["combination"], test["cases"]
    for diagnosis, found in test["diagnoses"].items():
        area, point = found["combined"]["auc"], found["combined"]["operating_point"]
        rates = _rates(
            [case["labels"][diagnosis] for case in cases],
            [case["combined"][way][diagnosis] for case in cases],
            _column(cases, "exam_id"),  # each of another patient
            point["threshold"],
        )
        told[f"AUC, {diagnosis}"] = _told([area["value"], *area["bootstrap"]])
        told |= {f"{rate}, {diagnosis}": text for rate, text in rates.items()}
    return told


def _brain(test: Mapping[str, Any]) -> dict[str, str]:
    told = {}
    cases = test["cases"]
    for region, found in test["regions"].items():
        overlap = found["dice"]
        far = np.array([case[region]["hausdorff95_mm"] for case in cases])

        def median(drawn: NDArray[np.int64], far: NDArray[np.float64] = far) -> float:
            return float(np.median(far[drawn]))

        middle = metrics.bootstrap(median, _column(cases, "patient"))
        told[f"Dice, {region}"] = _told([overlap["mean"], *overlap["interval"]])
        told[f"Hausdorff 95 % (mm), median, {region}"] = _told(middle, ".1f")
    run = test["survival"]["run"]
    right = round(run["accuracy"] * run["n"])
    told[f"survival class right (n = {run['n']})"] = _told(
        metrics.proportion(right, run["n"])
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


# --------------------------------------------------------------------- groups of a test

Row = tuple[str, str, str, str]  # by, group, exams, measured


def _area(ill: Sequence[Case], well: Sequence[Case]) -> str:
    """AUC of cases with a score, or `too few`."""
    if min(len(ill), len(well)) < FEWEST:
        return "too few"
    both = [*ill, *well]
    columns = (_column(both, key) for key in ("label", "score", "patient"))
    return _told(metrics.auc_bootstrap(*columns))


def _mean(values: Sequence[float], patients: Sequence[str]) -> str:
    """Mean of one number an exam, or `too few`."""
    if len(values) < FEWEST:
        return "too few"
    return _told(metrics.mean_bootstrap(values, patients))


def _groups(
    cases: Sequence[Case], attributes: Mapping[str, Callable[[Case], str]]
) -> list[tuple[str, str, list[Case]]]:
    """The cases of each value of each attribute that cases tell of and differ in."""
    answer = []
    for name, of in attributes.items():
        try:
            values = [of(case) for case in cases]
        except KeyError:  # this run did not store it
            continue
        groups = sorted(set(values) - {""})
        if len(groups) > 1:
            answer += [
                (name, g, [c for c, v in zip(cases, values, strict=True) if v == g])
                for g in groups
            ]
    return answer


def _stored(name: str) -> Callable[[Case], str]:
    return lambda case: str(case[name])


def _pneumothorax_groups(test: Mapping[str, Any]) -> list[Row]:
    cases = test["cases"]
    every_well = [case for case in cases if not case["label"]]
    rows = []
    for name, group, members in _groups(cases, {
        "sex": _stored("sex"),
        "age": lambda case: age_group(case["age"]),
        "habitus": _stored("habitus"),
        "projection": _stored("view"),
        "chest drain": lambda case: "yes" if "drain" in case["devices"] else "no",
        "anatomy": _stored("anatomy"),
        "side": _stored("side"),
        "kind": _stored("kind"),
    }):  # fmt: skip
        ill = [case for case in members if case["label"]]
        # nobody without a pneumothorax has a side or a kind of it
        well = [case for case in members if not case["label"]] or every_well
        drawn = [case for case in ill if "dice" in case]
        overlap = _mean(_column(drawn, "dice"), _column(drawn, "patient"))
        told = f"AUC {_area(ill, well)}, Dice {overlap}"
        rows.append((name, group, f"{len(ill)} ill, {len(well)} well", told))
    return rows


def _knee_groups(test: Mapping[str, Any]) -> list[Row]:
    names = {"anatomy": "anatomy", "habitus": "habitus", "side": "side",
             "field": "field strength (T)"}  # fmt: skip
    rows = []

    def add(name: str, group: str, diagnosis: str, found: Mapping[str, Any]) -> None:
        ill, well = found["positives"], found["negatives"]
        area = [found[k] for k in ("value", "low", "high")]
        told = _told(area) if min(ill, well) >= FEWEST else "too few"
        text = f"AUC, {diagnosis}: {told}"
        rows.append((name, group, f"{ill} ill, {well} well", text))

    for attribute, groups in test["subgroups"].items():
        if attribute in names:
            for group, by_diagnosis in groups.items():
                for diagnosis, found in by_diagnosis.items():
                    add(names[attribute], str(group), diagnosis, found)
        elif attribute in ("kind", "grade"):  # of a finding: beside all who lack it
            for diagnosis, kinds in groups.items():
                for kind, found in kinds.items():
                    add(f"{attribute} of finding", kind, diagnosis, found)
    return rows


def _brain_groups(test: Mapping[str, Any]) -> list[Row]:
    rows = []
    for name, group, members in _groups(test["cases"], {
        "sex": _stored("sex"),
        "grade": _stored("grade"),
        "side": _stored("side"),
        "field strength (T)": _stored("field_t"),
        "enhancement": _stored("pattern"),
        "location": _stored("location"),
    }):  # fmt: skip
        patients = _column(members, "patient")
        told = [
            f"Dice, {region}: "
            + _mean([case[region]["dice"] for case in members], patients)
            for region in test["regions"]
        ]
        rows += [(name, group, str(len(members)), text) for text in told]
    return rows


GROUPS = {
    "pneumothorax": _pneumothorax_groups,
    "knee": _knee_groups,
    "brain": _brain_groups,
}


def by_group(name: str, stored: Mapping[str, Any] | None = None) -> str:
    """Markdown table: the first test by group, with exams and 95 % intervals."""
    tests = (stored or results.load(f"{name}-lab"))["tests"]
    key = "unseen-patients" if "unseen-patients" in tests else next(iter(tests))
    rows = GROUPS[name](tests[key])
    return _table(["by", "group", "exams", "measured"], rows)


# ------------------------------------------------------------------------------- cards


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
    network, trained_on, limits = (
        Template(text).substitute(_facts(stored))
        for text in (words.network, words.trained_on, words.limits)
    )
    groups = by_group(name, stored)
    flat = (
        " An interval from 1.00 to 1.00 says that ill and well did not overlap in these "
        "exams, not that they never do."
        if "(1.00 to 1.00)" in groups
        else ""
    )
    parts = {
        "Model": f"{network} Run size `{about['size']}`, seed {about['seed']}, "
        f"commit `{about['commit']}`, PyTorch {about['versions']['torch']}; "
        f"{training['minutes']:.0f} minutes on {headline['hardware']}.",
        "Intended use": f"{words.made_for}\n\n**Not for:** {words.not_made_for}\n\n"
        f"`{words.command}`",
        "Training data": f"{trained_on} {_composition(about)}",
        "Measured": f"With 95 % intervals {words.intervals}. All exams are simulated; how "
        "each threshold was chosen is told in the chapters. A calibration error of a few "
        "exams is too large by chance alone; its interval allows for that.\n\n"
        f"{words.frequencies(stored)}{measured(name, stored)}",
        "By group": f"On unseen patients. With fewer than {words.too_few} a group is too "
        "few for a number. Many groups are compared: by chance alone one interval in twenty "
        f"misses the truth.{flat}\n\n{groups}",
        "Known limits": limits,
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
