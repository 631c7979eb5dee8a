"""Work in parts: interrupted or not, one process or two, the release is the same."""

import json
from pathlib import Path

import pytest

from medimg_utils.errors import InputError
from medimg_utils.io import write_text_atomic
from medimg_utils.simulation import Part, needs_work, write_in_parts

SETTINGS = {"seed": 3, "rates": (0.5, 1)}


def work(out, number, stop=None):
    if stop is not None and Path(stop).exists() and number == 2:
        raise KeyboardInterrupt
    write_text_atomic(out / f"{number}.txt", f"exam {number}")
    return {"number": number}


def parts(out, stop=None):
    return [Part(f"{i:03d}", (out, i, stop), units=2) for i in (4, 2, 1)]


def make(out, stop=None, **changes):
    def finish(records):
        numbers = [str(record["number"]) for record in records]
        write_text_atomic(out / "table.csv", "\n".join(numbers))

    options = {"workers": 1, "progress": False} | changes
    return write_in_parts(out, SETTINGS, parts(out, stop), work, finish, **options)


def contents(out):
    return {
        str(file.relative_to(out)): file.read_bytes()
        for file in out.rglob("*")
        if file.is_file()
    }


def test_parts_are_done_and_their_records_joined_in_order(tmp_path):
    out = tmp_path / "release"
    assert make(out)
    assert sorted(contents(out)) == [
        "1.txt",
        "2.txt",
        "4.txt",
        "simulation.json",
        "table.csv",
    ]
    assert (out / "table.csv").read_text() == "4\n2\n1"
    assert json.loads((out / "simulation.json").read_text())["rates"] == [0.5, 1]
    before = contents(out)
    assert not make(out)  # complete
    assert contents(out) == before


def test_interrupted_resumed_and_in_two_processes_is_the_same(tmp_path):
    stop = tmp_path / "stop"
    stop.touch()
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "broken", stop)
    assert not (tmp_path / "broken" / "table.csv").exists()
    (tmp_path / "broken" / ".partial-1-abc.txt").write_text("half")
    (tmp_path / "broken" / "4.txt").write_text("not made again")
    stop.unlink()
    make(tmp_path / "broken", stop)
    make(tmp_path / "two", workers=2)
    broken = contents(tmp_path / "broken")
    assert broken.pop("4.txt") == b"not made again"
    whole = contents(tmp_path / "two")
    del whole["4.txt"]
    assert broken == whole


def test_what_stands_in_the_way_is_refused(tmp_path):
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(InputError, match="is not a folder"):
        make(file)
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine.txt").touch()
    with pytest.raises(InputError, match="is not empty and holds no simulation"):
        make(other)
    with pytest.raises(InputError, match="workers is 0"):
        make(tmp_path / "new", workers=0)
    make(tmp_path / "done")
    with pytest.raises(InputError, match=r"other settings \(see simulation.json\)"):
        needs_work(tmp_path / "done", {"seed": 4})
    (tmp_path / "done" / "simulation.json").write_text("{")  # damaged
    with pytest.raises(InputError, match="other settings"):
        make(tmp_path / "done")
