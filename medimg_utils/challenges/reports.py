"""Labels out of reports: a small labeller with negation, and what its errors do.

Large sets of radiographs got their labels this way (Wang et al. 2017, Irvin et al.
2019). Here reports are made up from known findings, so every error of the labeller is
known.
"""

from __future__ import annotations

import re

import numpy as np

from medimg_utils.errors import InputError

#: Ways to report, with {side} and {size} to fill in; each with how often it is chosen.
#: The shares are our assumption.
WITH = {
    "plain": (0.50, "There is a {size} {side} pneumothorax."),
    "first words": (0.20, "{size} {side} pneumothorax, mediastinum central."),
    "no change": (0.10, "No change in the {size} {side} pneumothorax."),
    "circumscribed": (
        0.08,
        "Pleural line at the {side} apex, {size} collapse of the lung.",
    ),
    "spelling": (0.05, "{size} {side} penumothorax."),
    "doubt": (0.07, "A {size} {side} pneumothorax cannot be excluded."),
}
WITHOUT = {
    "plain": (0.50, "No pneumothorax."),
    "list": (0.20, "No pleural effusion, consolidation or pneumothorax."),
    "normal": (0.15, "Heart and lungs normal."),
    "resolved": (0.06, "The {side} pneumothorax has resolved."),
    "question": (0.06, "Clinical question: pneumothorax? Both lungs expanded."),
    "late negation": (0.03, "A pneumothorax is not seen."),
}
BEFORE = r"\b(?:no|without|free of|negative for|exclude[sd]?)\b[^.?]*$"
AFTER = r"^[^.?]*\b(?:has resolved|is not seen|excluded|absent)\b|^\s*\?"
#: Words that look like a negation and are none.
HARMLESS = r"\b(?:no change in|cannot be excluded|not excluded)\b"


def write_report(
    ill: bool, random: np.random.Generator, *, small: bool = False
) -> tuple[str, str]:
    """A made-up report, and the kind of its wording.

    Args:
        ill: is there a pneumothorax?
        random: where chance comes from.
        small: of size; decides one word.
    """
    ways = WITH if ill else WITHOUT
    share = np.array([one for one, _ in ways.values()])
    kind = str(random.choice(list(ways), p=share / share.sum()))
    text = ways[kind][1].format(
        side=random.choice(["left", "right"]), size="small" if small else "large"
    )
    return text[0].upper() + text[1:], kind


def label_by_word(report: str) -> int:
    """1 where the word occurs, whatever is said about it.

    >>> label_by_word("No pneumothorax.")
    1
    """
    return int("pneumothorax" in report.lower())


def label_by_rules(report: str) -> int:
    """1 where the word occurs and nothing in its sentence takes it back.

    The rules are those of NegEx in miniature (Chapman et al. 2001): words of negation
    before the finding and after it, and words that only look like one.

    >>> label_by_rules("No effusion or pneumothorax."), label_by_rules("A pneumothorax.")
    (0, 1)
    """
    text = re.sub(HARMLESS, "", report.lower())
    for found in re.finditer("pneumothorax", text):
        start = max(text.rfind(sign, 0, found.start()) for sign in ".?") + 1
        before, after = text[start : found.start()], text[found.end() :]
        if not re.search(BEFORE, before) and not re.search(AFTER, after):
            return 1
    return 0


def auc_under_label_noise(
    auc: float, true_positive: float, true_negative: float
) -> float:
    r"""AUC that is measured when some labels are wrong, whatever the score says.

    Of the exams labelled positive the share $v$ is so, of the negative ones $u$. A pair
    of labels is right with probability $v u$, turned round with $(1 - v)(1 - u)$, and
    otherwise of one class, where chance gives one half. Together

    $$\mathrm{AUC}' = \tfrac12 + (\mathrm{AUC} - \tfrac12)(v + u - 1) .$$

    Args:
        auc: with true labels.
        true_positive: share $v$ of the exams labelled positive that are so.
        true_negative: share $u$ of the exams labelled negative that are so.

    >>> auc_under_label_noise(0.9, 1, 1), auc_under_label_noise(0.9, 0.5, 0.5)
    (0.9, 0.5)
    """
    for name, value in (("auc", auc), ("true_positive", true_positive),
                        ("true_negative", true_negative)):  # fmt: skip
        if not 0 <= value <= 1:
            raise InputError(f"{name} is {value}, expected 0 to 1.")
    return 0.5 + (auc - 0.5) * (true_positive + true_negative - 1)
