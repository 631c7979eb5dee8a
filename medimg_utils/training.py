"""One readable training loop, on any device, that survives being killed at any moment.

Nothing in the loop remembers randomness. The order of the images follows from (seed,
epoch), an image's augmentation from (seed, epoch, image), and whatever a network draws
in a step from (seed, step). A checkpoint therefore needs only weights, optimiser and
the number of the step, all in one file that is replaced in one move. Training that was
killed and resumed ends with the same weights as training that was not: bit for bit on a
CPU.
"""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from medimg_utils.errors import InputError, NotFiniteError
from medimg_utils.io import (
    atomic_path,
    differences,
    to_json,
    write_json_atomic,
    write_table_atomic,
)
from medimg_utils.results import hardware
from medimg_utils.settings import count_cores

Batch = dict[str, Any]
Item = TypeVar("Item")
# (step, steps, peak, rows of the log so far) → learning rate
Schedule = Callable[[int, int, float, Sequence[Mapping[str, Any]]], float]
LAST, BEST, LOG = "last.safetensors", "best.safetensors", "log.csv"
SETTINGS = "settings.json"


class RunError(InputError):
    """A run's folder cannot be used as asked."""


# ----------------------------------------------------------------- randomness and order


def stable_seed(*parts: int) -> int:
    """One seed from several numbers, the same in every process and on every machine.

    >>> stable_seed(0, 1) == stable_seed(0, 1), stable_seed(0, 1) == stable_seed(1, 0)
    (True, False)
    """
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:7], "big")


def epoch_batches(
    n: int,
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    labels: ArrayLike | None = None,
    positive_share: float | None = None,
    groups: Sequence[Any] | None = None,
    matched: float = 0.0,
) -> list[list[tuple[int, int]]]:
    """Which images make up each batch of an epoch, as (epoch, index) pairs.

    Args:
        n: images in the training set.
        batch_size: images in a batch; the last batch holds the rest.
        seed: of the run.
        epoch: counted from 0.
        labels: (n,) 0 or 1; needed with `positive_share`.
        positive_share: share of positives among the n draws of an epoch. The rarer
            class is repeated, the other one takes turns from epoch to epoch. None takes
            each image once.
        groups: (n,) the patient of each image; needed with `matched`.
        matched: share of the positives that are followed, in their batch, by a negative
            of the same group, where there is one; the other positives are followed by a
            negative of any group. Half of the draws are positive then, so it needs even
            batches, takes no `positive_share`, and draws n + 1 where n is odd.

    Raises:
        InputError: settings that contradict each other or the data.
    """
    for name, values in (("labels", labels), ("groups", groups)):
        if values is not None and len(values) != n:  # type: ignore[arg-type]
            raise InputError(f"there are {n} images, but {len(values)} {name}.")  # type: ignore[arg-type]
    random = np.random.default_rng(stable_seed(seed, epoch))
    order: ArrayLike
    if matched:
        if positive_share is not None or batch_size % 2:
            raise InputError(
                "matching fills batches with pairs of a positive and a negative: it "
                f"needs an even batch size, not {batch_size}, and no share of positives "
                f"beside it, not {positive_share}."
            )
        order = _matched_order(n, random, np.asarray(labels, bool), groups, matched)
    elif positive_share is None:
        order = random.permutation(n)
    else:
        classes = np.asarray(labels).astype(bool)
        wanted = {True: round(positive_share * n), False: n - round(positive_share * n)}
        chosen = []
        for value, count in wanted.items():
            members = np.flatnonzero(classes == value)
            if not members.size:
                raise InputError(
                    f"a share of {positive_share:.0%} positives was asked for, but all "
                    f"{n} images are {'negative' if value else 'positive'}."
                )
            rounds = math.ceil(count / members.size)
            turns = [random.permutation(members) for _ in range(rounds)]
            chosen.append(np.concatenate([members[:0], *turns])[:count])
        order = random.permutation(np.concatenate(chosen))
    drawn = np.asarray(order).tolist()
    return [
        [(epoch, index) for index in drawn[start : start + batch_size]]
        for start in range(0, len(drawn), batch_size)
    ]


def _matched_order(
    n: int,
    random: np.random.Generator,
    labels: NDArray[np.bool_],
    groups: Sequence[Any] | None,
    matched: float,
) -> list[int]:
    """Positive, negative, positive, negative ...; see `epoch_batches`."""
    positives = np.flatnonzero(labels).tolist()
    negatives = np.flatnonzero(~labels).tolist()
    if groups is None or not positives or not negatives:
        raise InputError(
            f"matching needs the groups, and images of both classes, but there are "
            f"{len(positives)} positives and {len(negatives)} negatives."
        )
    partners: dict[Any, list[int]] = {}
    for index in negatives:
        partners.setdefault(groups[index], []).append(index)
    pairs = math.ceil(n / 2)
    rounds = math.ceil(pairs / len(positives))
    order: list[int] = []
    for index in (k for _ in range(rounds) for k in random.permutation(positives)):
        same = partners.get(groups[int(index)]) if random.random() < matched else None
        order += [int(index), int(random.choice(same or negatives))]
    return order[: 2 * pairs]


def device_share(
    batch: list[Item], rank: int, devices: int, *, together: int = 1
) -> list[Item]:
    """The part of a batch that one of several devices works on.

    Parts are contiguous and never empty: a device without work would keep the others
    waiting. So the last batch of an epoch, where it is too small for all devices, gives
    some of it to more than one.

    Args:
        batch: images of the whole step.
        rank: of the device, counted from 0.
        devices: how many there are.
        together: images that follow each other and stay together; 2 where they are
            matched.

    >>> [device_share([1, 2, 3, 4, 5, 6], rank, 2, together=2) for rank in (0, 1)]
    [[1, 2], [3, 4, 5, 6]]
    >>> [device_share([1, 2], rank, 3) for rank in range(3)]
    [[1], [2], [1]]
    """
    units = math.ceil(len(batch) / together)
    if units < devices:
        first, last = rank % units, rank % units + 1
    else:
        first, last = (units * k // devices for k in (rank, rank + 1))
    return batch[first * together : last * together]


def learning_rate_at(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over the first 5 % of the steps, then half a cosine down to 1 %.

    >>> [round(learning_rate_at(step, 100, 1.0), 3) for step in (0, 4, 5, 99)]
    [0.2, 1.0, 1.0, 0.01]
    """
    warm = max(1, round(0.05 * steps))
    if step < warm:
        return peak * (step + 1) / warm
    done = (step - warm) / max(1, steps - warm)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))


def warm_up_and_cosine(
    step: int, steps: int, peak: float, history: Sequence[Mapping[str, Any]]
) -> float:
    """`learning_rate_at`, whatever happened so far."""
    return learning_rate_at(step, steps, peak)


def warm_restart(after: float, height: float = 0.5) -> Schedule:
    """`learning_rate_at` twice: what one run has found, a second, lower one refines.

    Source: Loshchilov and Hutter 2017, https://arxiv.org/abs/1608.03983.

    Args:
        after: share of the steps that belong to the first time.
        height: peak of the second time over that of the first.

    >>> schedule = warm_restart(0.5)
    >>> [round(schedule(step, 200, 1.0, []), 3) for step in (4, 99, 104, 199)]
    [1.0, 0.01, 0.5, 0.005]
    """

    def schedule(
        step: int, steps: int, peak: float, history: Sequence[Mapping[str, Any]]
    ) -> float:
        first = round(after * steps)
        if step < first:
            return learning_rate_at(step, first, peak)
        return learning_rate_at(step - first, steps - first, height * peak)

    return schedule


def reduce_on_plateau(by: str, *, patience: int, factor: float) -> Schedule:
    """Lower the rate each time a number of the log has stopped falling.

    It is multiplied with `factor` after more than `patience` epochs in a row that did
    not bring `by` below its lowest value by 0.01 % or more (the rule of
    `torch.optim.lr_scheduler.ReduceLROnPlateau`). The rate follows from the log alone,
    so a run that was stopped goes on with the same rates.

    >>> schedule = reduce_on_plateau("val_loss", patience=1, factor=0.1)
    >>> log = [{"val_loss": value} for value in (3, 2, 2, 2)]
    >>> [schedule(0, 1, 1.0, log[:epoch]) for epoch in (2, 3, 4)]
    [1.0, 1.0, 0.1]
    """

    def schedule(
        step: int, steps: int, peak: float, history: Sequence[Mapping[str, Any]]
    ) -> float:
        rate, lowest, waited = peak, math.inf, 0
        for row in history:
            value = math.inf if row[by] is None else row[by]  # NaN is null in the log
            if value < lowest * (1 - 1e-4):
                lowest, waited = value, 0
            else:
                waited += 1
            if waited > patience:
                rate, waited = rate * factor, 0
        return rate

    return schedule


def best_precision(device: torch.device) -> str:
    """`bf16-mixed` where the device computes in bfloat16 itself, else `32-true`.

    Emulated bfloat16 is slower than float32, and float16 would need a loss scaler,
    whose state is one more thing to save.
    """
    if device.type == "cpu":
        native = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
    else:
        module = torch.get_device_module(device)
        try:
            native = module.is_bf16_supported(including_emulation=False)
        except (AttributeError, TypeError):
            native = False
    return "bf16-mixed" if native else "32-true"


# -------------------------------------------------------------------------- checkpoints


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]
) -> None:
    """Write tensors, with facts as JSON in the header, as one safetensors file."""
    ready = {
        name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()
    }
    with atomic_path(path) as partial:
        partial.write_bytes(save(ready, metadata={"facts": json.dumps(to_json(facts))}))


def fingerprint(arrays: Iterable[ArrayLike]) -> str:
    """Short SHA-256 of arrays: settings of a run whose data have no release to name.

    >>> fingerprint([np.zeros(2)]) == fingerprint([np.zeros(1), np.zeros(1)])
    False
    """
    found = hashlib.sha256()
    for array in map(np.asarray, arrays):
        found.update(f"{array.dtype}{array.shape}".encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()[:16]


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_tensors` wrote: tensors on the CPU, and the facts.

    Raises:
        RunError: the file is missing or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {}).get("facts", "{}"))
        return load_file(path), facts
    except Exception as error:  # safetensors has an error class of its own
        raise RunError(
            f"{path} cannot be read as a checkpoint ({error}). Give the folder of a "
            "finished run."
        ) from error


def load_weights(path: Path) -> dict[str, Tensor]:
    """Weights of a network in float32, also where they were stored in half precision.

    Raises:
        RunError: the file is missing or damaged.
    """
    return {name: value.float() for name, value in load_tensors(path)[0].items()}


def put_weights(network: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Give a network the weights of a file.

    Raises:
        RunError: they are those of another network.
    """
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        why = str(error).splitlines()[-1].strip()
        raise RunError(
            f"the weights in {path} do not belong to the settings beside them "
            f"({why[:150]}). Copy or train both again."
        ) from error


def _pack(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Weights and optimiser state under flat names."""
    tensors = {f"network.{name}": value for name, value in network.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            tensors[f"optimizer.{index}.{name}"] = torch.as_tensor(value)
    return tensors


def _unpack(
    tensors: Mapping[str, Tensor], network: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """The inverse of `_pack`, in place."""
    weights, states = {}, {}  # type: ignore[var-annotated]
    for key, value in tensors.items():
        kind, name = key.split(".", 1)
        if kind == "network":
            weights[name] = value
        else:
            index, name = name.split(".", 1)
            states.setdefault(int(index), {})[name] = value
    network.load_state_dict(weights)
    optimizer.load_state_dict(
        {"state": states, "param_groups": optimizer.state_dict()["param_groups"]}
    )


def read_log(run: Path) -> list[dict[str, Any]]:
    """The rows of a run's `log.csv`: numbers (NaN where undefined), and the hardware."""
    with (run / LOG).open(newline="", encoding="utf-8") as file:
        return [
            {
                key: value if key == "hardware" else float(value or "nan")
                for key, value in row.items()
            }
            for row in csv.DictReader(file)
        ]


def trained_on(history: Sequence[Mapping[str, Any]]) -> str:
    """What the epochs of a log ran on; a run may be resumed on another machine.

    >>> trained_on([{"hardware": name} for name in ("a GPU", "a GPU", "2 CPU cores")])
    'a GPU, then 2 CPU cores'
    """
    return ", then ".join(dict.fromkeys(row["hardware"] for row in history))


def minutes_of(history: Sequence[Mapping[str, Any]]) -> float:
    """How long the epochs of a log took.

    >>> minutes_of([{"seconds": 40}, {"seconds": 50}])
    1.5
    """
    return sum(float(row["seconds"]) for row in history) / 60


def refuse_run(out: Path, *, below: bool = True) -> None:
    """Refuse a folder that holds a run, or files named like its own, before any work.

    Args:
        out: the folder; it need not exist.
        below: look for checkpoints in its folders too.

    Raises:
        RunError: there is a checkpoint in it, or a file that training would write over.
    """
    names = (LAST, SETTINGS, LOG, BEST, f"{Path(BEST).stem}.json")
    files = [out / name for name in names] + (list(out.rglob(LAST)) if below else [])
    found = next((file for file in files if file.exists()), None)
    if found is not None:
        raise RunError(
            f"{out} already holds a run, or something else with a file {found.name}. "
            "Give another folder, or --resume to go on with a run."
        )


# --------------------------------------------------------------------------------- loop


def count_workers(workers: int | None) -> int:
    """Processes that load images: one fewer than the cores, at most four, where None."""
    return min(4, max(1, count_cores() - 1)) if workers is None else workers


def each_loaded(batches: Iterable[Item]) -> Iterator[Item]:
    """What a loader gives; where one of its processes refuses an input, only its words.

    PyTorch puts the traceback of the process before them.

    Raises:
        InputError: of the kind and with the message that the process raised.
    """
    try:
        yield from batches
    except InputError as error:
        kind = type(error)
        if not str(error).startswith(f"Caught {kind.__name__} in DataLoader worker"):
            raise
        last = re.split(rf"^[\w.]*{kind.__name__}: ", str(error), flags=re.MULTILINE)[
            -1
        ]
        raise kind(last.strip()) from error


def fit(
    network: nn.Module,
    data: Dataset[Batch],
    *,
    loss: Callable[[nn.Module, Batch, float], Tensor],
    validate: Callable[[nn.Module], dict[str, float]],
    best_by: str,
    out: Path,
    settings: Mapping[str, Any],
    epochs: int,
    batch_size: int,
    learning_rate: float,
    weight_decay: float = 0.01,
    seed: int = 0,
    labels: ArrayLike | None = None,
    positive_share: float | None = None,
    groups: Sequence[Any] | None = None,
    matched: float = 0.0,
    lowest: bool = False,
    algorithm: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW,
    schedule: Schedule = warm_up_and_cosine,
    clip: float = 1.0,
    collate: Callable[[list[Batch]], Batch] | None = None,
    extra: Mapping[str, Tensor] | None = None,
    resume: bool = False,
    accelerator: str = "auto",
    devices: int | str = 1,
    precision: str | None = None,
    workers: int | None = None,
    save_every: int = 200,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Train a network and keep the best and the last state.

    The folder `out` then holds:

    | file | content |
    |---|---|
    | `best.safetensors` | weights of the epoch with the best `best_by`; `extra` |
    | `last.safetensors` | weights, optimiser and position of the newest checkpoint |
    | `log.csv` | per epoch: loss, rate, what `validate` returned, seconds, hardware |
    | `settings.json` | the settings |

    Args:
        network: trained in place.
        data: items are dicts with an `image_id`; indexed by the pairs of
            `epoch_batches`.
        loss: (network, batch, share of training done) → scalar.
        validate: network → named numbers, after every epoch.
        best_by: which of these numbers chooses the best epoch; see `lowest`.
        out: folder of the run; see `resume`.
        settings: what the weights depend on, stored with them. Resuming with others is
            refused.
        epochs: passes over the training set; after none of them the network is measured
            and kept as it came.
        batch_size: images in a step, over all devices together.
        learning_rate: the peak; see `schedule`.
        weight_decay: of `algorithm`.
        seed: of order, augmentation and dropout; initial weights are the caller's.
        labels: see `epoch_batches`.
        positive_share: see `epoch_batches`.
        groups: see `epoch_batches`.
        matched: see `epoch_batches`.
        lowest: the best epoch has the lowest `best_by`, not the highest.
        algorithm: `torch.optim.AdamW`, or another that takes `lr` and `weight_decay`.
        schedule: the learning rate of a step; see `warm_up_and_cosine` and
            `reduce_on_plateau`.
        clip: the gradient is shortened to this length; infinity leaves it.
        collate: list of items → batch, where items differ in size; `image` may then be
            a list with one tensor an image.
        extra: more tensors to keep beside the best weights.
        resume: go on from `last.safetensors` where there is one. Without it a folder
            that already holds a run is refused.
        accelerator: `auto` takes what the machine has, `cpu` forces the CPU.
        devices: how many, or `auto`; more than one trains data-parallel.
        precision: of Lightning Fabric; `best_precision` of the device where None.
        workers: processes that load images; see `count_workers`.
        save_every: steps between checkpoints inside an epoch.
        progress: show a bar.

    Returns:
        The rows of the log.

    Raises:
        RunError: the folder holds another run, or one that was not to be resumed.
        NotFiniteError: names the batch. The last checkpoint on disk is from before it.
    """
    from lightning_fabric import Fabric  # only here: it takes two seconds

    # it tells the precision of each network anew, which the settings tell
    logging.getLogger("lightning_fabric.utilities.rank_zero").setLevel(logging.WARNING)

    fabric = Fabric(accelerator=accelerator, devices=devices, precision=precision)  # type: ignore[arg-type]
    if precision is None:
        chosen = best_precision(fabric.device)
        fabric = Fabric(accelerator=accelerator, devices=devices, precision=chosen)  # type: ignore[arg-type]
    fabric.launch()
    workers = count_workers(workers)

    volumes = any(weight.ndim == 5 for weight in network.parameters())
    network.to(memory_format=torch.channels_last_3d if volumes else torch.channels_last)
    plain = algorithm(network.parameters(), lr=learning_rate, weight_decay=weight_decay)
    model, optimizer = fabric.setup(network, plain)

    n = len(data)  # type: ignore[arg-type]
    per_epoch = math.ceil(n / batch_size)
    settings = to_json(settings)
    state: dict[str, Any] = {
        "step": 0, "loss_sum": 0.0, "seconds": 0.0, "best": None, "history": [],
        "settings": settings,
    }  # fmt: skip
    if not resume:
        refuse_run(out, below=False)
    if (out / LAST).is_file():
        tensors, stored = load_tensors(out / LAST)
        state |= stored
        _check_same(out, state["settings"], settings)
        _unpack(tensors, network, plain)
        if fabric.is_global_zero:
            for left in out.glob(".partial-*"):  # by a process that was killed
                left.unlink(missing_ok=True)
    else:
        _check_settings(out / SETTINGS, settings)
        fabric.barrier()  # nobody writes before all have looked
        if fabric.is_global_zero:
            write_json_atomic(out / SETTINGS, settings)

    def checkpoint() -> None:
        if fabric.is_global_zero:
            save_tensors(out / LAST, _pack(network, plain), state)

    def measure() -> dict[str, float]:
        model.eval()
        with torch.inference_mode():
            return validate(model)

    def keep_if_better(mark: float, epoch: int) -> None:
        if state["best"] and not _better(mark, state["best"]["value"], lowest):
            return
        value_now = mark if math.isfinite(mark) else None  # only at the start
        state["best"] = {"epoch": epoch, "by": best_by, "value": value_now}
        if fabric.is_global_zero:
            kept = {**network.state_dict(), **(extra or {})}
            save_tensors(
                out / BEST, kept, {"settings": settings, "best": state["best"]}
            )

    if not epochs:
        keep_if_better(measure()[best_by], 0)
    order = _Order()
    loader = DataLoader(
        data,
        batch_sampler=order,
        num_workers=workers,
        collate_fn=collate,
        persistent_workers=workers > 0,
    )
    ready: Any = fabric.setup_dataloaders(loader, use_distributed_sampler=False)
    first_epoch = state["step"] // per_epoch
    bar = tqdm(
        total=epochs * per_epoch,
        initial=state["step"],
        desc="train",
        disable=not (progress and fabric.is_global_zero),
    )
    with bar, torch.random.fork_rng(devices=[]):
        for epoch in range(first_epoch, epochs):
            # what an epoch took before it was stopped counts
            started = time.perf_counter() - state["seconds"]
            batches = epoch_batches(
                n,
                batch_size,
                seed=seed,
                epoch=epoch,
                labels=labels,
                positive_share=positive_share,
                groups=groups,
                matched=matched,
            )
            done = (
                state["step"] - epoch * per_epoch
            )  # batches of this epoch before the kill
            order.batches = [
                device_share(
                    batch,
                    fabric.global_rank,
                    fabric.world_size,
                    together=2 if matched else 1,
                )
                for batch in batches[done:]
            ]
            model.train()
            for batch in each_loaded(ready):
                torch.manual_seed(stable_seed(seed, state["step"]))
                rate = schedule(
                    state["step"], epochs * per_epoch, learning_rate, state["history"]
                )
                for group in optimizer.param_groups:
                    group["lr"] = rate
                value = loss(model, batch, state["step"] / (epochs * per_epoch))
                optimizer.zero_grad()
                fabric.backward(value)
                length: Any = fabric.clip_gradients(
                    model, optimizer, max_norm=clip, error_if_nonfinite=False
                )
                number = value.item()
                place = state["step"] - epoch * per_epoch
                _check_finite(number, float(length), batch, epoch, place)
                optimizer.step()
                state["step"] += 1
                everywhere: Any = fabric.all_reduce(value.detach())
                state["loss_sum"] += everywhere.item()
                bar.update()
                if state["step"] % save_every == 0 and state["step"] % per_epoch:
                    state["seconds"] = time.perf_counter() - started
                    checkpoint()

            measured = measure()
            row = {
                "epoch": epoch + 1,
                "loss": state["loss_sum"] / per_epoch,
                "learning_rate": rate,
                **measured,
                "seconds": round(time.perf_counter() - started, 2),
                "hardware": hardware(fabric.device.type),
            }
            state["history"].append(to_json(row))
            state["loss_sum"] = state["seconds"] = 0.0
            mark = measured[best_by]
            keep_if_better(mark, epoch + 1)
            if fabric.is_global_zero:
                write_table_atomic(out / LOG, state["history"])
            checkpoint()
            bar.set_postfix(loss=f"{row['loss']:.3f}", **{best_by: f"{mark:.3f}"})
    fabric.barrier()  # nobody reads the run before it is written
    return state["history"]


class _Order:
    """The batches of an epoch, for a loader whose workers stay for all epochs."""

    batches: Sequence[list[tuple[int, int]]] = ()

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def _better(mark: float, best: float | None, lowest: bool) -> bool:
    """Any number is better than none; None is an epoch whose mark was undefined."""
    if not math.isfinite(mark) or best is None:
        return math.isfinite(mark)
    return mark < best if lowest else mark > best


def _check_finite(
    value: float, length: float, batch: Batch, epoch: int, place: int
) -> None:
    """Stop before the optimiser spreads NaN into every weight."""
    if math.isfinite(value) and math.isfinite(length):
        return
    names = list(batch["image_id"])
    broken = [
        name
        for name, image in zip(names, batch["image"], strict=True)
        if not torch.isfinite(image).all()
    ]
    cause = (
        f" The image itself is not finite in: {', '.join(broken)}." if broken else ""
    )
    raise NotFiniteError(
        f"the loss is {value} and its gradient's length {length} in epoch {epoch + 1}, "
        f"batch {place + 1}, with the images {', '.join(names)}.{cause} Look at these "
        "images, or lower the learning rate; the last checkpoint is from before this "
        "batch."
    )


def _check_settings(file: Path, now: Mapping[str, Any]) -> None:
    """A file of a run that was stopped before its first checkpoint, or not of a run."""
    if not file.is_file():
        return
    try:
        before = json.loads(file.read_text(encoding="utf-8"))
        is_of_a_run = bool(before.keys() & now.keys())
    except (ValueError, AttributeError):
        is_of_a_run = False
    if not is_of_a_run:
        raise RunError(f"{file} is not of a run. Give another folder.")
    _check_same(file.parent, before, now)


def _check_same(out: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    if changed := differences(before, now):
        raise RunError(
            f"{out} was trained with other settings: {changed}. Resume with the old "
            "settings, or give another folder."
        )
