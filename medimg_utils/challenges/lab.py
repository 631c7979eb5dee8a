"""The run behind the chapter on the black box: train, break, explain, measure, store.

:func:`run_black_box` is the only writer of the small networks and of the result
``challenges-black-box``.  Films and networks that are there already are not made again,
so it can be stopped and called anew.  It takes a CPU core some twenty minutes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from medimg_utils import pretrained, results
from medimg_utils.challenges import attribution, shift, uncertainty
from medimg_utils.challenges.classifier import (
    COLLECTIONS,
    SHIPPED,
    FilmNet,
    Recipe,
    as_tensor,
    collect,
    features_of,
    logits_of,
    train_classifier,
)
from medimg_utils.challenges.films import PLANS, SIDE, Films, ensure_films
from medimg_utils.io import write_json_atomic
from medimg_utils.pneumothorax import experiment
from medimg_utils.pneumothorax.dataset import Radiographs, read_release
from medimg_utils.pneumothorax.models import image_logits
from medimg_utils.pneumothorax.preprocess import to_network
from medimg_utils.pneumothorax.simulate import VERSION, ensure_release
from medimg_utils.release import describe_release
from medimg_utils.splits import check_no_leak, patient_digest
from medimg_utils.training import BEST

NAME = "challenges-black-box"
SEEDS = range(5)
RECIPES = {
    "shortcut": Recipe("shortcut"),
    "reweighted": Recipe("shortcut", reweighted=True),
    "balanced": Recipe("balanced"),
}
#: There is nothing to learn from shuffled labels, so it takes longer to learn it by heart.
RANDOM_LABELS = Recipe("balanced", random_labels=True, epochs=80)
#: Layer of Grad-CAM, and what is forgotten first in the cascade, from the answer down.
LAYER = "blocks.5"
CASCADE = ("head", "blocks.5", "blocks.3", "blocks.1", "blocks.0")
#: Films on which the dear measurements are made.
EXPLAINED, CHECKED = 60, 24
DRAWS = 20


def run_black_box(runs: Path, *, progress: bool = True) -> dict[str, Any]:
    """Make the films, train the small networks, measure, and store numbers and networks.

    Args:
        runs: folder that holds (or will hold) one run a network.
        progress: show bars.

    Returns:
        The stored result.
    """
    films = {name: ensure_films(name, progress=progress) for name in PLANS}
    check_no_leak(films["train"].patients, films["test"].patients)
    networks = {
        arm: [
            train_classifier(
                films["train"],
                recipe,
                _folder(runs, f"{arm}-{seed}"),
                seed=seed,
                progress=progress,
            )
            for seed in SEEDS
        ]
        for arm, recipe in RECIPES.items()
    }
    by_heart = train_classifier(
        films["train"],
        RANDOM_LABELS,
        _folder(runs, "random-labels"),
        progress=progress,
    )
    test = films["test"]
    honest = networks["balanced"]
    about = results.provenance(
        size="lab",
        data=f"simulated films of {SIDE} × {SIDE} pixels, each view taken four times",
        device="cpu",
        seed=SEEDS[0],
        n={name: found.images[:, :, :, 0, 0].size for name, found in films.items()},
    )
    bar = tqdm(total=6, desc="measure", disable=not progress)
    result: dict[str, Any] = {
        "simulation": VERSION,
        "views": {name: len(found) for name, found in films.items()},
        "patients": {n: len(np.unique(found.patients)) for n, found in films.items()},
        "collections": COLLECTIONS,
        "test": {
            "patients": test.patients.tolist(),
            "areas": test.areas.tolist(),
            "kinds": test.kinds.tolist(),
            "logits": {
                arm: [_cells(network, test) for network in members]
                for arm, members in networks.items()
            },
        },
    }
    bar.update()
    result["attribution"] = _attribution(networks["balanced"][0], films)
    bar.update()
    result["drains"] = {arm: _drains(nets[0], test) for arm, nets in networks.items()}
    bar.update()
    result["sanity"] = _sanity(honest, by_heart, test)
    bar.update()
    result["shift"] = _shift(honest, films)
    result["dropout"] = _dropout(honest[0], test)
    bar.update()
    result["lab_network"] = _lab_network(progress)
    bar.update()
    bar.close()
    result["about"] = about
    about_networks = runs / f"{SHIPPED}.json"
    write_json_atomic(
        about_networks,
        {"recipes": {arm: vars(r) for arm, r in RECIPES.items()}, "about": about},
    )
    pretrained.store(
        SHIPPED,
        {
            "shortcut": _folder(runs, "shortcut-0") / BEST,
            "balanced": _folder(runs, "balanced-0") / BEST,
            "random-labels": _folder(runs, "random-labels") / BEST,
        },
        about_networks,
    )
    results.save(NAME, result)
    return result


def _folder(runs: Path, name: str) -> Path:
    return runs / f"black-box-v{VERSION}" / name


def _short(values: NDArray[Any], digits: int = 3) -> Any:
    return np.round(np.asarray(values, np.float64), digits).tolist()


def _cells(network: nn.Module, films: Films) -> Any:
    """Logits (V, 2, 2) of all four films of each view."""
    side = films.images.shape[-1]
    logits = logits_of(network, films.images.reshape(-1, side, side))
    return _short(logits.numpy().reshape(films.images.shape[:3]))


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


def _attribution(network: FilmNet, films: dict[str, Films]) -> dict[str, Any]:
    """Pointing and mass inside the lesion for the plain films with pneumothorax."""
    test = films["test"]
    lesions, images = test.lesions, test.images[:, 1, 0]
    maps = _maps(network, images)
    shape = (lesions.shape[1], lesions.shape[2])
    maps["centre"] = np.broadcast_to(attribution.centre_map(shape), lesions.shape)
    maps["usual place"] = np.broadcast_to(usual_place(films["train"]), lesions.shape)
    rows = {
        name: [attribution.measure(h, m) for h, m in zip(heat, lesions, strict=True)]
        for name, heat in maps.items()
    }
    rows["anywhere"] = [attribution.chance(mask) for mask in lesions]
    return {
        name: {key: _short(np.array([row[key] for row in found])) for key in found[0]}
        for name, found in rows.items()
    }


def usual_place(films: Films) -> NDArray[np.float64]:
    """How often each place of the film is in a lesion, on both sides alike, (S, S)."""
    mean = films.lesions.mean(axis=0)
    return np.asarray((mean + mean[:, ::-1]) / 2)


def _drains(network: FilmNet, test: Films) -> dict[str, Any]:
    """Share of each map that lies on the drain, for drained films without pneumothorax."""
    chosen = [k for k in range(len(test)) if test.drains[k].any()][:EXPLAINED]
    masks = test.drains[chosen]
    maps = _maps(network, test.images[chosen, 0, 1])
    answer: dict[str, Any] = {
        name: _short(np.array([h[m].sum() for h, m in zip(heat, masks, strict=True)]))
        for name, heat in maps.items()
    }
    answer["anywhere"] = _short(masks.mean(axis=(1, 2)), 4)
    answer["patients"] = test.patients[chosen].tolist()
    return answer


def _sanity(
    honest: Sequence[FilmNet], by_heart: FilmNet, test: Films
) -> dict[str, Any]:
    """Similarity of maps with those of networks that have forgotten or never known."""
    images = test.images[:CHECKED, 1, 0]
    before = _maps(honest[0], images)

    def against(network: nn.Module) -> dict[str, list[float]]:
        found = attribution.compare_with(before, _maps(network, images))  # type: ignore[arg-type]
        return {name: _short(np.array(values)) for name, values in found.items()}

    return {
        "cascade": list(CASCADE),
        "forgotten": [
            against(attribution.randomise(honest[0], CASCADE[: k + 1]))
            for k in range(len(CASCADE))
        ],
        "random labels": against(by_heart),
        "another seed": against(honest[1]),
        "patients": test.patients[:CHECKED].tolist(),
    }


def _shift(honest: Sequence[FilmNet], films: dict[str, Films]) -> dict[str, Any]:
    """Logits of all seeds, and how strange the first finds each film, shift by shift."""
    train, test, site = (films[name] for name in ("train", "test", "site"))
    plain = collect(train, (0.0, 0.0))
    usual = shift.Familiar.fit(features_of(honest[0], plain.images))
    usual_test, other = collect(test, (0.0, 0.0)), collect(site, (0.0, 0.0))
    sets = {"none": (usual_test, usual_test.images)}
    for name, change in shift.SHIFTS.items():
        sets[name] = (usual_test, change(usual_test.images))
    sets["another CT"] = (other, other.images)
    return {
        name: {
            "labels": of.labels.tolist(),
            "patients": of.patients.tolist(),
            "logits": [_short(logits_of(net, images).numpy()) for net in honest],
            "distance": _short(usual.distance(features_of(honest[0], images))),
        }
        for name, (of, images) in sets.items()
    }


def _dropout(network: FilmNet, test: Films) -> dict[str, Any]:
    """Probabilities (draws, N) with dropout active, for the plain films of `_shift`."""
    images = as_tensor(collect(test, (0.0, 0.0)).images)
    return {"probabilities": _short(uncertainty.mc_dropout(network, images, DRAWS))}


# ------------------------------------------------------------------------ the lab U-Net


class ImageScore(nn.Module):
    """The U-Net as a classifier: (B, 1, H, W) → (B,), the logit of its image score."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        return image_logits(self.network(images))


def _lab_network(progress: bool) -> dict[str, Any]:
    """Maps of the shipped U-Net beside its own answer, on the positives of `tiny`."""
    run = experiment.load_run("lab")
    release = ensure_release("tiny")
    known = {name for part in run.facts["patients"].values() for name in part}
    positives = [record for record in read_release(release) if record.rle]
    check_no_leak(known, [patient_digest(record.patient) for record in positives])
    squares = Radiographs(positives, size=run.experiment.resize)
    wrapped = ImageScore(run.network.cpu())
    deepest = f"network.contract.{len(run.network.contract) - 1}"
    found = attribution.explainers(wrapped, deepest, steps=8)
    found = {name: found[name] for name in ("saliency", "integrated gradients",
                                            "Grad-CAM", "edges")}  # fmt: skip
    found["its own map"] = lambda images: run.network(images).sigmoid()[:, 0]
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in found}
    rows |= {"usual place": [], "centre": [], "anywhere": []}
    near = run.experiment.resize / SIDE * 2.0  # as many millimetres as on small films
    for k in tqdm(
        range(len(squares)), "lab network", disable=not progress, leave=False
    ):
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
    answer: dict[str, Any] = {
        name: {
            key: _short(np.array([row[key] for row in measured])) for key in measured[0]
        }
        for name, measured in rows.items()
    }
    return {
        "maps": answer,
        "patients": [record.patient for record in positives],
        "data": describe_release(release, images=len(positives)),
    }
