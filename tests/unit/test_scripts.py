"""Scripts as a new user calls them: what is wrong is said in one line."""

import importlib
import json

import pytest


def says(done, message):
    """One line of error that holds the message, no traceback, exit code 1."""
    assert done.exit_code == 1, done.output
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
    assert "Traceback" not in done.output
    return True


@pytest.mark.parametrize(
    ("script", "words", "message"),
    [
        ("verify", "siim {}/nowhere", "is no folder. Give the folder that holds"),
        ("verify", "brats {}/file", "is no folder. Give the folder that holds"),
        ("verify", "lungs {}", "'lungs' is no known layout; there are: siim, nih"),
        ("fetch_anatomy", "lungs", "brain, chest, knee"),
        (
            "simulate",
            "pneumothorax --out {}/file --patients 2 --seed 1",
            "is a file. Give the path of a folder",
        ),
        *(
            (
                "simulate",
                f"{case} --out {{}}/file/below --seed 1",
                "cannot take results",
            )
            for case in (
                "pneumothorax --patients 2",
                "knee --train 1 --valid 1",
                "brain --patients 1",
            )
        ),
        (
            "simulate",
            "pneumothorax --out {}/out --patients 0 --seed 1",
            "patients is 0",
        ),
        (
            "simulate",
            "pneumothorax --out {}/out --patients 2 --seed 1 --size 7",
            "size is 7 pixels",
        ),
        (
            "simulate",
            "pneumothorax --out {}/out --patients 2 --seed 1 --drain-rate 0.1 7",
            "rates of drains",
        ),
        (
            "simulate",
            "pneumothorax --out {}/out --patients 2 --seed 1 --positive-rate 2",
            "positive rate is 2",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_line(shell, tmp_path, script, words, message):
    (tmp_path / "file").touch()
    assert says(shell(script, *words.format(tmp_path).split()), message)
    assert [item.name for item in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("layout", ["siim", "nih", "mrnet", "kneemri", "brats", "msd"])
def test_an_empty_folder_is_a_problem_of_every_layout(shell, tmp_path, layout):
    done = shell("verify", layout, tmp_path, "--quiet")
    assert done.exit_code == 1
    assert "PROBLEM" in done.output
    assert done.output.endswith("1 problem\n")
    assert "Traceback" not in done.output


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("verify", "siim"),
        ("verify", "siim {} --loud"),
        ("fetch_anatomy", ""),
        ("simulate", "brain --patients 2"),
        ("simulate", "tiny lungs"),
    ],
)
def test_wrong_words_are_an_error_of_usage(shell, tmp_path, script, words):
    done = shell(script, *words.format(tmp_path).split())
    assert done.exit_code == 2
    assert "Usage" in done.stderr
    assert "Traceback" not in done.output


@pytest.mark.parametrize("use_case", ["pneumothorax", "knee", "brain"])
def test_training_that_is_interrupted_says_how_to_go_on(
    shell, tmp_path, monkeypatch, use_case
):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    module = importlib.import_module(f"medimg_utils.{use_case}.experiment")
    monkeypatch.setattr(module, "train", interrupted)
    done = shell("medimg_utils", "train", use_case, "--data", tmp_path, "--out", "run")
    assert done.exit_code == 130
    assert "--resume goes on with run" in done.output


def test_more_devices_than_there_are_is_one_line(shell, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.accelerator.device_count", lambda: 1)
    words = "--data", tmp_path, "--out", tmp_path / "run", "--devices", 2
    assert says(shell("medimg_utils", "train", "knee", *words), "this machine has 1")


def test_resuming_where_no_run_is_says_so(shell, tmp_path, monkeypatch):
    from medimg_utils.knee import experiment

    monkeypatch.setattr(experiment, "train", lambda *arguments, **options: {})
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stopped").mkdir()
    (tmp_path / "stopped/settings.json").write_text("{}")
    words = "train", "knee", "--data", tmp_path, "--resume", "--out"
    assert "holds no run" not in shell("medimg_utils", *words, "stopped").output
    assert (
        "mistyped holds no run to go on with"
        in shell("medimg_utils", *words, "mistyped").output
    )


def test_no_network_is_said_in_one_line(shell, tmp_path, monkeypatch):
    monkeypatch.setenv("MEDIMG_DATA", str(tmp_path))
    for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens there
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    done = shell("fetch_anatomy", "knee")
    assert says(done, "Check the network")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_the_tiny_release_is_made_anew_and_nothing_else_is(
    shell, tmp_path, monkeypatch
):
    from medimg_utils.pneumothorax import simulate

    monkeypatch.setenv("MEDIMG_DATA", str(tmp_path))
    small = simulate.Simulation(2, seed=1, size=64)
    monkeypatch.setitem(simulate.RELEASES, "tiny", small)
    made = []
    monkeypatch.setattr(
        simulate, "simulate_release", lambda out, *_, **__: made.append(out.exists())
    )
    out = tmp_path / "pneumothorax-tiny"
    for foreign, version, expected in (
        ([], simulate.VERSION, False),
        ([], simulate.VERSION + 1, True),  # simulate_release refuses it
        (["thesis.txt"], simulate.VERSION, None),
    ):
        out.mkdir(exist_ok=True)
        settings = json.loads(json.dumps(vars(small) | {"rates": vars(small.rates)}))
        note = json.dumps(settings | {"version": version})
        (out / "simulation.json").write_text(note)
        for name in foreign:
            (out / name).touch()
        made.clear()
        done = shell("simulate", "tiny", "pneumothorax")
        if expected is None:
            assert says(done, "thesis.txt")
            assert made == []
            assert (out / "simulation.json").exists()
        else:
            assert done.exit_code == 0, done.output
            assert made == [expected]
