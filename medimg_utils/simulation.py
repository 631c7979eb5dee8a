"""Long simulations that can be interrupted, resumed and spread over processes.

A release is made in parts (an exam, a patient).  Each part follows from the settings and
its own number alone, so the bytes do not depend on the number of processes or on how
often the work was broken off.  While it is going on, ``OUT/unfinished.json`` holds the
settings and ``OUT/unfinished/`` a record of every part that is complete; at the end they
make way for the tables of the release and ``OUT/simulation.json``.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from medimg_utils.errors import InputError
from medimg_utils.io import check_folder, differences, to_json, write_json_atomic
from medimg_utils.settings import count_cores

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Plan = TypeVar("Plan")
Owner = TypeVar("Owner")
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of <malloc.h>
_NOTES = ("simulation.json", "unfinished.json")
_WORTH_A_PROCESS = 4  # parts that take about as long as a process takes to start


@dataclass(frozen=True)
class Part:
    """One piece of work.

    Attributes:
        name: of its record; a valid file name.
        arguments: of the function that does the work; they must be picklable.
        units: what the progress bar counts, e.g. the films of a patient.
    """

    name: str
    arguments: tuple[Any, ...]
    units: int = 1


def write_in_parts(
    out: Path,
    settings: Mapping[str, Any],
    parts: Sequence[Part],
    work: Callable[..., Any],
    finish: Callable[[list[Any]], None],
    *,
    prepare: Callable[[], object] | None = None,
    workers: int | None = None,
    progress: bool = True,
    title: str = "simulating",
    unit: str = "exam",
) -> bool:
    """Do all parts that are not done yet, then finish the release.

    Args:
        out: folder of the release; created.
        settings: all that decides what the release contains, JSON-able.
        parts: the pieces of work.
        work: a function of a module; writes the files of a part and returns its record,
            which must be JSON-able.  It runs on one thread.
        finish: writes the tables from the records, in the order of ``parts``.
        prepare: what all parts need, e.g. the anatomy; called where there is work.
        workers: processes; by default one a CPU core, and fewer for few parts.
        progress: show a progress bar.
        title: of the bar.
        unit: of the bar.

    Returns:
        False where the release was complete already.

    Raises:
        InputError: ``out`` holds something else, a release with other settings, or
            damaged notes; or a worker was killed.
    """
    with one_at_a_time(out, progress):
        if not needs_work(out, settings, workers):
            return False
        if prepare is not None:
            prepare()
        started, records = out / "unfinished.json", out / "unfinished"
        out.mkdir(parents=True, exist_ok=True)
        write_json_atomic(started, settings)
        records.mkdir(exist_ok=True)
        files = {part.name: records / f"{part.name}.json" for part in parts}
        missing = [part for part in parts if not files[part.name].exists()]
        total = sum(part.units for part in parts)
        left = sum(part.units for part in missing)
        with tqdm(
            total=total,
            initial=total - left,
            desc=title,
            unit=unit,
            disable=not progress,
        ) as bar:
            for part in _done(work, missing, files, workers):
                bar.update(part.units)
        for leftover in out.rglob(".partial-*"):  # of processes that were killed
            leftover.unlink(missing_ok=True)
        finish([_read(file, file) for file in files.values()])
        write_json_atomic(out / "simulation.json", settings)
        _tidy_up(out)
    return True


@contextmanager
def one_at_a_time(out: Path, progress: bool = True) -> Iterator[None]:
    """Let no other process of this user make or remove a release meanwhile.

    The lock is an empty file among the temporary ones, where it stays: a folder of
    results is for results. Who holds it may take it again.

    Args:
        out: folder of the release.
        progress: say so where this waits for another process.
    """
    folder = (
        Path(tempfile.gettempdir()) / f"medimg-locks-{getattr(os, 'getuid', int)()}"
    )
    folder.mkdir(exist_ok=True)
    name = hashlib.sha256(str(out.resolve()).encode()).hexdigest()[:16]
    lock = FileLock(folder / f"{name}.lock", is_singleton=True)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        if progress:
            tqdm.write(f"another process is making {out}: waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _done(
    work: Callable[..., Any],
    parts: Sequence[Part],
    files: Mapping[str, Path],
    workers: int | None,
) -> Iterator[Part]:
    """Do parts, here or in processes, and tell each that is done."""
    count = workers or min(count_cores(), len(parts) // _WORTH_A_PROCESS)
    count = max(1, min(count, len(parts)))
    if count == 1:
        threads = torch.get_num_threads()
        try:
            for part in parts:
                _do(work, part, files[part.name])
                yield part
        finally:
            torch.set_num_threads(threads)
            torch.set_flush_denormal(False)
        return
    with _whole_pool(), open_pool(count, work) as pool:
        futures = {
            pool.submit(_do, work, part, files[part.name]): part for part in parts
        }
        try:
            for future in as_completed(futures):
                future.result()
                yield futures[future]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def open_pool(count: int, work: Callable[..., Any]) -> ProcessPoolExecutor:
    """Processes for a function of a module, which end when this one does.

    On Linux one process imports the module and the others are copies of it: PyTorch takes
    seconds to import. (Copies of a process that has loaded Apple's libraries may crash,
    and Windows makes none.)

    Args:
        count: of processes.
        work: the function they are for.
    """
    linux = sys.platform == "linux"
    context = multiprocessing.get_context("forkserver" if linux else "spawn")
    if linux:
        context.set_forkserver_preload([__name__, work.__module__])
    return ProcessPoolExecutor(count, context, _start_worker, (dict(os.environ),))


@contextmanager
def _whole_pool() -> Iterator[None]:
    """Say in words that a process of a pool was killed."""
    try:
        yield
    except BrokenProcessPool as error:
        raise InputError(
            "a process was ended from outside, mostly for lack of memory. The same call "
            "goes on where this one stopped; with fewer workers it needs less memory. (A "
            "script of your own that starts processes needs its calls below `if __name__ "
            "== '__main__':`.)"
        ) from error


def call_in_processes(
    work: Callable[..., object], jobs: Sequence[tuple[Any, ...]], workers: int | None
) -> None:
    """Call a function of a module once for each of some arguments.

    Args:
        work: the function.
        jobs: its arguments; those that take longest first.
        workers: processes at most, one a CPU core where None; 1 calls it here.

    Raises:
        InputError: a worker was killed.
        Exception: what a call raises.
    """
    count = min(workers or count_cores(), len(jobs))
    if count < 2:
        for job in jobs:
            work(*job)
        return
    with _whole_pool(), open_pool(count, work) as pool:
        for future in [pool.submit(work, *job) for job in jobs]:
            future.result()


def needs_work(
    out: Path, settings: Mapping[str, Any], workers: int | None = None
) -> bool:
    """Whether a release is to be made or continued; refuses what stands in the way.

    Raises:
        InputError: see :func:`write_in_parts`.
    """
    if workers is not None and workers < 1:
        raise InputError(f"workers is {workers}; at least 1 is needed")
    done, started = (out / name for name in _NOTES)
    for file in (done, started):
        if not file.exists():
            continue
        stored, wanted = _read(file, out, dict), to_json(settings)
        if stored != wanted:
            raise InputError(
                f"{out} holds a simulation with other settings (see {file.name}): "
                f"{differences(stored, wanted)}; choose another folder or delete this "
                "one"
            )
    if done.exists():
        _tidy_up(out)  # the call that finished may have been killed here
        return False
    if out.is_dir() and any(out.iterdir()) and not started.exists():
        raise InputError(f"{out} is not empty and holds no simulation; choose another")
    check_folder(out)
    return True


def choose_plan(plans: Mapping[str, Plan], size: str) -> Plan:
    """The plan of a run size.

    Raises:
        InputError: there is none of this name.
    """
    if size not in plans:
        raise InputError(
            f"there is no simulated release of size {size!r}: the sizes are "
            f"{', '.join(plans)}; for paper, point to the real release"
        )
    return plans[size]


def ensure(
    simulate: Callable[..., Path],
    out: Path,
    plan: DataclassInstance,
    files: Sequence[str],
    *,
    data_dir: Path,
    anew: bool = False,
    progress: bool = True,
) -> Path:
    """A release of a plan, simulated unless it is there.

    What an older version of the simulation made of the same plan is made anew.

    Args:
        simulate: makes or continues the release, and returns its folder.
        out: that folder.
        plan: all that decides what the release contains, with its ``version``.
        files: see :func:`remove_older`.
        data_dir: where the anatomy is.
        anew: also what the present version made.
        progress: show a progress bar.

    Raises:
        InputError: the folder holds something else.
    """
    with one_at_a_time(out, progress):
        remove_older(out, asdict(plan), files, present_too=anew)
        return simulate(out, plan, data_dir=data_dir, progress=progress)


def find_parts(
    wanted: Collection[str], owners: Mapping[str, Owner], what: str
) -> list[Owner]:
    """The parts of a release that hold some of its images, each once and in order.

    Args:
        wanted: names of images, exams or cases.
        owners: the part of each name that the release has.
        what: the names are of, for the message.

    Raises:
        InputError: nothing is wanted, or something that the release does not have.
    """
    unknown = sorted(set(wanted) - set(owners))
    if unknown or not wanted:
        raise InputError(
            f"{len(unknown)} of {len(wanted)} {what} are not of this simulation, e.g. "
            f"{next(iter(unknown), 'none was named')}; it has other settings or another "
            "version"
        )
    return sorted({owners[name] for name in wanted})  # type: ignore[type-var]


def remove_older(
    out: Path,
    settings: Mapping[str, Any],
    files: Sequence[str],
    *,
    present_too: bool = False,
) -> None:
    """Delete a release that an older version of its simulation made from one plan.

    Other releases stay, and what is damaged: :func:`needs_work` refuses both.

    Args:
        out: folder of the release; it need not exist.
        settings: of the plan, JSON-able, with the present ``version``.  A plan of an
            older version may lack some of them.
        files: patterns of all that the simulation writes into the folder, such as
            ``images/*/*.dcm``; a ``*`` stands for a part of one name.
        present_too: delete it also where the present version made it.

    Raises:
        InputError: the folder holds such a release and files that are not of it.
    """
    version = settings["version"]
    notes = [out / name for name in _NOTES if (out / name).is_file()]
    for note in notes:
        try:
            stored = json.loads(note.read_text(encoding="utf-8"))
            is_older = stored["version"] < version + present_too and "seed" in stored
        except (ValueError, KeyError, TypeError):
            return
        if not is_older or not _agrees(stored | {"version": version}, settings):
            return
    if not notes:
        return
    if foreign := _foreign(out, files):
        raise InputError(
            f"{out} holds version {stored['version']} of a simulation that is to be made "
            f"anew, but also {len(foreign)} files that are not of it, e.g. {foreign[0]}; "
            "move these away or delete the folder"
        )
    for item in sorted(out.iterdir(), key=lambda item: item.name in _NOTES):
        if item.is_dir():
            shutil.rmtree(item)
        else:
            item.unlink()  # the notes last: a call that is killed can be called anew
    if not out.is_symlink():
        out.rmdir()


def _foreign(out: Path, patterns: Sequence[str]) -> list[str]:
    """Files below a folder, and links, that its simulation did not write."""
    known = [tuple(one.split("/")) for one in (*patterns, *_NOTES, "unfinished/*.json")]
    foreign = []
    for folder, folders, names in os.walk(out):
        for path in (Path(folder) / name for name in (*folders, *names)):
            parts = path.relative_to(out).parts
            ours = path.name.startswith(".partial-") or any(
                len(parts) == len(one) and all(map(fnmatchcase, parts, one))
                for one in known
            )
            if path.is_symlink() or not (ours or path.is_dir()):
                foreign.append("/".join(parts))
    return sorted(foreign)


def _agrees(older: Any, present: Any) -> bool:
    """Whether all that an older plan says is what the present one says."""
    if isinstance(older, Mapping) and isinstance(present, Mapping):
        return all(
            key in present and _agrees(value, present[key])
            for key, value in older.items()
        )
    return bool(older == to_json(present))


def _read(file: Path, damaged: Path, kind: type = object) -> Any:
    """Content of a file; ``damaged`` is what to delete where that is not such JSON."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(value, kind):
            raise ValueError(f"it holds a {type(value).__name__}")
    except ValueError as error:  # so are errors of JSON and of UTF-8
        raise InputError(
            f"{file} is damaged ({error}); delete {damaged} and simulate anew"
        ) from error
    return value


def _start_worker(environment: Mapping[str, str]) -> None:
    os.environ.clear()  # a copy has that of the first call
    os.environ.update(environment)
    _keep_freed_memory()
    _end_with_parent()


def _keep_freed_memory() -> None:
    """Let this process use the memory of one array again for the next.

    Left alone, glibc hands what large arrays held back to the system and fetches it
    again page by page: a fifth of the time of a film.  See mallopt(3).
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):  # musl has none
        return
    largest = (1 << 30, 32 << 20)  # glibc before 2.35 takes no more than 32 MiB
    if any(libc.mallopt(_MMAP_THRESHOLD, size) for size in largest):
        libc.mallopt(_TRIM_THRESHOLD, 1 << 30)


def _end_with_parent() -> None:
    """End this process when its parent ends, however that happens.

    A worker of a parent that was killed would go on, and write beside the processes of
    the call that resumes.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)  # half-written files are those of a killed process

    threading.Thread(target=watch, daemon=True).start()


def _do(work: Callable[..., Any], part: Part, record: Path) -> None:
    torch.set_num_threads(1)
    # the tails of bells, at 1e-40, would slow a film by a tenth
    torch.set_flush_denormal(True)
    write_json_atomic(record, work(*part.arguments))


def _tidy_up(out: Path) -> None:
    shutil.rmtree(out / "unfinished", ignore_errors=True)
    (out / "unfinished.json").unlink(missing_ok=True)
