from dataclasses import replace

import numpy as np
import pytest
import torch

from medimg_utils.knee import rehearsal
from medimg_utils.knee.dataset import DIAGNOSES, Exams, read_mrnet
from medimg_utils.knee.experiment import (
    EXPERIMENTS,
    learn_landmarks,
    lesions_of,
    train,
)
from medimg_utils.knee.models import MRNet, small
from medimg_utils.knee.preprocess import Augment
from medimg_utils.knee.rehearsal import (
    ENOUGH,
    WEIGHT,
    WINDOW,
    Places,
    Pointer,
    in_cells,
    network_weights,
    place_loss,
    some_of_both,
)
from medimg_utils.release import DatasetError
from medimg_utils.training import load_tensors

SHORT = replace(
    EXPERIMENTS["tiny"], resize=64, crop=56, rehearse_epochs=1, epochs=1, folds=2
)
FAST = {"accelerator": "cpu", "precision": "32-true", "workers": 0, "progress": False}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_masks_go_where_their_slices_go():
    masks = torch.zeros(6, 1, 96, 96, dtype=torch.bool)
    for k in range(6):
        masks[k, 0, 40 + k : 56 + k, 30 : 44 + k] = True
    slices = masks[:, 0].to(torch.uint8) * 255
    augment = Augment(80, rotation=20.0, shift=6.0, flip=0.5, slices=0.5)
    for seed in range(8):
        image, places = augment.with_places(slices, masks, seeded(seed))
        assert image.shape == (3, 80, 80)
        assert places.shape == (3, 1, 80, 80)
        assert torch.allclose(image / 255, places[:, 0], atol=0.5 / 255 + 1e-6)


def test_slices_are_changed_alike_with_and_without_masks():
    slices = torch.randint(0, 256, (9, 64, 64), dtype=torch.uint8, generator=seeded())
    masks = torch.zeros(9, 2, 64, 64, dtype=torch.bool)
    augment = Augment(48, 10.0, 4.0, 0.5, 0.5, 0.7)
    both = augment.with_places(slices, masks, seeded(3))[0]
    assert torch.equal(both, augment(slices, seeded(3)))


@pytest.mark.parametrize(("with_finding", "expected"), [(0, 0), (3, 3), (20, 6)])
def test_some_slices_show_a_finding_and_others_none(with_finding, expected):
    shown = torch.arange(30) < with_finding
    kept = some_of_both(shown, 10, seeded())
    assert len(kept.unique()) == 10
    assert int(shown[kept].sum()) == expected


def test_few_slices_are_all_taken():
    assert some_of_both(torch.arange(4) < 2, 10, seeded()).tolist() == [0, 1, 2, 3]


def test_cells_count_the_pixels_around_their_centres():
    places = torch.rand(2, 3, 80, 72, generator=seeded())
    found = in_cells(places, 15.0, 16, 4)
    for row in range(4):
        for column in range(4):
            top, left = 16 + 16 * row - WINDOW // 2, 16 + 16 * column - WINDOW // 2
            part = places[..., max(top, 0) : top + WINDOW, max(left, 0) : left + WINDOW]
            expected = part.sum((2, 3))
            assert torch.allclose(found[:, :, row, column], expected, atol=1e-3)


def test_the_loss_of_cells_by_hand():
    logits = torch.tensor([[[[0.0, 2.0, 5.0]]]])
    seen = torch.tensor([[[[ENOUGH, 0.0, 1.0]]]])  # a finding, none, a few pixels
    expected = (WEIGHT * np.log(2) + np.log1p(np.exp(2.0))) / (WEIGHT + 1)
    assert place_loss(logits, seen).item() == pytest.approx(expected, rel=1e-6)


def places_of(mrnet, **others):
    exams = read_mrnet(mrnet)
    standardiser = learn_landmarks(exams, "sagittal")
    options = {"size": 64, "crop": 56, "augment": Augment(56, shift=2.0), **others}
    data = Places(
        exams,
        "sagittal",
        standardiser,
        lesions=lesions_of(mrnet) / "sagittal",
        slices=4,
        **options,
    )
    return exams, standardiser, data


def test_twins_show_the_same_slices(write_mrnet, tmp_path):
    release = write_mrnet(tmp_path, train=4, valid=1)
    for name in ("0002", "0003"):  # one knee, and a finding in slice 1 of one exam
        np.save(release / f"train/sagittal/{name}.npy", stack())
    mark(tmp_path, "0002", [1])
    mark(tmp_path, "0003", [])
    _, _, data = places_of(release, groups=[0, 0, 1, 1])
    one, other = data[5, 2], data[5, 3]
    assert torch.equal(one["image"], other["image"])
    assert one["places"].flatten(2).any(2).any(0).tolist() == [
        name == "acl" for name in DIAGNOSES
    ]
    assert not other["places"].any()


def stack():
    """Seven slices, each of another grey."""
    rows, columns = np.mgrid[:64, :64]
    disc = (rows - 32) ** 2 + (columns - 32) ** 2 < 28**2
    texture = (rows * 7 + columns * 13) % 40
    return np.stack([disc * (60 + 20 * k + texture) for k in range(7)]).astype(np.uint8)


def mark(root, name, slices):
    """Write a tear in the middle of some of seven slices."""
    lesion = np.zeros((7, 64, 64), bool)
    lesion[slices, 26:38, 26:38] = True
    np.savez(root / f"lesions/train/sagittal/{name}.npz", acl=lesion)


def test_masks_of_another_exam_are_refused(write_mrnet, tmp_path):
    release = write_mrnet(tmp_path, train=4, valid=1)
    _, _, data = places_of(release)
    np.savez(tmp_path / "lesions/train/sagittal/0001.npz", acl=np.zeros((3, 9, 9)))
    with pytest.raises(DatasetError, match=r"0001\.npz.*shape"):
        data[1]
    (tmp_path / "lesions/train/sagittal/0001.npz").unlink()
    with pytest.raises(DatasetError, match=r"0001\.npz"):
        data[1]


def test_a_pointer_learns_where_and_whether(mrnet):
    exams, standardiser, data = places_of(mrnet)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pointer = Pointer(MRNet(*small(), outputs=3))
    loss = rehearsal.loss_of(pointer)
    optimiser = torch.optim.AdamW(pointer.parameters(), 4e-3)
    for epoch in range(6):
        for start in range(0, len(exams), 4):
            items = [data[epoch, k] for k in range(start, start + 4)]
            batch = {key: [item[key] for item in items] for key in items[0]}
            optimiser.zero_grad()
            loss(pointer, batch, 0.0).backward()
            optimiser.step()
    unseen = read_mrnet(mrnet, "valid")
    others = Exams(unseen, "sagittal", standardiser, size=64, crop=56)
    assert rehearsal.validate(pointer, others)["val_auc_acl"] > 0.9
    # The hottest cell of a torn ligament sees it.
    truth = Places(
        unseen,
        "sagittal",
        standardiser,
        lesions=mrnet.parent / "lesions" / "valid" / "sagittal",
        slices=20,
        size=64,
        crop=56,
    )
    hits = []
    for k, exam in enumerate(unseen):
        if not exam.labels["acl"]:
            continue
        item = truth[k]
        with torch.inference_mode():
            logits = pointer([item["image"]])[:, 1]
        seen = in_cells(item["places"], pointer.network.start, pointer.network.step, 7)[
            :, 1
        ]
        hits.append(bool(seen.flatten()[logits.argmax()] > 0))
    assert np.mean(hits) > 0.8


def test_mrnet_begins_with_the_rehearsed_features(write_mrnet, tmp_path):
    release = write_mrnet(tmp_path, train=12, valid=1)
    out = tmp_path / "run"
    none = replace(SHORT, learning_rate=0.0)
    train(release, out, none, **FAST)
    rehearsed = network_weights(
        load_tensors(out / "axial/rehearsal/best.safetensors")[0]
    )
    shipped = load_tensors(out / "axial/best.safetensors")[0]
    features = [name for name in shipped if name.startswith("features")]
    assert features
    assert all(torch.equal(shipped[name], rehearsed[name]) for name in features)


def test_a_release_without_lesions_is_trained_without_rehearsal(
    write_mrnet, tmp_path, capsys
):
    release = write_mrnet(tmp_path, train=12, valid=1)
    (tmp_path / "lesions").rename(tmp_path / "elsewhere")
    train(release, tmp_path / "run", SHORT, **FAST | {"progress": True})
    assert "do not rehearse" in capsys.readouterr().out
    assert not (tmp_path / "run/axial/rehearsal").exists()
