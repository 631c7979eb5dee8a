import csv
import multiprocessing
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, Dataset

from medimg_utils import training
from medimg_utils.errors import InputError, NotFiniteError
from medimg_utils.io import differences
from medimg_utils.results import hardware
from medimg_utils.training import (
    BEST,
    LAST,
    RunError,
    device_share,
    each_loaded,
    epoch_batches,
    fit,
    learning_rate_at,
    load_tensors,
    put_weights,
    read_log,
    reduce_on_plateau,
    stable_seed,
    trained_on,
    warm_restart,
)


class Broken(Dataset):
    """Its second image cannot be read."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        if index == 1:
            raise RunError("film-1.dcm ends too early: fetch it again")
        return {"image": torch.zeros(3)}


@pytest.mark.parametrize("workers", [0, 1])
def test_what_a_loading_process_refuses_is_said_in_its_own_words(workers):
    batches = each_loaded(DataLoader(Broken(), num_workers=workers))
    assert next(batches)["image"].shape == (1, 3)
    with pytest.raises(RunError) as caught:
        next(batches)
    assert str(caught.value) == "film-1.dcm ends too early: fetch it again"


# ------------------------------------------------------------------ randomness and order


def test_an_epoch_takes_each_image_once_in_an_order_of_its_own():
    first = [
        index for batch in epoch_batches(10, 4, seed=0, epoch=0) for _, index in batch
    ]
    second = [
        index for batch in epoch_batches(10, 4, seed=0, epoch=1) for _, index in batch
    ]
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second
    assert [len(batch) for batch in epoch_batches(10, 4, seed=0, epoch=0)] == [4, 4, 2]
    assert {
        epoch for batch in epoch_batches(10, 4, seed=0, epoch=3) for epoch, _ in batch
    } == {3}


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_share_of_positives_is_kept(share):
    labels = np.arange(50) % 10 < 2
    batches = epoch_batches(50, 8, seed=0, epoch=0, labels=labels, positive_share=share)
    drawn = [index for batch in batches for _, index in batch]
    assert len(drawn) == 50
    assert labels[drawn].sum() == round(50 * share)
    counts = np.bincount(drawn, minlength=50)
    for group in (
        labels,
        ~labels,
    ):  # nobody is drawn twice before everybody was drawn once
        assert np.ptp(counts[group]) <= 1


def test_a_share_of_an_absent_class_is_refused():
    with pytest.raises(InputError, match="all 4 images are negative"):
        epoch_batches(4, 2, seed=0, epoch=0, labels=[0] * 4, positive_share=0.5)


@pytest.mark.parametrize("matched", [0.5, 1.0])
def test_matched_negatives_are_of_the_same_patient(matched):
    groups = [f"patient {k // 3}" for k in range(300)]
    labels = np.array([k % 3 == 0 and k < 240 for k in range(300)])  # 20 have none
    pairs = [
        (batch[k][1], batch[k + 1][1])
        for epoch in range(8)
        for batch in epoch_batches(
            300, 10, seed=1, epoch=epoch, labels=labels, groups=groups, matched=matched
        )
        for k in range(0, len(batch), 2)
    ]
    first, second = np.array(pairs).T
    assert labels[first].all()
    assert not labels[second].any()
    same = np.mean([groups[a] == groups[b] for a, b in pairs])
    assert same == pytest.approx(matched, abs=0.05)
    assert np.ptp(np.bincount(first, minlength=300)[labels]) <= 8  # one an epoch


def test_a_positive_without_a_negative_of_its_patient_gets_another():
    batches = epoch_batches(
        4, 2, seed=0, epoch=0, labels=[1, 1, 0, 0], groups="aabb", matched=1.0
    )
    assert all({a[1] < 2, b[1] < 2} == {True, False} for a, b in batches)


@pytest.mark.parametrize(("labels", "groups"), [([1, 1], "ab"), ([0, 1], None)])
def test_matching_without_a_partner_is_refused(labels, groups):
    with pytest.raises(InputError, match="matching needs"):
        epoch_batches(2, 2, seed=0, epoch=0, labels=labels, groups=groups, matched=1.0)


@pytest.mark.parametrize("n", [8, 9, 10, 11])
def test_a_matched_epoch_has_whole_pairs_and_as_many_batches_as_any(n):
    labels = [k % 2 for k in range(n)]
    keywords = {"labels": labels, "groups": [0] * n, "matched": 1.0}
    batches = epoch_batches(n, 4, seed=0, epoch=0, **keywords)
    assert len(batches) == len(epoch_batches(n, 4, seed=0, epoch=0))
    drawn = [labels[index] for batch in batches for _, index in batch]
    assert drawn == [1, 0] * ((n + 1) // 2)
    assert all(len(batch) % 2 == 0 for batch in batches)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"positive_share": 0.5}, "no share of positives beside it, not 0.5"),
        ({"batch_size": 3}, "even batch size, not 3"),
        ({"labels": [0, 1, 0]}, "4 images, but 3 labels"),
        ({"groups": "aabbc"}, "4 images, but 5 groups"),
        ({"matched": 0.0, "labels": [1], "positive_share": 0.5}, "but 1 labels"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes, message):
    plan = {"batch_size": 2, "labels": [0, 1, 0, 1], "groups": "aabb", "matched": 1.0}
    with pytest.raises(InputError, match=message):
        epoch_batches(4, seed=0, epoch=0, **(plan | changes))


@given(
    size=st.integers(1, 40),
    devices=st.integers(1, 9),
    together=st.sampled_from([1, 2]),
)
def test_devices_share_a_batch_and_keep_pairs(size, devices, together):
    batch = list(range(size * together))
    shares = [
        device_share(batch, rank, devices, together=together) for rank in range(devices)
    ]
    assert all(shares)
    assert {index for share in shares for index in share} == set(batch)
    lengths = [len(share) for share in shares]
    assert max(lengths) - min(lengths) <= together
    for share in shares:
        assert share == list(range(share[0], share[-1] + 1))
        assert share[0] % together == 0
        assert len(share) % together == 0
    if size >= devices:
        assert sum(lengths) == len(batch)


def test_learning_rate_rises_and_falls():
    rates = [learning_rate_at(step, 200, 1.0) for step in range(200)]
    peak = int(np.argmax(rates))
    assert rates[peak] == pytest.approx(1)
    assert (np.diff(rates[: peak + 1]) > 0).all()
    assert (np.diff(rates[peak + 1 :]) < 0).all()
    assert min(rates) > 0


def test_a_restart_leaves_the_first_part_as_it_would_be_alone():
    schedule = warm_restart(0.6, height=0.25)
    rates = [schedule(step, 200, 2.0, []) for step in range(200)]
    assert rates[:120] == [learning_rate_at(step, 120, 2.0) for step in range(120)]
    assert rates[120] > rates[119]
    assert max(rates[120:]) == pytest.approx(0.5)
    assert rates[-1] == pytest.approx(0.005, rel=0.05)


def test_seeds_differ_and_fit_the_generator():
    seeds = {stable_seed(a, b) for a in range(20) for b in range(20)}
    assert len(seeds) == 400
    torch.Generator().manual_seed(max(seeds))


# ---------------------------------------------------------------------------------- loop


class Points(Dataset):
    """Noisy points; the noise of a point depends on epoch and index alone."""

    def __init__(self, broken=()):
        self.broken = broken

    def __len__(self):
        return 20

    def __getitem__(self, key):
        epoch, index = key
        generator = torch.Generator().manual_seed(stable_seed(epoch, index))
        image = torch.randn(1, 8, 8, generator=generator)
        if index in self.broken:
            image[0, 0, 0] = float("nan")
        return {
            "image": image,
            "label": torch.tensor(float(index % 2)),
            "image_id": f"p{index}",
        }


class Small(nn.Module):
    """Convolution and dropout, so that a step draws random numbers."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Conv2d(1, 4, 3),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Flatten(),
            nn.Linear(144, 1),
        )

    def forward(self, x):
        return self.layers(x)[:, 0]


def loss(model, batch, done):
    assert 0 <= done < 1
    return nn.functional.binary_cross_entropy_with_logits(
        model(batch["image"]), batch["label"]
    )


def run(out, *, network=None, data=None, **changes):
    network = network or Small()
    options = {
        "loss": loss,
        "validate": lambda model: {"score": float(next(model.parameters()).sum())},
        "best_by": "score",
        "out": out,
        "settings": {"a": 1},
        "epochs": 3,
        "batch_size": 4,
        "learning_rate": 0.01,
        "accelerator": "cpu",
        "precision": "32-true",
        "workers": 0,
        "progress": False,
    }
    history = fit(network, data or Points(), **(options | changes))
    return network, history


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first) and set(
        first
    ) == set(second)


def test_a_run_repeats_and_leaves_its_files(tmp_path):
    first, history = run(tmp_path / "a")
    second, _ = run(tmp_path / "b", workers=2)
    assert same(first.state_dict(), second.state_dict())
    assert [row["epoch"] for row in history] == [1, 2, 3]
    with (tmp_path / "a" / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["loss"]) for row in rows] == [row["loss"] for row in history]
    assert {path.name for path in (tmp_path / "a").iterdir()} == {
        BEST, LAST, "log.csv", "settings.json"
    }  # fmt: skip


def test_without_an_epoch_the_network_is_kept_as_it_came(tmp_path):
    for resume in (False, True):
        network, history = run(tmp_path, epochs=0, resume=resume)
        assert history == []
        weights, facts = load_tensors(tmp_path / BEST)
        assert same(weights, Small().state_dict())
        assert same(network.state_dict(), weights)
        score = float(next(network.parameters()).detach().sum())
        assert facts["best"] == {"epoch": 0, "by": "score", "value": score}


def test_a_log_names_what_each_epoch_ran_on(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "hardware", lambda device: f"a fast {device}")
    run(tmp_path, epochs=1)
    monkeypatch.undo()
    run(tmp_path, epochs=3, resume=True)
    rows = read_log(tmp_path)
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert trained_on(rows) == f"a fast cpu, then {hardware('cpu')}"


def test_the_best_epoch_is_kept(tmp_path):
    marks = iter([0.2, 0.9, 0.3])
    weights = []

    def validate(model):
        weights.append(
            {name: value.clone() for name, value in model.module.state_dict().items()}
        )
        return {"score": next(marks)}

    run(tmp_path, validate=validate, extra={"more": torch.arange(3)})
    best, facts = load_tensors(tmp_path / BEST)
    assert torch.equal(best.pop("more"), torch.arange(3))
    assert same(best, weights[1])
    assert facts["best"]["epoch"] == 2


def test_an_undefined_mark_still_keeps_an_epoch(tmp_path):
    run(tmp_path, validate=lambda model: {"score": float("nan")})
    assert load_tensors(tmp_path / BEST)[1]["best"]["epoch"] == 1


class Stop(Exception):
    pass


@pytest.mark.parametrize("last_step", [1, 3, 5, 7, 14])
def test_a_run_stopped_anywhere_resumes_to_the_same_weights(tmp_path, last_step):
    whole, history = run(tmp_path / "whole", save_every=2)
    count = 0

    def stopping(model, batch, done):
        nonlocal count
        count += 1
        if count > last_step:
            raise Stop
        return loss(model, batch, done)

    with pytest.raises(Stop):
        run(tmp_path / "stopped", loss=stopping, save_every=2)
    resumed, again = run(tmp_path / "stopped", resume=True, save_every=2)
    assert same(whole.state_dict(), resumed.state_dict())
    for name in (BEST, LAST):
        first, second = (
            load_tensors(tmp_path / folder / name)[0] for folder in ("whole", "stopped")
        )
        assert same(first, second), name
    assert [row["loss"] for row in again] == [row["loss"] for row in history]


def go_on(out):
    run(out, resume=True, save_every=1, epochs=20)


def test_a_process_killed_again_and_again_ends_with_the_same_weights(tmp_path):
    """SIGKILL at random moments, with a checkpoint after every step, so writes are hit too."""
    whole, out = tmp_path / "whole", tmp_path / "killed"
    go_on(whole)
    linux = sys.platform == "linux"
    context = multiprocessing.get_context("forkserver" if linux else "spawn")
    if linux:  # copies of a process that has imported them
        context.set_forkserver_preload(["medimg_utils.training", "lightning_fabric"])
    random = np.random.default_rng()
    killed = 0
    for _ in range(5):
        process = context.Process(target=go_on, args=(out,))
        process.start()
        while process.is_alive() and not (out / LAST).is_file():
            time.sleep(0.05)
        before = (out / LAST).stat().st_mtime_ns
        while process.is_alive() and (out / LAST).stat().st_mtime_ns == before:
            time.sleep(0.005)  # wait until it has gone on from where it was
        if killed < 3:
            time.sleep(random.uniform(0, 0.1))
            process.kill()
        process.join()
        if process.exitcode == 0:
            break
        killed += 1
    assert killed == 3
    assert not list(out.glob(".partial-*"))
    assert process.exitcode == 0
    first, second = (load_tensors(folder / LAST)[0] for folder in (whole, out))
    assert same(first, second)


class Linear(nn.Module):
    """Draws nothing, and knows nothing of the others in its batch."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.weights = nn.Linear(64, 1)

    def forward(self, x):
        return self.weights(x.flatten(1))[:, 0]


def train_together(out, devices):
    for stage in ("first", "second"):  # as use cases do that train one after the other
        network, _ = run(out / stage, network=Linear(), devices=devices)
        stored = load_tensors(out / stage / LAST)[0]
        assert torch.equal(stored["network.weights.weight"], network.weights.weight)


# A second device starts its process by calling the script anew.
SCRIPT = """
import importlib.util
from pathlib import Path

spec = importlib.util.spec_from_file_location("toy", {file!r})
toy = importlib.util.module_from_spec(spec)
spec.loader.exec_module(toy)
toy.train_together(Path({out!r}), devices=2)
"""


def test_two_devices_learn_what_one_learns(tmp_path):
    one, two, script = tmp_path / "one", tmp_path / "two", tmp_path / "together.py"
    train_together(one, devices=1)
    script.write_text(SCRIPT.format(file=__file__, out=str(two)))
    subprocess.run(
        [sys.executable, script], check=True, stderr=subprocess.PIPE, timeout=120
    )
    for stage in ("first", "second"):
        weights = [load_tensors(out / stage / LAST)[0] for out in (one, two)]
        torch.testing.assert_close(*weights, atol=1e-5, rtol=1e-4)
        losses = [[row["loss"] for row in read_log(out / stage)] for out in (one, two)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_the_time_before_a_stop_counts(tmp_path):
    def slow(model, batch, done):
        time.sleep(0.05)
        return loss(model, batch, done)

    def stopping(model, batch, done):
        if done > 0.6:
            raise KeyboardInterrupt
        return slow(model, batch, done)

    options = {"epochs": 1, "batch_size": 1, "save_every": 1}
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, loss=stopping, **options)
    _, history = run(tmp_path, loss=slow, resume=True, **options)
    assert history[0]["seconds"] > 0.05 * len(Points())


def test_a_finished_run_resumes_to_itself(tmp_path):
    _, history = run(tmp_path)
    again, same_history = run(tmp_path, resume=True)
    assert same_history == history
    weights = load_tensors(tmp_path / LAST)[0]
    assert torch.equal(weights["network.layers.4.bias"], again.layers[4].bias)


def test_a_folder_with_a_run_is_not_overwritten(tmp_path):
    run(tmp_path)
    with pytest.raises(RunError, match="already holds a run"):
        run(tmp_path)
    with pytest.raises(RunError, match="a is 1 and not 2"):
        run(tmp_path, resume=True, settings={"a": 2})


@pytest.mark.parametrize(
    ("name", "resume"),
    [
        ("settings.json", False), ("log.csv", False), (BEST, False),
        ("settings.json", True),
    ],
)  # fmt: skip
def test_somebody_elses_files_are_not_overwritten(tmp_path, name, resume):
    theirs = tmp_path / name
    theirs.write_text('{"window": "dark"}')
    with pytest.raises(RunError, match=rf"{name}.* Give another folder"):
        run(tmp_path, resume=resume)
    assert theirs.read_text() == '{"window": "dark"}'


def test_a_run_stopped_before_its_first_checkpoint_goes_on(tmp_path):
    _, history = run(tmp_path / "whole")
    stopped = tmp_path / "stopped"
    stopped.mkdir()
    (stopped / "settings.json").write_bytes(
        (tmp_path / "whole" / "settings.json").read_bytes()
    )
    _, again = run(stopped, resume=True)
    assert [row["loss"] for row in again] == [row["loss"] for row in history]
    (stopped / LAST).unlink()
    with pytest.raises(RunError, match="a is 1 and not 2"):
        run(stopped, resume=True, settings={"a": 2})


def test_nan_stops_and_names_the_batch(tmp_path):
    with pytest.raises(NotFiniteError, match=r"epoch 1, batch \d.*not finite in: p7\."):
        run(tmp_path / "image", data=Points(broken=(7,)))

    def exploding(model, batch, done):
        value = loss(model, batch, done)
        return value / 0 if done > 0.5 else value

    network = Small()
    with pytest.raises(NotFiniteError, match=r"epoch 2.*p\d+, p\d+"):
        run(tmp_path / "loss", network=network, loss=exploding)
    assert all(torch.isfinite(value).all() for value in network.state_dict().values())
    kept, _ = load_tensors(tmp_path / "loss" / LAST)
    assert all(torch.isfinite(value).all() for value in kept.values())


def test_training_leaves_the_global_generator_alone(tmp_path):
    network = Small()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    run(tmp_path, network=network)
    assert torch.equal(torch.rand(3), expected)


def test_a_damaged_checkpoint_says_so(tmp_path):
    run(tmp_path)
    whole = (tmp_path / LAST).read_bytes()
    (tmp_path / LAST).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RunError, match="cannot be read as a checkpoint"):
        run(tmp_path, resume=True)


# ------------------------------------------------------------------------------- options


def test_the_plateau_rule_is_that_of_torch():
    random = np.random.default_rng(0)
    losses = np.round(2 + np.exp(-np.arange(60) / 8) + 0.05 * random.random(60), 3)
    weight = torch.nn.Parameter(torch.zeros(1))
    adam = torch.optim.Adam([weight], lr=1.0)
    known = torch.optim.lr_scheduler.ReduceLROnPlateau(
        adam, patience=2, factor=0.3, eps=0
    )
    schedule = reduce_on_plateau("loss", patience=2, factor=0.3)
    log = []
    for value in losses:
        known.step(value)
        log.append({"loss": float(value)})
        expected = adam.param_groups[0]["lr"]
        assert schedule(0, 1, 1.0, log) == pytest.approx(expected, rel=1e-9)
    assert expected < 0.1  # it was lowered several times


def test_an_undefined_loss_counts_as_no_progress():
    schedule = reduce_on_plateau("loss", patience=1, factor=0.5)
    assert schedule(0, 1, 1.0, [{"loss": None}, {"loss": 1.0}, {"loss": None}]) == 1.0
    assert schedule(0, 1, 1.0, [{"loss": 1.0}, {"loss": None}, {"loss": None}]) == 0.5


class Stacks(Dataset):
    """Exams of 1 to 5 slices: they cannot be stacked into one tensor."""

    def __len__(self):
        return 10

    def __getitem__(self, key):
        epoch, index = key
        generator = torch.Generator().manual_seed(stable_seed(epoch, index))
        image = torch.randn(1 + index % 5, 1, 8, 8, generator=generator)
        image[0] += index % 2
        return {"image": image, "label": float(index % 2), "image_id": f"e{index}"}


def as_lists(items):
    return {
        "image": [item["image"] for item in items],
        "label": torch.tensor([item["label"] for item in items]),
        "image_id": [item["image_id"] for item in items],
    }


def stack_loss(model, batch, done):
    logits = torch.stack([model(image).amax() for image in batch["image"]])
    return nn.functional.binary_cross_entropy_with_logits(logits, batch["label"])


@pytest.mark.parametrize("workers", [0, 1])
def test_items_of_any_number_of_slices_on_a_plateau_resume(tmp_path, workers):
    options = {
        "data": Stacks(),
        "loss": stack_loss,
        "collate": as_lists,
        "validate": lambda model: {"val_loss": 1.0},  # from the start a plateau
        "best_by": "val_loss",
        "lowest": True,
        "algorithm": torch.optim.Adam,
        "schedule": reduce_on_plateau("val_loss", patience=1, factor=0.1),
        "clip": float("inf"),
        "batch_size": 1,
        "epochs": 5,
        "save_every": 3,
        "workers": workers,
    }
    whole, history = run(tmp_path / "whole", **options)
    rates = [row["learning_rate"] for row in history]
    assert rates == pytest.approx([0.01, 0.01, 0.01, 0.001, 0.001])
    count = 0

    def stopping(model, batch, done):
        nonlocal count
        count += 1
        if count > 38:  # in the fourth epoch, after the rate has fallen
            raise Stop
        return stack_loss(model, batch, done)

    with pytest.raises(Stop):
        run(tmp_path / "stopped", **(options | {"loss": stopping}))
    resumed, again = run(tmp_path / "stopped", resume=True, **options)
    assert same(whole.state_dict(), resumed.state_dict())
    assert [row["loss"] for row in again] == [row["loss"] for row in history]


def test_a_broken_slice_is_named_in_a_list_of_images(tmp_path):
    class Broken(Stacks):
        def __getitem__(self, key):
            item = super().__getitem__(key)
            if key[1] == 4:
                item["image"][0, 0, 0, 0] = float("nan")
            return item

    options = {"data": Broken(), "loss": stack_loss, "collate": as_lists}
    with pytest.raises(NotFiniteError, match=r"not finite in: e4\."):
        run(tmp_path, **options)


def test_the_lowest_mark_can_be_the_best(tmp_path):
    marks = iter([float("nan"), -3.0, -5.0, 2.0])
    validate = {"validate": lambda model: {"score": next(marks)}}
    run(tmp_path / "low", lowest=True, epochs=4, **validate)
    best = load_tensors(tmp_path / "low" / BEST)[1]["best"]
    assert (best["epoch"], best["value"]) == (3, -5.0)
    marks = iter([float("nan"), -3.0, -5.0])
    run(tmp_path / "high", **validate)
    assert load_tensors(tmp_path / "high" / BEST)[1]["best"]["epoch"] == 2


def test_the_length_of_the_gradient_can_be_left_alone(tmp_path):
    """One step of plain gradient descent from the same weights, with and without."""
    moved = {}
    for clip in (1e-3, float("inf")):
        network = Small()
        before = {name: value.clone() for name, value in network.state_dict().items()}
        run(
            tmp_path / str(clip),
            network=network,
            clip=clip,
            epochs=1,
            batch_size=20,
            algorithm=lambda weights, lr, weight_decay: torch.optim.SGD(weights, lr),
            schedule=lambda step, steps, peak, history: 1.0,
        )
        moved[clip] = torch.cat(
            [(network.state_dict()[name] - before[name]).flatten() for name in before]
        )
    short, long = moved[1e-3], moved[float("inf")]
    assert short.norm() == pytest.approx(1e-3, rel=1e-3)
    assert long.norm() > 0.01
    assert nn.functional.cosine_similarity(short, long, dim=0) > 0.999


def test_a_setting_that_is_new_and_none_is_a_change():
    before, now = {"experiment": {"a": 1}}, {"experiment": {"a": 1, "clip": None}}
    assert differences(before, now) == "experiment clip differs"
    assert not differences(now, now)


def test_weights_of_another_network_are_refused(tmp_path):
    other = torch.nn.Linear(3, 2).state_dict()
    with pytest.raises(
        RunError, match=r"best\.safetensors do not belong.*size mismatch"
    ):
        put_weights(torch.nn.Linear(4, 2), other, tmp_path / "best.safetensors")
