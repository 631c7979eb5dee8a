import copy
import re

import model_cards
import pytest

from medimg_utils import results
from medimg_utils.challenges import cards
from medimg_utils.errors import InputError

NAMES = list(cards.WORDS)


def test_the_pages_are_those_of_the_stored_results() -> None:
    assert not model_cards.stale(), "run make cards"


def test_every_shipped_network_has_a_card() -> None:
    shipped = {name.removesuffix("-lab") for name in results.names() if "-lab" in name}
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


@pytest.mark.parametrize("name", NAMES)
def test_tables_have_as_many_cells_as_heads(name: str) -> None:
    for table in (cards.measured(name), cards.by_group(name)):
        widths = {line.count("|") for line in table.splitlines()}
        assert len(widths) == 1
        assert len(table.splitlines()) > 4


def test_an_unknown_card_is_refused() -> None:
    with pytest.raises(InputError, match="there are pneumothorax"):
        cards.model_card("liver")
