"""What the experiments of the three use cases share."""

import json

import pytest

from medimg_utils.errors import InputError
from medimg_utils.experiments import answer_each
from medimg_utils.io import ImageError


def answer(out, predict):
    return answer_each(
        ["a", "b", "c"],
        predict,
        lambda item, found: {
            "item": item,
            "found": found,
            "settings": {"use_case": "knee"},
        },
        out=out,
        name=lambda item: item,
        endings=[".png"],
        what="files",
        kind=ImageError,
        progress=False,
    )


def test_answers_come_in_order_and_lie_in_files(tmp_path):
    answers = answer(tmp_path, str.upper)
    assert [one["found"] for one in answers] == ["A", "B", "C"]
    for one in answers:
        assert json.loads((tmp_path / f"{one['item']}.json").read_text()) == one


@pytest.mark.parametrize("trouble", [InputError("empty"), OSError("empty")])
def test_one_that_cannot_be_used_does_not_stop_the_others(tmp_path, trouble):
    def predict(item):
        if item == "b":
            raise trouble
        return item

    answer(tmp_path, str.upper)
    (tmp_path / "b.png").touch()  # of the earlier answer
    with pytest.raises(ImageError, match=r"1 of 3 files could not be used.*empty"):
        answer(tmp_path, predict)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "c.json"]


def test_a_fault_of_the_program_is_not_taken_for_one_of_the_input(tmp_path):
    with pytest.raises(ZeroDivisionError):
        answer(tmp_path, lambda item: 1 / 0)


@pytest.mark.parametrize("content", ['{"shapes": []}', "[1]", "no json", '"settings"'])
def test_files_of_others_are_left_alone(tmp_path, content):
    answer(tmp_path, str.upper)
    before = (tmp_path / "a.json").read_bytes()
    (tmp_path / "c.json").write_text(content)
    with pytest.raises(InputError, match=r"c\.json is in the way.*another folder"):
        answer(tmp_path, str.lower)
    assert (tmp_path / "a.json").read_bytes() == before
    assert (tmp_path / "c.json").read_text() == content
    (tmp_path / "c.json").unlink()
    assert answer(tmp_path, str.lower)[0]["found"] == "a"
