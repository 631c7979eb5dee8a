"""A patient before the film: pose, geometry, and coordinates on the film."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from medimg_utils.physics.deform import Deformation, random_deformation
from medimg_utils.physics.xray import Geometry, project_volume
from medimg_utils.pneumothorax.phantom import RIGHT, Chest
from medimg_utils.pneumothorax.technique import Patient, Technique


@dataclass(frozen=True)
class View:
    """A patient before the film: geometry, pose and the projections that stay."""

    chest: Chest
    patient: Patient
    technique: Technique
    geometry: Geometry
    deformation: Deformation
    size: int

    @property
    def pixel_mm(self) -> float:
        """Pixel spacing at the film in mm."""
        return self.geometry.width / self.size

    def generator(self, stream: int) -> torch.Generator:
        """A generator of its own for each stage: a drain more moves nothing else."""
        return torch.Generator().manual_seed(self.technique.seed + 7919 * stream)

    def project(
        self, volume: Tensor, origin: Tensor, spacing: Tensor, rows: int
    ) -> Tensor:
        """Integrals ``(C, rows, rows)`` of a volume of the chest ``(C, X, Y, Z)``."""
        return project_volume(
            volume,
            origin,
            spacing,
            self.geometry,
            rows,
            rows,
            pull=self.deformation.pull,
            depth_scale=self.patient.scale[1],
        )

    def pixels(self, points: Tensor) -> Tensor:
        """Film position (row, column) of points of the undeformed chest, in mm."""
        return self.geometry.project(
            self.deformation.push(points), self.size, self.size
        )

    @property
    def lung_width(self) -> float:
        """Width of both lungs together in mm, in the patient."""
        low, high = self.chest.lungs[:, 0, 0].min(), self.chest.lungs[:, 1, 0].max()
        return float(high - low) * self.patient.scale[0]

    def film_mm(self) -> tuple[Tensor, Tensor]:
        """Film coordinates in mm from the middle of the lungs' top.

        x ``(1, size)`` grows to the patient's right, z ``(size, 1)`` upward.
        """
        x, z = self.geometry.film_axes(self.size, self.size)
        low, high = self.chest.lungs[:, 0].amin(0), self.chest.lungs[:, 1].amax(0)
        middle = (low + high) / 2
        top = torch.tensor([self.chest.midline, float(middle[1]), float(high[2])])
        at = self.deformation.push(top[None])[0]
        shrink = float(self.geometry.shrink(at[1]))
        cx, cz = self.geometry.centre
        x0 = cx + (float(at[0]) - cx) / shrink
        z0 = cz + (float(at[2]) - cz) / shrink
        return (x - x0)[None, :], (z - z0)[:, None]


def make_view(
    chest: Chest,
    patient: Patient,
    technique: Technique,
    size: int,
    tension: int | None = None,
) -> View:
    """Pose the patient before the film.

    ``tension`` is the side (0, 1) of a tension pneumothorax: it pushes the mediastinum
    away and its diaphragm down.
    """
    bend = torch.Generator().manual_seed(patient.bend_seed)
    deformation = random_deformation(
        chest.low,
        chest.high,
        scale=patient.scale,
        degrees=technique.degrees,
        bend_mm=patient.bend_mm,
        knot_mm=60.0,
        generator=bend,
    )
    low, high = chest.lungs[:, 0].amin(0), chest.lungs[:, 1].amax(0)
    corners = deformation.push(torch.stack([low, high]))
    width = float(corners[1, 0] - corners[0, 0]) / technique.lungs_share
    middle_x = float(corners[:, 0].mean()) + technique.offset[0]
    # the apices stand a little below the film's top
    top = float(corners[1, 2]) + 0.07 * width + technique.offset[1]
    front = technique.view == "PA"
    film_y = float(corners[1, 1] + 60) if front else float(corners[0, 1] - 60)
    sid = 1800.0 if front else 1050.0
    shrink = 1 - (float(corners[1, 1] - corners[0, 1]) / 2 + 60) / sid
    geometry = Geometry(
        view=technique.view,
        sid=sid,
        film_y=film_y,
        centre=(middle_x, top - width / 2),
        width=width / shrink,
        height=width / shrink,
    )
    if tension is not None:  # only now: the film stands where it stood
        deformation = replace(
            deformation, bend=_push_mediastinum(chest, deformation, tension)
        )
    return View(chest, patient, technique, geometry, deformation, size)


def _push_mediastinum(chest: Chest, deformation: Deformation, side: int) -> Tensor:
    bend = deformation.bend.clone()
    axes = [
        torch.linspace(float(low), float(high), n)
        for low, high, n in zip(chest.low, chest.high, bend.shape[1:], strict=True)
    ]
    x, _, z = torch.meshgrid(*axes, indexing="ij")
    level = (z - chest.lungs[side, 0, 2]) / (
        chest.lungs[side, 1, 2] - chest.lungs[side, 0, 2]
    )
    away = -1.0 if side == RIGHT else 1.0
    middle = torch.exp(-0.5 * ((x - chest.midline) / 55) ** 2)
    lower = torch.exp(-0.5 * ((level - 0.4) / 0.35) ** 2)
    bend[0] -= away * 18 * middle * lower  # a pull map looks where tissue came from
    mine = torch.sigmoid((x - chest.midline) / 15 * (1 if side == RIGHT else -1))
    bend[2] += 14 * mine * torch.exp(-0.5 * ((level - 0.05) / 0.25) ** 2)
    return bend
