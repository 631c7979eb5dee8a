import copy
import re

import model_cards
import numpy as np
import pytest

from medimg_utils import metrics, results
from medimg_utils.challenges import cards
from medimg_utils.errors import InputError

NAMES = list(cards.WORDS)


def test_the_pages_are_those_of_the_stored_results() -> None:
    assert not model_cards.stale(), "run make cards"


def test_every_shipped_network_has_a_card() -> None:
    folder = results.FOLDER.parent / "pretrained"
    shipped = {
        path.name.removesuffix("-lab.json") for path in folder.glob("*-lab.json")
    }
    assert shipped == set(NAMES)


def test_a_missing_or_old_page_is_told(tmp_path) -> None:
    for path, text in model_cards.pages(tmp_path).items():
        path.write_text(text)
    assert model_cards.stale(tmp_path) == []
    (tmp_path / "knee.md").write_text("old")
    (tmp_path / "brain.md").unlink()
    assert {path.name for path in model_cards.stale(tmp_path)} == {
        "knee.md",
        "brain.md",
    }


@pytest.mark.parametrize("name", NAMES)
def test_the_headline_is_in_the_card(name: str) -> None:
    card = cards.model_card(name)
    for value, _, _ in results.load(f"{name}-lab")["headline"]["measures"].values():
        assert re.search(rf"\| {value:.2f} \(\d", card), value


def test_a_changed_result_changes_the_table() -> None:
    stored = results.load("pneumothorax-lab")
    changed = copy.deepcopy(stored)
    changed["tests"]["unseen-patients"]["auc"]["value"] = 0.123
    assert "0.12 (" in cards.measured("pneumothorax", changed)
    assert "0.12 (" not in cards.measured("pneumothorax", stored)


def test_sensitivity_is_counted_from_the_cases() -> None:
    stored = results.load("knee-lab")
    point = stored["tests"]["unseen-patients"]["diagnoses"]["acl"]["combined"]
    value = point["operating_point"]["sensitivity"]
    (row,) = re.findall(r"\| sensitivity, acl \| ([\d.]+)", cards.measured("knee"))
    assert float(row) == pytest.approx(value, abs=0.03)  # stored scores are rounded


def test_a_share_of_nobody_or_everybody_has_an_interval_of_patients() -> None:
    patients = [f"patient {k // 2}" for k in range(20)]  # two films each
    value, low, high = metrics.proportion(10, 10)
    assert (
        cards._share([True] * 20, patients) == f"{value:.2f} ({low:.2f} to {high:.2f})"
    )
    assert cards._share([False] * 20, patients).startswith("0.00 (0.00 to 0.28)")
    some = [True] * 10 + [False] * 10
    found = metrics.bootstrap(lambda k: np.mean(np.array(some)[k]), patients)
    assert cards._share(some, patients) == cards._told(found)


@pytest.mark.parametrize("name", NAMES)
def test_every_cell_is_a_number_with_an_interval_or_too_few(name: str) -> None:
    interval = r"[\d.]+ \([\d.]+ to [\d.]+\)"
    for line in cards.measured(name).splitlines()[2:]:
        for cell in line.strip("| ").split(" | ")[1:]:
            assert re.fullmatch(f"{interval}|–", cell), line
    named = r"(AUC|Dice)(, \w+:)? "
    for line in cards.by_group(name).splitlines()[2:]:
        _, group, exams, told = line.strip("| ").split(" | ")
        assert re.fullmatch(
            f"{named}({interval}|too few)(, {named}({interval}|too few))?", told
        ), line
        counts = [int(n) for n in re.findall(r"\d+", exams)]
        assert ("too few" in told) == (min(counts) < 10), line
        assert group


def test_every_group_of_people_that_is_known_is_in_the_card() -> None:
    table = cards.by_group("pneumothorax")
    for by in ("sex", "age", "habitus", "projection", "chest drain"):
        counts = re.findall(rf"\| {by} \| [^|]+\| (\d+) ill, (\d+) well", table)
        test = results.load("pneumothorax-lab")["tests"]["unseen-patients"]
        ill, well = (sum(int(pair[k]) for pair in counts) for k in (0, 1))
        assert (ill, ill + well) == (test["n"]["positives"], test["n"]["images"])


def test_a_run_that_stored_less_has_fewer_groups() -> None:
    stored = results.load("brain-lab")
    (test,) = stored["tests"].values()
    for case in test["cases"]:
        case["sex"] = "F" if case["side"] == "left" else "M"
    assert "| sex | F |" in cards.by_group("brain", stored)
    for case in test["cases"]:
        del case["sex"]
    assert "| sex |" not in cards.by_group("brain", stored)
    assert "| side | left |" in cards.by_group("brain", stored)


def test_a_group_of_nine_ill_is_too_few_and_one_of_ten_is_not() -> None:
    stored = results.load("pneumothorax-lab")
    test = stored["tests"]["unseen-patients"]
    ill = [case for case in test["cases"] if case["label"]]
    for count, told in ((9, "too few"), (10, r"[\d.]+ \(")):
        for k, case in enumerate(ill):
            case["kind"] = "rare" if k < count else "common"
        table = cards.by_group("pneumothorax", stored)
        assert re.search(
            rf"\| kind \| rare \| {count} ill, \d+ well \| AUC {told}", table
        )


def test_words_follow_the_settings_of_the_run(monkeypatch) -> None:
    stored = results.load("brain-lab")
    for row in stored["settings"]:
        if row["setting"] == "voxel":
            row["ours"] = 1.5
    monkeypatch.setattr(results, "load", lambda name: stored)
    card = cards.model_card("brain")
    assert "finds the tumour at 3 mm" in card
    assert "labels it at 1.5 mm" in card


@pytest.mark.parametrize("name", NAMES)
def test_tables_have_as_many_cells_as_heads(name: str) -> None:
    for table in (cards.measured(name), cards.by_group(name)):
        widths = {line.count("|") for line in table.splitlines()}
        assert len(widths) == 1
        assert len(table.splitlines()) > 4


def test_an_unknown_card_is_refused() -> None:
    with pytest.raises(InputError, match="there are pneumothorax"):
        cards.model_card("liver")


def test_tears_that_are_more_frequent_in_the_tests_are_told():
    def stored(torn_in_training):
        cases = [{"labels": {"acl": k % 2}} for k in range(10)]
        about = {"data": {"acl": torn_in_training, "exams": 100}}
        return {"training": {"about": about}, "tests": {"one": {"cases": cases}}}

    assert "(50%) than in training (20%)" in cards.WORDS["knee"].frequencies(stored(20))
    assert cards.WORDS["knee"].frequencies(stored(60)) == ""
