import json
import subprocess
from pathlib import Path

import pytest

from medimg_utils import pretrained, results
from medimg_utils.errors import InputError

BOOK = Path(__file__).parents[2] / "book"

ABOUT = {"size": "tiny", "data": "drawn chests", "device": "cpu", "seed": 0, "n": 3}


def test_a_result_comes_back_with_its_origin(tmp_path):
    path = results.save(
        "toy-tiny", {"auc": 0.5, "none": float("nan")}, tmp_path, **ABOUT
    )
    assert path == tmp_path / "toy-tiny.json"
    found = results.load("toy-tiny", tmp_path)
    assert found["auc"] == 0.5
    assert found["none"] is None
    assert found["about"].items() >= ABOUT.items()
    assert found["about"]["versions"]["torch"]
    assert "commit" in found["about"]
    assert results.names(tmp_path) == ["toy-tiny"]


def test_changed_sources_mark_the_commit_and_changed_results_do_not(
    tmp_path, monkeypatch
):
    def git(*words):
        subprocess.run(["git", *words], cwd=tmp_path, check=True, capture_output=True)

    folder = tmp_path / "medimg_utils" / "results"
    source, stored = folder / "__init__.py", folder / "toy-tiny.json"
    weights = folder.parent / "pretrained" / "toy-lab.safetensors"
    for file in (source, stored, weights):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("1")
    git("init")
    git("config", "user.email", "somebody@example.org")
    git("config", "user.name", "Somebody")
    git("add", ".")
    git("commit", "--message", "first")
    monkeypatch.setattr(results, "FOLDER", folder)
    clean = results._commit()
    assert len(clean) == 12
    stored.write_text("2")
    weights.write_text("2")
    assert results._commit() == clean
    source.write_text("2")
    assert results._commit() == f"{clean}-dirty"


def test_a_result_without_origin_is_refused(tmp_path):
    with pytest.raises(InputError, match="commit"):
        results.save("toy", {"auc": 1, "about": {"size": "tiny"}}, tmp_path)


def test_unknown_and_unsafe_names_are_refused(tmp_path):
    with pytest.raises(InputError, match="there are: none"):
        results.load("absent", tmp_path)
    with pytest.raises(InputError, match="no name"):
        results.load("../settings", tmp_path)


@pytest.mark.parametrize("name", results.names() or [None])
def test_every_shipped_result_says_where_it_comes_from(name):
    if name is None:
        return
    about = results.load(name)["about"]
    assert {"size", "data", "n", "device", "seed", "commit", "versions"} <= set(about)


def test_shipped_networks_are_small_and_have_settings():
    for name in pretrained.names():
        about = pretrained.FOLDER / f"{name}.json"
        assert json.loads(about.read_text())["experiment"]
        weights = list(pretrained.FOLDER.glob(f"{name}.*safetensors"))
        assert weights
        assert all(path.stat().st_size <= 5e6 for path in weights)


def test_an_unknown_network_names_the_known_ones():
    with pytest.raises(InputError, match="no network 'absent'"):
        pretrained.find("absent")


@pytest.mark.parametrize(
    "name", [name for name in results.names() if name.endswith("-needs")]
)
def test_no_chapter_is_long_at_the_tiny_size(name):
    chapter = name.removesuffix("-needs")
    (path,) = BOOK.glob(f"*/{chapter}.ipynb")
    limit = 1.0 if path.parent.name == "foundations" else 1.5
    assert results.load(name)["sizes"]["tiny"]["minutes"] <= limit
