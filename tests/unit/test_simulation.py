"""Work in parts: interrupted or not, one process or two, the release is the same."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Barrier

import pytest

from medimg_utils.errors import InputError
from medimg_utils.io import differences, write_text_atomic
from medimg_utils.release import release_folder
from medimg_utils.simulation import (
    Part,
    call_in_processes,
    choose_plan,
    ensure,
    find_parts,
    needs_work,
    one_at_a_time,
    open_pool,
    remove_older,
    write_in_parts,
)

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
    (tmp_path / "broken" / "MRNet-v1.0").mkdir()  # a release may lie one level below
    for folder in ("broken", "broken/MRNet-v1.0"):
        with pytest.raises(InputError, match="a simulation that was broken off"):
            release_folder(tmp_path / folder)
    (tmp_path / "broken" / "MRNet-v1.0").rmdir()
    (tmp_path / "broken" / ".partial-1-abc.txt").write_text("half")
    (tmp_path / "broken" / "4.txt").write_text("not made again")
    stop.unlink()
    make(tmp_path / "broken", stop)
    assert release_folder(tmp_path / "broken") == tmp_path / "broken"
    make(tmp_path / "two", workers=2)
    broken = contents(tmp_path / "broken")
    assert broken.pop("4.txt") == b"not made again"
    whole = contents(tmp_path / "two")
    del whole["4.txt"]
    assert broken == whole


def who_does_it(out):
    return os.getpid()


@pytest.mark.parametrize(("parts", "here"), [(4, True), (8, False)])
def test_few_parts_are_not_worth_processes(tmp_path, monkeypatch, parts, here):
    monkeypatch.setattr("medimg_utils.simulation.count_cores", lambda: 2)
    done = []
    todo = [Part(f"{k}", (tmp_path,)) for k in range(parts)]
    write_in_parts(tmp_path, {}, todo, who_does_it, done.extend, progress=False)
    assert len(done) == parts
    assert (set(done) == {os.getpid()}) == here


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
    assert wait_for(lambda: not any(map(is_alive, workers)), 60)


def test_workers_see_the_environment_of_their_call(tmp_path, monkeypatch):
    for folder in ("one", "two"):
        monkeypatch.setenv("MEDIMG_DATA", folder)
        with open_pool(1, os.getenv) as pool:
            assert pool.submit(os.getenv, "MEDIMG_DATA").result() == folder


def test_who_comes_second_waits_and_finds_the_release(tmp_path):
    """Notebooks of a class begin at once, and want the same release."""
    for attempt in range(20):
        out, calls, together = tmp_path / f"{attempt}" / "release", [], Barrier(3)

        def make_it(out=out, calls=calls, together=together):
            together.wait()
            with one_at_a_time(
                out
            ):  # once more, as who removes an older one first does
                return make(out, prepare=lambda: calls.append(1))

        with ThreadPoolExecutor(3) as pool:
            made = [one.result() for one in [pool.submit(make_it) for _ in range(3)]]
        assert sorted(made) == [False, False, True]
        assert len(calls) == 1
        assert [path.name for path in out.parent.iterdir()] == ["release"]
        assert not (out / "unfinished").exists()


def end_here():
    os._exit(9)


def test_a_worker_that_is_killed_is_told_in_words():
    with pytest.raises(InputError, match="ended from outside"):
        call_in_processes(end_here, [(), ()], 2)


@pytest.mark.parametrize("workers", [1, 2])
def test_each_job_is_done_once_and_its_failure_told(tmp_path, workers):
    here = tmp_path / "here"
    here.write_text("the same")
    copies = [tmp_path / name for name in ("a", "b", "c")]
    call_in_processes(shutil.copyfile, [(here, copy) for copy in copies], workers)
    assert [copy.read_text() for copy in copies] == ["the same"] * 3
    call_in_processes(shutil.copyfile, [], workers)
    jobs = [(here, copies[0]), (tmp_path / "absent", copies[1])]
    with pytest.raises(FileNotFoundError, match="absent"):
        call_in_processes(shutil.copyfile, jobs, workers)


def test_what_stands_in_the_way_is_refused(tmp_path):
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(InputError, match=r"is a file\. Give the path of a folder"):
        make(file)
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine.txt").touch()
    with pytest.raises(InputError, match="is not empty and holds no simulation"):
        make(other)
    with pytest.raises(InputError, match="workers is 0"):
        make(tmp_path / "new", workers=0)
    make(tmp_path / "done")
    other = {"seed": 4, "rates": (0.5, 1), "size": 2}
    with pytest.raises(
        InputError,
        match=r"other settings \(see simulation.json\): seed is 3 and not 4, size is "
        "None and not 2; choose another folder",
    ):
        needs_work(tmp_path / "done", other)


def test_what_differs_is_said_in_a_few_words():
    stored = {"rates": {"drain": [0, 1], "line": 1}, "a": 1, "b": 2, "c": 3}
    wanted = {"rates": {"drain": [0, 2], "line": 1}, "a": 2, "b": 3, "c": 4}
    assert differences(stored, wanted) == (
        "rates drain is [0, 1] and not [0, 2], a is 1 and not 2, b is 2 and not 3 and 1 "
        "more"
    )


def test_what_all_parts_need_is_prepared_only_where_there_is_work(tmp_path):
    calls = []
    make(tmp_path / "release", prepare=lambda: calls.append(1))
    make(tmp_path / "release", prepare=lambda: calls.append(2))
    assert calls == [1]


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
        ({"version": 2}, True),  # of any kind
        ([2], True),
        ({"version": "2", "seed": 3}, True),
    ],
)
@pytest.mark.parametrize("name", ["simulation.json", "unfinished.json"])
def test_only_what_an_older_version_made_of_the_same_plan_is_removed(
    tmp_path, stored, stays, name
):
    plan = {"version": 3, "seed": 3, "rates": {"drain": (0, 1), "line": 0.2}}
    out = tmp_path / "release"
    remove_older(out, plan, FILES)  # nothing there
    out.mkdir()
    (out / name).write_text(json.dumps(stored))
    remove_older(out, plan, FILES)
    assert out.exists() == stays


PLAN = {"version": 3, "seed": 3}
FILES = ("images/*/*.dcm", "table.csv")


def older(out, *names):
    """A release of the version before, with an unfinished part."""
    for name in ("images/a/1.dcm", "table.csv", "unfinished/4.json", *names):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).touch()
    for name in ("simulation.json", "unfinished.json"):
        (out / name).write_text(json.dumps(PLAN | {"version": 2}))
    return out


@dataclass(frozen=True)
class Three:
    """The plan of the release that `make` makes, in its third version."""

    version: int = 3
    seed: int = 3


@pytest.mark.parametrize("anew", [False, True])
def test_a_release_that_is_there_is_made_anew_only_where_asked(tmp_path, anew):
    out = tmp_path / "release"
    asked = []

    def simulate(folder, plan, *, data_dir, progress):
        asked.append((plan, data_dir, progress, folder.exists()))
        folder.mkdir(exist_ok=True)
        (folder / "simulation.json").write_text(json.dumps(asdict(plan)))
        return folder

    how = {"data_dir": tmp_path, "progress": False}
    assert ensure(simulate, out, Three(), FILES, **how) == out
    (out / "table.csv").touch()
    assert ensure(simulate, out, Three(), FILES, anew=anew, **how) == out
    assert (out / "table.csv").exists() != anew
    assert ensure(simulate, out, Three(version=4), FILES, **how) == out
    assert not (out / "table.csv").exists()
    there = [before for *_, before in asked]
    assert there == [False, not anew, False]
    assert asked[0][:3] == (Three(), tmp_path, False)


def test_an_older_release_goes_with_what_killed_calls_left(tmp_path):
    out = older(tmp_path / "release", "images/a/.partial-7-abc.dcm")
    remove_older(out, PLAN, FILES)
    assert not out.exists()


@pytest.mark.parametrize(
    "mine",
    [
        "thesis.txt",
        "images/a/1.png",
        "images/1.dcm",
        "images/a/b/1.dcm",
        "images/table.csv",
        "unfinished/notes.txt",
    ],
)
def test_a_folder_with_foreign_files_is_never_deleted(tmp_path, mine):
    out = older(tmp_path / "release", mine)
    before = contents(out)
    with pytest.raises(InputError, match=f"release holds version 2.*1 files.*{mine};"):
        remove_older(out, PLAN, FILES)
    assert contents(out) == before


def test_links_are_foreign_and_what_they_lead_to_stays(tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "1.dcm").touch()
    out = older(tmp_path / "release")
    (out / "images" / "b").symlink_to(other, target_is_directory=True)
    with pytest.raises(InputError, match=r"e\.g\. images/b;"):
        remove_older(out, PLAN, FILES)
    (out / "images" / "b").unlink()
    (tmp_path / "link").symlink_to(out, target_is_directory=True)
    remove_older(tmp_path / "link", PLAN, FILES)
    assert (tmp_path / "link").is_symlink()
    assert list(out.iterdir()) == []
    assert (other / "1.dcm").exists()


def test_the_present_version_is_deleted_only_where_that_is_asked(tmp_path):
    out = older(tmp_path / "release")
    (out / "simulation.json").write_text(json.dumps(PLAN))
    (out / "unfinished.json").unlink()
    remove_older(out, PLAN, FILES)
    assert out.exists()
    remove_older(out, PLAN | {"seed": 4}, FILES, present_too=True)
    assert out.exists()
    remove_older(out, PLAN, FILES, present_too=True)
    assert not out.exists()


def test_notes_that_contradict_each_other_are_left_alone(tmp_path):
    out = older(tmp_path / "release")
    (out / "unfinished.json").write_text(json.dumps(PLAN | {"seed": 9}))
    before = contents(out)
    remove_older(out, PLAN, FILES)
    assert contents(out) == before


def test_a_plan_is_chosen_by_the_name_of_its_size():
    assert choose_plan({"tiny": 1, "lab": 2}, "lab") == 2
    with pytest.raises(InputError, match="size 'paper': the sizes are tiny, lab; for"):
        choose_plan({"tiny": 1, "lab": 2}, "paper")


def test_parts_are_found_by_what_they_hold():
    owners = {"a": 2, "b": 0, "c": 2}
    assert find_parts(["c", "b", "a", "c"], owners, "films") == [0, 2]
    with pytest.raises(InputError, match=r"1 of 2 films are not .* e\.g\. d;"):
        find_parts(["a", "d"], owners, "films")
    with pytest.raises(InputError, match="none was named"):
        find_parts([], owners, "films")
