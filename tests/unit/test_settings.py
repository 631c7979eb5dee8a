import subprocess
import sys

import pytest
import torch

from medimg_utils.errors import InputError
from medimg_utils.settings import SIZES, find_device, get_settings


@pytest.mark.parametrize("empty", [False, True])
def test_defaults(monkeypatch, empty):
    for name in ("MEDIMG_SIZE", "MEDIMG_DATA", "MEDIMG_SEED"):
        if empty:
            monkeypatch.setenv(name, "")
        else:
            monkeypatch.delenv(name, raising=False)
    settings = get_settings()
    assert (settings.size, settings.data.name, settings.seed) == ("tiny", "data", 0)


def test_the_environment_decides(monkeypatch, tmp_path):
    monkeypatch.setenv("MEDIMG_SIZE", "lab")
    monkeypatch.setenv("MEDIMG_DATA", str(tmp_path))
    monkeypatch.setenv("MEDIMG_SEED", "7")
    settings = get_settings()
    assert (settings.size, settings.data, settings.seed) == ("lab", tmp_path, 7)


@pytest.mark.parametrize(
    ("name", "value"),
    [("MEDIMG_SIZE", "huge"), ("MEDIMG_SEED", "-1"), ("MEDIMG_SEED", "4294967296")],
)
def test_unknown_values_are_refused_by_name(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=rf"{name}.*{value}"):
        get_settings()


def test_an_unknown_size_names_the_known_ones(monkeypatch):
    monkeypatch.setenv("MEDIMG_SIZE", "huge")
    with pytest.raises(InputError) as error:
        get_settings()
    assert all(size in str(error.value) for size in SIZES)


@pytest.mark.parametrize("present", [True, False])
def test_an_accelerator_is_taken_unless_the_cpu_is_forced(monkeypatch, present):
    found = torch.device("meta")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: present)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: found)
    assert find_device().type == ("meta" if present else "cpu")
    assert find_device("cpu").type == "cpu"


def test_importing_the_package_changes_nothing():
    code = """
import sys, warnings, socket
before = list(warnings.filters), set(sys.modules)
def refuse(*a, **k): raise AssertionError("network")
socket.socket.connect = refuse
import medimg_utils
assert list(warnings.filters) == before[0]
new = {name.split(".")[0] for name in set(sys.modules) - before[1]}
assert "torch" not in new and "IPython" not in new, new
"""
    subprocess.run([sys.executable, "-c", code], check=True)
