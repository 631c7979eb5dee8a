"""Settings that know the paper's value, and the table that compares them with ours.

Each use case has a frozen dataclass of settings whose fields are made with `setting`,
and one instance of it a run size.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from tqdm.auto import tqdm

from medimg_utils import results
from medimg_utils.errors import InputError
from medimg_utils.io import to_json, write_json_atomic
from medimg_utils.settings import SIZES, find_device
from medimg_utils.training import BEST, RunError

Settings = TypeVar("Settings")
Item = TypeVar("Item")
Found = TypeVar("Found")


def setting(default: Any, *, paper: Any = None, why: str, asked: bool = False) -> Any:
    """A field that knows the paper's value (None: not published) and our reason.

    ``asked`` marks how a trained network is asked, which its weights do not depend on.
    """
    return field(default=default, metadata={"paper": paper, "why": why, "asked": asked})


def choose(
    experiments: Mapping[str, Settings],
    size: str,
    *,
    epochs: int | None = None,
    of: Sequence[str] = ("epochs",),
) -> Settings:
    """The settings of a run size, with another number of epochs where one is given.

    Args:
        experiments: by size.
        size: one of them.
        epochs: of each network.
        of: the settings that hold a number of epochs; one that is 0 stays 0.

    Raises:
        InputError: no such size, or fewer than one epoch.
    """
    if size not in experiments:
        raise InputError(f"{size!r} is no run size; there are: {', '.join(SIZES)}.")
    if epochs is None:
        return experiments[size]
    if epochs < 1:
        raise InputError(f"{epochs} epochs were asked for, but at least 1 is needed.")
    chosen = experiments[size]
    changed = {name: epochs for name in of if getattr(chosen, name)}
    return replace(chosen, **changed)  # type: ignore[type-var]


def describe(experiment: Any) -> list[dict[str, Any]]:
    """Rows of the table *Versus the paper*: setting, paper, ours, source, why.

    `source` is `paper` where the paper's value is used, `our choice` where it gives
    none, and `differs` where we depart from it.
    """
    rows = []
    for item in fields(experiment):
        ours, paper = getattr(experiment, item.name), item.metadata["paper"]
        source = (
            "our choice" if paper is None else "paper" if ours == paper else "differs"
        )
        rows.append(
            {
                "setting": item.name,
                "paper": paper,
                "ours": ours,
                "source": source,
                "why": item.metadata["why"],
            }
        )
    return rows


def recipe(experiment: Any) -> dict[str, Any]:
    """The settings that trained weights depend on, as JSON has them."""
    return {
        item.name: to_json(getattr(experiment, item.name))
        for item in fields(experiment)
        if not item.metadata["asked"]
    }


def facts_file(run: Path) -> Path:
    """The file of a run's folder that says what was trained; there once it is."""
    return (run / BEST).with_suffix(".json")


def read_facts(run: Path) -> dict[str, Any]:
    """What the file of a finished run says."""
    facts: dict[str, Any] = json.loads(facts_file(run).read_text(encoding="utf-8"))
    return facts


def open_facts(
    path: Path, read: Callable[[dict[str, Any]], Settings]
) -> tuple[dict[str, Any], Settings]:
    """What the JSON file beside trained networks says, and their settings.

    Args:
        path: the file.
        read: makes the settings of what the file holds of them.

    Raises:
        RunError: it is damaged, or of another use case.
    """
    try:
        facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return facts, read(facts["experiment"])
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{path} does not tell of a finished run of this use case ({error}). Give "
            "the folder of such a run, or train one."
        ) from error


def facts_of_run(
    experiment: Any, *, fold: int | None, seed: int, data: Any, **met: Any
) -> dict[str, Any]:
    """What a run keeps about its training, in its settings and in its JSON file.

    Args:
        experiment: the settings.
        fold: that was held out; None for a single hold-out.
        seed: of the run.
        data: what it was trained on, as facts.
        met: digests of those it has met, by their role.
    """
    return {
        "experiment": asdict(experiment),
        "fold": fold,
        "seed": seed,
        "data": data,
        **met,
    }


def provenance(
    experiment: Any, *, data: Any, seed: int, n: int | Mapping[str, int]
) -> dict[str, Any]:
    """Where numbers of an experiment come from that were measured on this machine.

    See `medimg_utils.results.provenance`.
    """
    return results.provenance(
        size=experiment.size, data=data, device=find_device().type, seed=seed, n=n
    )


def protocol(held_out: bool) -> str:
    """In words, what a network was measured on: a held-out part, or a whole release."""
    return (
        "patients held out of the training release"
        if held_out
        else "a release whose patients have other identifiers than those of training"
    )


def forget_answers(out: Path, names: Iterable[str], endings: Sequence[str]) -> None:
    """Delete NAME.json of an earlier prediction into the same folder, and its pictures.

    The JSON files are written last. So wherever one lies afterwards, it is an answer of
    the prediction that begins now, even if an input fails or the program is stopped.

    Args:
        out: the folder.
        names: NAMEs of the answers.
        endings: of the pictures of an answer, after its NAME.

    Raises:
        InputError: one of these files is no such answer; none is deleted then.

    >>> import tempfile
    >>> out = Path(tempfile.mkdtemp())
    >>> _ = (out / "a.json").write_text('{"settings": {"use_case": "knee"}}')
    >>> for name in ("a.png", "b.png"):
    ...     (out / name).touch()
    >>> forget_answers(out, ["a", "b"], [".png"])
    >>> [path.name for path in out.iterdir()]
    ['b.png']
    """
    files = {name: out / f"{name}.json" for name in names}
    earlier = {name: file for name, file in files.items() if file.exists()}
    for file in earlier.values():
        try:
            json.loads(file.read_text(encoding="utf-8"))["settings"]["use_case"]
        except (OSError, ValueError, LookupError, TypeError):
            raise InputError(
                f"{file} is in the way, and no answer of an earlier prediction. Give "
                "another folder."
            ) from None
    for name, file in earlier.items():
        for ending in endings:
            (out / f"{name}{ending}").unlink(missing_ok=True)
        file.unlink(missing_ok=True)


def answer_each(
    items: Sequence[Item],
    predict: Callable[[Item], Found],
    write: Callable[[Item, Found], dict[str, Any]],
    *,
    out: Path,
    name: Callable[[Item], str],
    endings: Sequence[str],
    what: str,
    kind: type[InputError],
    progress: bool,
    others: Iterable[str] = (),
) -> list[dict[str, Any]]:
    """Predict each of many, write what was found, and go on where one cannot be used.

    Args:
        items: e.g. files.
        predict: finds the answer of one. Where it cannot be used it says so with an
            `InputError` or an `OSError`; the others are predicted all the same.
        write: writes the pictures of one into `out` and returns what NAME.json holds,
            which is written last.
        out: the folder; earlier answers in it are forgotten first.
        name: NAME of one.
        endings: of the pictures that `write` makes, after NAME.
        what: the items are, in the error's words, e.g. `files`.
        kind: of error.
        progress: show a bar.
        others: NAMEs whose earlier answers are forgotten, too.

    Returns:
        What the JSON files hold, in the order of `items`.

    Raises:
        kind: some cannot be used; the others have been written.
        InputError: a file that is no answer stands where one is to be written.
    """
    forget_answers(out, (*map(name, items), *others), endings)
    answers, failures = [], []
    for item in tqdm(items, "predict", disable=not progress, leave=False):
        try:
            found = predict(item)
        except (InputError, OSError) as error:
            failures.append(str(error))
            continue
        answer = write(item, found)
        write_json_atomic(out / f"{name(item)}.json", answer)
        answers.append(to_json(answer))
    if failures:
        others_too = ", the others were written" if answers else ""
        raise kind(
            f"{len(failures)} of {len(items)} {what} could not be used{others_too}: "
            + " | ".join(failures)
        )
    return answers
