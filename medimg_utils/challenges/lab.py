"""The run behind the chapter on the black box: train, break, explain, measure, store.

:func:`run_black_box` is the only writer of the small networks and of the result
``challenges-black-box``.  Networks that are there already are not trained again, so it can
be stopped and called anew.  The films are those of the lab run of the first use case.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from medimg_utils import metrics, pretrained, results
from medimg_utils.challenges import attribution, shift, uncertainty
from medimg_utils.challenges.classifier import (
    COLLECTIONS,
    SHIPPED,
    FilmNet,
    Recipe,
    as_tensor,
    features_of,
    logits_of,
    memorised_films,
    train_classifier,
)
from medimg_utils.challenges.films import SIDE, Films, read_films
from medimg_utils.io import write_json_atomic
from medimg_utils.pneumothorax import experiment
from medimg_utils.pneumothorax.dataset import Radiographs, read_release
from medimg_utils.pneumothorax.models import image_logits
from medimg_utils.pneumothorax.preprocess import to_network
from medimg_utils.pneumothorax.simulate import ensure_release
from medimg_utils.release import describe_release, digest_of
from medimg_utils.splits import check_no_leak, one_each, patient_digest, patient_folds
from medimg_utils.training import BEST, minutes_of, read_log, trained_on

NAME = "challenges-black-box"
#: The maps of the shipped U-Net of the radiographs.
MAPS = "challenges-maps"
SEEDS = range(5)
#: What the networks of a seed start from, as one starts from a network that was trained for
#: another task: it has learned to outline the air, in films whose drains tell nothing. Each
#: seed has its own, so networks of two seeds have nothing in common but the films.
TRUNK = Recipe("balanced", side_task=2.0, epochs=90, learning_rate=3e-3)
RECIPES = {
    "shortcut": Recipe("shortcut"),
    "reweighted": Recipe("shortcut", reweighted=True),
    "balanced": Recipe("balanced"),
}
#: The test release of a CT that no network has learned from.
OTHER_SITE = "unseen-anatomy"
#: There is nothing to learn from shuffled labels, so it takes longer to learn it by heart,
#: and nothing may hinder it: neither dropout nor weight decay.
RANDOM_LABELS = Recipe(
    "balanced", random_labels=True, dropout=0.0, epochs=40, weight_decay=0.0
)
#: Layer of Grad-CAM, and what is forgotten first in the cascade, from the answer down.
LAYER = "blocks.4"
CASCADE = ("head", "blocks.4", "blocks.3", "blocks.1", "blocks.0")
#: Share of the film below which a pneumothorax is a hair at this size, and left out.
SMALLEST = 0.005
#: Patients on whom the dear measurements are made, at most.
EXPLAINED, CHECKED, OUTLINED = 60, 20, 30
DRAWS = 20
#: The two seeds whose networks are shipped: A and B of the chapter share no trunk.
SHIPPED_SEEDS = {"shortcut": 0, "balanced": 1}


def run_black_box(runs: Path, *, progress: bool = True) -> dict[str, Any]:
    """Read the films, train the small networks, measure, and store numbers and networks.

    Args:
        runs: folder that holds (or will hold) one run a network.
        progress: show bars.

    Returns:
        The stored result.
    """
    release = ensure_release("lab", progress=progress)
    site = ensure_release(f"lab-{OTHER_SITE}", progress=progress)
    films = split_films(read_films(release, twins=True, smallest=SMALLEST))
    films["site"] = read_films(site, smallest=SMALLEST)
    return measure_black_box(
        films,
        runs,
        sources={"films": describe_release(release), "site": describe_release(site)},
        progress=progress,
    )


def split_films(films: Films) -> dict[str, Films]:
    """Two thirds of the patients to learn from, one third to measure on."""
    test = patient_folds(films.patients.tolist(), films.labels, n_folds=3) == 0
    parts = {"train": films.part(~test), "test": films.part(test)}
    check_no_leak(parts["train"].patients, parts["test"].patients)
    return parts


def measure_black_box(
    films: Mapping[str, Films],
    runs: Path,
    *,
    sources: Mapping[str, Any],
    progress: bool = True,
) -> dict[str, Any]:
    """All of :func:`run_black_box` after the films have been read.

    Args:
        films: `train`, `test`, and `site` (which may be missing).
        runs: see there.
        sources: what the films are, for the record.
        progress: show bars.
    """
    train, test = films["train"], films["test"]
    epochs: list[dict[str, Any]] = []

    def trained(name: str, recipe: Recipe, seed: int, start: FilmNet | None) -> FilmNet:
        out = runs / f"{name}-{seed}"
        network = train_classifier(
            train, recipe, out, start=start, seed=seed, progress=progress
        )
        epochs.extend(read_log(out))
        return network

    trunks = [trained("trunk", TRUNK, seed, None) for seed in SEEDS]
    networks = {
        arm: [trained(arm, recipe, seed, trunks[seed]) for seed in SEEDS]
        for arm, recipe in RECIPES.items()
    }
    by_heart = [trained("random-labels", RANDOM_LABELS, seed, None) for seed in SEEDS]
    honest = networks["balanced"]
    steps: dict[str, Callable[[], Any]] = {
        "attribution": lambda: _attribution(honest, train, test),
        "drains": lambda: {
            arm: _drains(networks[arm], test) for arm in ("shortcut", "balanced")
        },
        "sanity": lambda: _sanity(honest, by_heart, test),
        "shift": lambda: _shift(honest, films),
        "dropout": lambda: _dropout(honest, test),
    }
    result: dict[str, Any] = {
        "films": {name: len(found) for name, found in films.items()},
        "patients": {n: len(np.unique(found.patients)) for n, found in films.items()},
        "collections": COLLECTIONS,
        "test": {
            "labels": test.labels.tolist(),
            "patients": [patient_digest(name) for name in test.patients],
            "areas": _short(test.lesions.mean(axis=(1, 2)), 4),
            "logits": {
                arm: [_both(network, test) for network in members]
                for arm, members in networks.items()
            },
        },
        "by_heart": _memorised(by_heart, train, test),
    }
    for name, step in tqdm(steps.items(), "measure", disable=not progress):
        result[name] = step()
    result["minutes"] = minutes_of(epochs)
    result["hardware"] = trained_on(epochs)
    result["about"] = results.provenance(
        size="lab",
        data={"simulated": True, "side": SIDE, **sources},
        device="cpu",
        seed=SEEDS[0],
        n={name: len(found) for name, found in films.items()},
    )
    facts = runs / f"{SHIPPED}.json"
    recipes = {
        arm: asdict(r)
        for arm, r in {"trunk": TRUNK, **RECIPES, "random": RANDOM_LABELS}.items()
    }
    write_json_atomic(facts, {"experiment": recipes, "about": result["about"]})
    pretrained.store(
        SHIPPED,
        {arm: runs / f"{arm}-{seed}" / BEST for arm, seed in SHIPPED_SEEDS.items()},
        facts,
    )
    results.save(NAME, result)
    return result


def _short(values: ArrayLike, digits: int = 3) -> Any:
    return np.round(np.asarray(values, np.float64), digits).tolist()


def _memorised(
    by_heart: Sequence[FilmNet], train: Films, test: Films
) -> dict[str, Any]:
    """AUC of the networks with shuffled labels: on these labels, and on new films."""
    known, new = [], []
    for seed, network in zip(SEEDS, by_heart, strict=True):
        learned = memorised_films(train, RANDOM_LABELS, seed)
        logits = logits_of(network, learned.images).numpy()
        known.append(metrics.auc(learned.labels, logits))
        logits = logits_of(network, test.images[:, 0]).numpy()
        new.append(metrics.auc(test.labels, logits))
    return {"films": len(learned), "shuffled": known, "new": new}


def _both(network: nn.Module, films: Films) -> Any:
    """Logits (N, 2) of each film without and with its drain."""
    side = films.images.shape[-1]
    logits = logits_of(network, films.images.reshape(-1, side, side))
    return _short(logits.numpy().reshape(-1, 2))


def _explainers(network: FilmNet) -> dict[str, attribution.Explainer]:
    return attribution.explainers(network, LAYER)


def _maps(
    network: FilmNet, images: NDArray[np.uint8], names: Sequence[str] | None = None
) -> dict[str, NDArray[np.float64]]:
    """Maps (B, H, W) of each method for films (B, H, W)."""
    found = _explainers(network)
    parts = as_tensor(images).split(16)
    return {
        name: np.concatenate([attribution.explain(found[name], part) for part in parts])
        for name in names or found
    }


def _of_each(films: Films, chosen: NDArray[np.bool_], most: int) -> Films:
    """One of the chosen films of each patient, of so many patients at most."""
    rows = np.flatnonzero(chosen)
    return films.part(rows[one_each(films.patients[rows])[:most]])


def _attribution(
    networks: Sequence[FilmNet], train: Films, test: Films
) -> dict[str, Any]:
    """Pointing and mass inside the lesion, one sick film a patient, no drain.

    Tables (seeds, patients); one row where no network is asked.
    """
    seen = (test.labels == 1) & test.lesions.any(axis=(1, 2))
    test = _of_each(test, seen, len(test))
    lesions = test.lesions
    shape = (lesions.shape[1], lesions.shape[2])
    usual = usual_place(train)

    def rows(heat: NDArray[np.float64]) -> list[dict[str, float]]:
        return [attribution.measure(h, m) for h, m in zip(heat, lesions, strict=True)]

    asked = [
        {name: rows(heat) for name, heat in _maps(network, test.images[:, 0]).items()}
        for network in networks
    ]
    tables = {name: [one[name] for one in asked] for name in asked[0]}
    tables["edges"] = tables["edges"][:1]
    for name, heat in (
        ("centre", attribution.centre_map(shape)),
        ("usual place", usual),
    ):
        tables[name] = [rows(np.broadcast_to(heat, lesions.shape))]
    tables["anywhere"] = [[attribution.chance(mask) for mask in lesions]]
    return {
        "maps": {
            name: {key: [_columns(row)[key] for row in table] for key in table[0][0]}
            for name, table in tables.items()
        },
        "patients": [patient_digest(name) for name in test.patients],
    }


def _columns(rows: list[dict[str, float]]) -> dict[str, Any]:
    return {key: _short(np.array([row[key] for row in rows])) for key in rows[0]}


def usual_place(films: Films) -> NDArray[np.float64]:
    """How often each place of the film is in a lesion, on both sides alike, (S, S)."""
    mean = films.lesions[films.labels == 1].mean(axis=0)
    return np.asarray((mean + mean[:, ::-1]) / 2)


def _drains(networks: Sequence[FilmNet], test: Films) -> dict[str, Any]:
    """Share of each map on the drain, one film with a drain and no pneumothorax a patient.

    Tables (seeds, patients).
    """
    seen = (test.labels == 0) & test.drains.any(axis=(1, 2))
    test = _of_each(test, seen, EXPLAINED)

    def shares(heat: NDArray[np.float64]) -> Any:
        return _short(np.where(test.drains, heat, 0).sum(axis=(1, 2)), 4)

    asked = [
        {name: shares(heat) for name, heat in _maps(net, test.images[:, 1]).items()}
        for net in networks
    ]
    answer = {name: [one[name] for one in asked] for name in asked[0]}
    answer["anywhere"] = [_short(test.drains.mean(axis=(1, 2)), 4)] * len(asked)
    return {"maps": answer, "patients": [patient_digest(p) for p in test.patients]}


def _sanity(
    honest: Sequence[FilmNet], by_heart: Sequence[FilmNet], test: Films
) -> dict[str, Any]:
    """Similarity of maps with those of networks that have forgotten or never known.

    Tables (seeds, patients), one sick film a patient; of two honest networks (seeds,
    seeds, patients), with ones where a network is compared with itself.
    """
    sick = _of_each(test, test.labels == 1, CHECKED)
    images = sick.images[:, 0]
    before = [_maps(network, images) for network in honest]

    def against(others: Sequence[nn.Module]) -> dict[str, Any]:
        found = [
            attribution.compare_with(maps, _maps(other, images))  # type: ignore[arg-type]
            for maps, other in zip(before, others, strict=True)
        ]
        return {name: _short([one[name] for one in found]) for name in found[0]}

    pairs = [[attribution.compare_with(a, b) for b in before] for a in before]
    return {
        "cascade": list(CASCADE),
        "forgotten": [
            against(
                [
                    attribution.randomise(network, CASCADE[: k + 1], seed)
                    for seed, network in zip(SEEDS, honest, strict=True)
                ]
            )
            for k in range(len(CASCADE))
        ],
        "random labels": against(by_heart),
        "another seed": {
            name: _short([[one[name] for one in row] for row in pairs])
            for name in pairs[0][0]
        },
        "patients": [patient_digest(name) for name in sick.patients],
    }


def _shift(honest: Sequence[FilmNet], films: Mapping[str, Films]) -> dict[str, Any]:
    """Logits of all seeds, and how strange each finds each film, shift by shift."""
    train, test = films["train"], films["test"]
    usual = [shift.Familiar.fit(features_of(net, train.images[:, 0])) for net in honest]
    sets = {"none": (test, test.images[:, 0])}
    for name, change in shift.SHIFTS.items():
        sets[name] = (test, change(test.images[:, 0]))
    if "site" in films:
        sets["another CT"] = (films["site"], films["site"].images[:, 0])
    return {
        name: {
            "labels": of.labels.tolist(),
            "patients": [patient_digest(patient) for patient in of.patients],
            "logits": [_short(logits_of(net, images).numpy(), 2) for net in honest],
            "distance": [
                _short(known.distance(features_of(net, images)))
                for net, known in zip(honest, usual, strict=True)
            ],
        }
        for name, (of, images) in sets.items()
    }


def _dropout(honest: Sequence[FilmNet], test: Films) -> dict[str, Any]:
    """Mean probability of some draws with dropout active, (seeds, N)."""
    images = as_tensor(test.images[:, 0])
    means = [uncertainty.mc_dropout(net, images, DRAWS).mean(axis=0) for net in honest]
    return {"draws": DRAWS, "probabilities": _short(means)}


# ------------------------------------------------------------------------ the lab U-Net


class ImageScore(nn.Module):
    """The U-Net as a classifier: (B, 1, H, W) → (B,), the logit of its image score."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        return image_logits(self.network(images))


def run_maps(*, progress: bool = True) -> dict[str, Any]:
    """Maps of the shipped U-Net beside its own answer, on the positives of `tiny`.

    The result names the network by its digest: another one has to be measured anew.

    Args:
        progress: show a bar.

    Returns:
        The stored result: for each kind of map the columns of
        :func:`medimg_utils.challenges.attribution.measure`, a row a film.
    """
    run = experiment.load_run("lab")
    release = ensure_release("tiny", progress=progress)
    known = {name for part in run.facts["patients"].values() for name in part}
    positives = [record for record in read_release(release) if record.rle][:OUTLINED]
    check_no_leak(known, [patient_digest(record.patient) for record in positives])
    squares = Radiographs(positives, size=run.experiment.resize)
    wrapped = ImageScore(run.network.cpu())
    deepest = f"network.contract.{len(run.network.contract) - 1}"
    found = attribution.explainers(wrapped, deepest)
    found = {name: found[name] for name in ("saliency", "Grad-CAM", "edges")}
    found["its own map"] = lambda images: run.network(images).sigmoid()[:, 0]
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in found}
    rows |= {"usual place": [], "centre": [], "anywhere": []}
    near = run.experiment.resize / SIDE * 2.0  # as many millimetres as on small films
    for k in tqdm(range(len(squares)), "maps", disable=not progress, leave=False):
        image, mask = (
            to_network(squares.image(k))[None],
            squares.mask(k)[0].numpy() > 0.5,
        )
        shape = (mask.shape[0], mask.shape[1])
        prior = F.interpolate(run.prior[None, None], shape, mode="bilinear")[0, 0]
        for name, one in found.items():
            with torch.set_grad_enabled(name != "its own map"):
                heat = attribution.explain(one, image, smooth=near)[0]
            rows[name].append(attribution.measure(heat, mask, near))
        for name, heat in (
            ("usual place", prior.double().clamp(min=0).numpy()),
            ("centre", attribution.centre_map(shape)),
        ):
            rows[name].append(attribution.measure(heat, mask, near))
        rows["anywhere"].append(attribution.chance(mask, near))
    result = {
        "maps": {name: _columns(measured) for name, measured in rows.items()},
        "patients": [patient_digest(record.patient) for record in positives],
        "network": digest_of(pretrained.find("pneumothorax-lab")),
        "about": results.provenance(
            size="lab",
            data=describe_release(release, images=len(positives)),
            device="cpu",
            seed=run.facts["seed"],
            n=len(positives),
        ),
    }
    results.save(MAPS, result)
    return result
