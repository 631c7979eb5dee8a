"""Some exams of a simulated release are those of the whole release."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medimg_utils.errors import InputError
from medimg_utils.knee import simulate


@pytest.fixture(autouse=True)
def quick_scanner(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is fetched or scanned: an exam is a number drawn from its own seed."""

    def scan(
        plan: simulate.Simulation, exam: str, split: str, group: str, out: Path, _: Path
    ) -> dict:
        labels = {
            name: int(name in simulate.GROUPS[group]) for name in simulate.DIAGNOSES
        }
        random = np.random.default_rng([plan.seed, int(exam)])
        for plane in simulate.PLANES:
            file = out / "MRNet-v1.0" / split / plane / f"{exam}.npy"
            file.parent.mkdir(parents=True, exist_ok=True)
            np.save(file, random.integers(0, 256, (3, 4, 4), dtype=np.uint8))
        return {"exam": exam, "split": split, "labels": labels}

    monkeypatch.setattr(simulate, "simulate_exam", scan)
    monkeypatch.setattr(simulate, "prepare", lambda *_: None)
    monkeypatch.setattr(simulate, "load_textures", lambda *_: None)


def files(folder: Path) -> dict[str, bytes]:
    release = folder / "MRNet-v1.0"
    return {
        path.relative_to(release).as_posix(): path.read_bytes()
        for path in release.rglob("*")
        if path.is_file()
    }


def test_some_exams_equal_those_of_the_release(tmp_path: Path) -> None:
    plan = replace(simulate.TINY, train=4, valid=6)
    options = {"workers": 1, "progress": False}
    whole = files(simulate.simulate_release(tmp_path / "whole", plan, **options))
    wanted = ("0002", "0005", "0009")
    some = files(simulate.simulate_exams(tmp_path / "some", plan, wanted, **options))
    arrays = {name for name in some if name.endswith(".npy")}
    assert {Path(name).stem for name in arrays} == set(wanted)
    assert all(some[name] == whole[name] for name in arrays)
    for name in some.keys() - arrays:
        rows = whole[name].decode().splitlines()
        assert some[name].decode().splitlines() == [
            row for row in rows if row.split(",")[0] in wanted
        ]


def test_they_need_no_more_than_their_own_knees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = []
    monkeypatch.setattr(simulate, "prepare", lambda *found: prepared.append(found[0]))
    plan = simulate.LAB_TESTS["unseen-patients"]
    options = {"workers": 1, "progress": False}
    simulate.simulate_exams(tmp_path / "one", plan, ["0007"], **options)
    patient = simulate.random_patient(
        plan.anatomies, plan.habitus, np.random.default_rng([plan.seed, 1, 7])
    )
    assert prepared == [{patient.anatomy: {patient.habitus}}]


@pytest.mark.parametrize("wanted", [(), ("0001", "0099")])
def test_unknown_exams_are_refused(tmp_path: Path, wanted: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match="not of this simulation"):
        simulate.simulate_exams(tmp_path / "out", simulate.TINY, wanted)
    assert not (tmp_path / "out").exists()
