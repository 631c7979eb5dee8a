"""Work in parts: interrupted or not, one process or two, the release is the same."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from medimg_utils.errors import InputError
from medimg_utils.io import write_text_atomic
from medimg_utils.simulation import Part, needs_work, remove_older, write_in_parts

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


def long_work(out, number):
    """Leave the id of the process, then work until somebody ends it."""
    write_text_atomic(out / f"{number}.pid", str(os.getpid()))
    time.sleep(60)


def is_alive(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{process}/stat")  # where nobody reaps it, it stays as a zombie
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"


def wait_for(condition, seconds):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.1)
    return condition()


def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    """Otherwise they would write beside those of the call that resumes."""
    out = tmp_path / "release"
    script = tmp_path / "parent.py"
    script.write_text(
        f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
import test_simulation as t
if __name__ == "__main__":
    out = Path({str(out)!r})
    parts = [t.Part(str(i), (out, i)) for i in (0, 1)]
    t.write_in_parts(out, {{}}, parts, t.long_work, print, workers=2, progress=False)
"""
    )
    with subprocess.Popen([sys.executable, script]) as parent:
        try:
            assert wait_for(lambda: len(list(out.glob("*.pid"))) == 2, 60)
        finally:
            parent.send_signal(signal.SIGKILL)
    workers = [int(file.read_text()) for file in out.glob("*.pid")]
    assert parent.pid not in workers
    assert wait_for(lambda: not any(map(is_alive, workers)), 10)


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


@pytest.mark.parametrize("content", [b"", b"[]", b'{"seed": 3', b"\xff\x00"])
def test_damaged_settings_are_an_error_that_says_what_to_delete(tmp_path, content):
    out = tmp_path / "release"
    for name in ("simulation.json", "unfinished.json"):
        make(out)
        (out / "simulation.json").rename(out / name)
        (out / name).write_bytes(content)
        before = contents(out)
        with pytest.raises(
            InputError, match=rf"{name} is damaged.*delete .*release and"
        ):
            make(out)
        assert contents(out) == before
        shutil.rmtree(out)


def test_a_damaged_record_is_an_error_that_says_to_delete_it(tmp_path):
    out = tmp_path / "release"
    make(out)
    (out / "simulation.json").rename(out / "unfinished.json")
    (out / "unfinished").mkdir()
    for number in (1, 2, 4):
        (out / "unfinished" / f"{number:03d}.json").write_text("[{")
    with pytest.raises(InputError, match=r"is damaged.*delete .*004\.json and"):
        make(out)


@pytest.mark.parametrize(
    ("stored", "stays"),
    [
        ({"version": 2, "seed": 3, "rates": {"drain": [0, 1]}}, False),
        ({"version": 2, "seed": 3, "rates": {}}, False),  # had fewer settings
        ({"version": 3, "seed": 3, "rates": {"drain": [0, 1]}}, True),
        ({"version": 2, "seed": 4, "rates": {"drain": [0, 1]}}, True),
        ({"version": 2, "seed": 3, "rates": {"drain": [0, 0.5]}}, True),
        ({"version": 2, "seed": 3, "written": [1]}, True),
        ({"seed": 3}, True),
        ([2], True),
    ],
)
@pytest.mark.parametrize("name", ["simulation.json", "unfinished.json"])
def test_only_what_an_older_version_made_of_the_same_plan_is_removed(
    tmp_path, stored, stays, name
):
    plan = {"version": 3, "seed": 3, "rates": {"drain": (0, 1), "line": 0.2}}
    out = tmp_path / "release"
    remove_older(out, plan)  # nothing there
    out.mkdir()
    (out / name).write_text(json.dumps(stored))
    remove_older(out, plan)
    assert out.exists() == stays
