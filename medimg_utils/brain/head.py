"""A head on the grid of the image: tissues, tumour, vessels, meninges, rests of skull.

What the scanner sees of a patient, before any signal: for each voxel the shares of its
tissues.  Stripping the skull is never perfect, so the mask of the brain wanders by a
millimetre or two; where it reaches out, dura, bone and marrow are seen.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage as ndi
from torch import Tensor

from medimg_utils.brain.phantom import (
    COARSE,
    HIGH,
    LOW,
    Patient,
    Template,
    Tissues,
    pose,
    refine,
    sample_tissues,
)
from medimg_utils.brain.tumour import Glioma, Growth, compose, grow
from medimg_utils.errors import InputError
from medimg_utils.physics.mr import smooth_field

#: Voxels of the BraTS volumes at 1 mm along right-left, front-back and up.
FIELD_OF_VIEW = (240, 240, 155)
#: Voxel, counted from the left, the back and the bottom, of the middle of the brain.
MIDDLE = (120.2, 103.5, 76.3)
#: How far outside the brain tissue is made, in mm: slices and blur reach there.
_MARGIN = 6.0


@dataclass(frozen=True)
class Grid:
    """The voxels of the field of view, and the box of them that can hold brain.

    Attributes:
        spacing: in mm, isotropic.
        shape: of the field of view.
        box: slices of the box; indices grow to the right, to the front and up.
        axes: coordinates of the box in mm from the middle of the brain.
    """

    spacing: float
    shape: tuple[int, int, int]
    box: tuple[slice, slice, slice]
    axes: tuple[Tensor, Tensor, Tensor]

    @property
    def size(self) -> tuple[int, int, int]:
        """Voxels of the box."""
        x, y, z = (len(axis) for axis in self.axes)
        return x, y, z


def make_grid(spacing: float) -> Grid:
    """The BraTS field of view at a spacing in mm.

    Raises:
        InputError: the spacing is not from 1 to 4 mm.
    """
    if not 1 <= spacing <= 4:
        raise InputError(f"spacing is {spacing} mm; 1 to 4 mm are supported")
    shape, box, axes = [], [], []
    for size, middle, low, high in zip(FIELD_OF_VIEW, MIDDLE, LOW, HIGH, strict=True):
        count = round(size / spacing)
        places = torch.arange(count) * spacing + (spacing - 1) / 2 - middle
        inside = torch.nonzero((places >= low) & (places <= high))
        box.append(slice(int(inside.min()), int(inside.max()) + 1))
        shape.append(count)
        axes.append(places[box[-1]])
    return Grid(
        spacing,
        (shape[0], shape[1], shape[2]),
        (box[0], box[1], box[2]),
        (axes[0], axes[1], axes[2]),
    )


@dataclass(frozen=True)
class Head:
    """Shares of tissue in the voxels near the brain, ``(N,)`` each, 0 to 1.

    Attributes:
        grid: of the image.
        index: ``(N,)`` flat indices of the voxels in the box of the grid.
        brain: bool, what is left after skull stripping.
        tissues: CSF, grey and white matter, before anything below covers them.
        deep: share of grey matter that is nuclei.
        iron: of iron-rich nuclei.
        blood, dura, plexus: vessels, dura, choroid plexus, that cover the tissues.
        bone, marrow: of the skull.
        lesions: degree of age-related change in white matter.
        rim: of the thin layer at the surface of the brain and at the ventricles.
        stir: how much CSF moves there, which spoils its suppression.
        texture: variation of the tissue, mean 0, standard deviation 1, over 3 and 10
            mm.
        core, enhancing, liquid, clot, oedema: of the tumour.
        label: ``(X, Y, Z)`` uint8 of the box.
        growth: how the tumour grew.
    """

    grid: Grid
    index: Tensor
    brain: Tensor
    tissues: Tissues
    deep: Tensor
    iron: Tensor
    blood: Tensor
    dura: Tensor
    plexus: Tensor
    bone: Tensor
    marrow: Tensor
    lesions: Tensor
    rim: Tensor
    stir: Tensor
    texture: Tensor
    core: Tensor
    enhancing: Tensor
    liquid: Tensor
    clot: Tensor
    oedema: Tensor
    label: NDArray[np.uint8]
    growth: Growth

    def volume(self, values: Tensor, outside: float = 0.0) -> Tensor:
        """Spread values of the voxels over the box ``(X, Y, Z)``."""
        full = torch.full((int(np.prod(self.grid.size)),), outside, dtype=values.dtype)
        full[self.index] = values
        return full.view(self.grid.size)


def make_head(
    template: Template, patient: Patient, glioma: Glioma, spacing: float
) -> Head:
    """Deform the template into a patient, grow the tumour, and cut the skull away."""
    grid = make_grid(spacing)
    generator = torch.Generator().manual_seed(patient.seed ^ 0xB0E5)
    healthy = pose(template, patient)
    growth = grow(template, healthy, glioma)
    posed = healthy.moved(growth.displacement)

    coarse = _coarse_fields(template, posed.pull.movedim(0, -1), generator)
    names = ("veins", "crowded", "cut", "caps", "spots", "stir", "slow", "bone")
    fields = refine(
        torch.cat(
            [
                posed.pull,
                posed.folds[None],
                torch.stack([growth.core, growth.oedema]),
                torch.stack([coarse[name] for name in names]),
            ]
        ),
        grid.axes,
    )
    near = refine(coarse["surface"][None], grid.axes)[0] > -_MARGIN
    index = torch.nonzero(near.flatten())[:, 0]
    flat = fields.view(len(fields), -1)[:, index]
    soft = dict(zip(names, flat[6:], strict=True))
    tissues = sample_tissues(template, flat[:3].T, flat[3], spacing)
    at = tissues.at

    def volume(values: Tensor) -> Tensor:
        full = torch.zeros(near.numel(), dtype=values.dtype)
        full[index] = values
        return full.view(near.shape)

    reach = volume(at["surface"] + soft["cut"] > 0)
    brain = _largest(reach)[near]
    shown = volume(brain)
    spread = Tissues(
        csf=volume(tissues.csf),
        grey=volume(tissues.grey),
        white=volume(tissues.white),
        at={"ventricle": volume(at["ventricle"])},
    )
    shown &= volume(at["surface"] > 0)
    lesion = compose(glioma, (fields[4], fields[5]), spread, shown, spacing)
    label = np.zeros(near.shape, np.uint8)
    label[lesion.box] = lesion.label

    def local(values: Tensor) -> Tensor:
        full = torch.zeros(near.shape)
        full[lesion.box] = values
        return full.flatten()[index]

    core = local(lesion.core)
    spared = 1 - core
    outward = -at["surface"]
    bone = ((outward - 2.2) / (0.4 * spacing)).sigmoid()
    texture = smooth_field(near.shape, _spans(grid, 3.0), generator)
    texture = 0.8 * texture.flatten()[index] + 0.6 * soft["slow"]
    return Head(
        grid=grid,
        index=index,
        brain=brain,
        tissues=tissues,
        deep=at["deep"].clamp(0, 1),
        iron=at["iron"].clamp(0, 1),
        blood=_blood(tissues, soft, spacing) * spared,
        dura=_dura(tissues, spacing) * spared,
        plexus=at["plexus"].clamp(0, 1) * (1 + 2 * soft["spots"]).clamp(0, 1) * spared,
        bone=bone,
        marrow=bone * (3 * soft["bone"]).sigmoid(),
        lesions=_age_lesions(tissues, soft, patient) * spared,
        rim=_rim(tissues) * spared,
        stir=soft["stir"],
        texture=texture,
        core=core,
        enhancing=local(lesion.enhancing),
        liquid=local(lesion.liquid),
        clot=local(lesion.blood),
        oedema=local(lesion.oedema) * spared,
        label=label,
        growth=growth,
    )


def _spans(grid: Grid, size: float) -> tuple[int, int, int]:
    """Spans of noise whose structures are ``size`` mm wide, over the box."""
    x, y, z = (max(round(n * grid.spacing / size), 1) for n in grid.size)
    return x, y, z


def _coarse_fields(
    template: Template, mni: Tensor, generator: torch.Generator
) -> dict[str, Tensor]:
    """Random fields of a patient on the coarse grid."""
    shape = mni.shape[:3]

    def noise(size: float) -> Tensor:
        x, y, z = (max(round(n * COARSE / size), 1) for n in shape)
        return smooth_field(shape, (x, y, z), generator)

    # veins run where a sulcus meets the zero level of a field: along curves
    winding = noise(11)
    slope = torch.stack(torch.gradient(winding, spacing=COARSE)).norm(dim=0)
    loose = noise(26)
    cut = -0.7 + 0.35 * float(torch.randn((), generator=generator)) + 0.5 * noise(14)
    # at the base and the vertex stripping leaves more
    base = ((mni[..., 2] + 18) / -8).sigmoid() + ((mni[..., 2] - 62) / 6).sigmoid()
    cut = cut + (loose - 1.4 + 0.7 * base).clamp(0, 1.2) * 3.0
    return {
        "veins": winding / slope.clamp(min=0.4 * float(slope.square().mean().sqrt())),
        "crowded": noise(30),
        "cut": cut,
        "caps": noise(15),
        "spots": noise(8),
        "stir": noise(22),
        "slow": noise(10),
        "bone": noise(9),
        **template.at(mni, "surface"),
    }


def _largest(mask: Tensor) -> Tensor:
    """The largest component of a mask, opened by a voxel, its holes filled."""
    array = mask.numpy()
    opened = ndi.binary_opening(array)
    labels, count = ndi.label(opened)
    if not count:
        raise InputError("no brain is left after skull stripping")
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    body = ndi.binary_dilation(labels == sizes.argmax()) & array
    return torch.from_numpy(ndi.binary_fill_holes(body))


def _blood(tissues: Tissues, soft: dict[str, Tensor], spacing: float) -> Tensor:
    """Share of blood: sinuses, large arteries, veins in the sulci."""
    at = tissues.at
    edge = 0.35 * spacing
    large = torch.maximum(
        (-at["sinus"] / edge).sigmoid(), (-at["artery"] / edge).sigmoid()
    )
    # a vessel winds in and out of its drawn course
    large = (
        large
        * (1.2 + 0.9 * soft["slow"]).clamp(0, 1)
        * (tissues.csf + tissues.grey * 0.5).clamp(0, 1)
    )
    radius = max(0.75, 0.45 * spacing)
    caliber = (0.75 / radius) ** 2 * (0.4 + 0.9 * (1.5 * soft["crowded"]).sigmoid())
    fine = torch.exp(-((soft["veins"] / radius) ** 2)) * caliber
    fine = fine * tissues.csf * (at["ventricle"] < -3) * (at["hull"] < 30)
    fine = fine * (1 - 0.7 * at["cerebellum"].clamp(0, 1))
    return torch.maximum(large, fine).clamp(0, 1)


def _dura(tissues: Tissues, spacing: float) -> Tensor:
    """Share of dura: falx, tentorium, and the layer around the brain."""
    at = tissues.at
    half = max(0.55, 0.4 * spacing)
    sheet = torch.exp(-((at["dura"] / half) ** 2)) * (0.55 / half)
    sheet = sheet * (1 - tissues.white) * (1 - 0.6 * tissues.grey)
    outer = torch.exp(-(((at["surface"] + 1.6) / max(0.8, 0.5 * spacing)) ** 2))
    # the threads and vessels of the meninges fill a part of every sulcus
    threads = 0.45 * tissues.csf * (at["ventricle"] < -2)
    return torch.maximum(sheet, 0.9 * outer).maximum(threads).clamp(0, 1)


def _age_lesions(tissues: Tissues, soft: dict[str, Tensor], patient: Patient) -> Tensor:
    """Degree of white-matter change: caps at the ventricles, and spots."""
    at = tissues.at
    away = (-at["ventricle"]).clamp(min=0)
    load = patient.lesions
    reach = 0.8 + 6 * load * (1 + 0.5 * soft["caps"]).clamp(0.2, 2)
    caps = torch.exp(-((away / reach) ** 2)) * min(0.35 + 1.5 * load, 0.95)
    spots = ((soft["spots"] - 3.1 + 2.2 * load) / 0.15).sigmoid() * (at["hull"] > 14)
    white = (
        tissues.white
        * (1 - at["cerebellum"].clamp(0, 1))
        * (1 - at["deep"]).clamp(0, 1)
    )
    return torch.maximum(caps, 0.8 * spots) * white


def _rim(tissues: Tissues) -> Tensor:
    """The surface of the brain, where suppressed CSF meets bright tissue and vessels."""
    at = tissues.at
    return torch.exp(-((at["surface"] / 1.8) ** 2))
