"""A patient before the film: pose, geometry, and coordinates on the film."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from medimg_utils.physics.deform import Deformation, random_deformation
from medimg_utils.physics.xray import Geometry, project_volume, splat
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
            depth_centre=float(self.deformation.centre[1]),
        )

    def pixels(self, points: Tensor) -> Tensor:
        """Film position (row, column) of points of the undeformed chest, in mm."""
        return self.geometry.project(
            self.deformation.push(points), self.size, self.size
        )

    def path_of(self, points: Tensor, mass: Tensor) -> Tensor:
        """Path through matter that lies at points, in mm of its density unit.

        A pixel shows the more of a thing the nearer it is to the focus: there a ray
        stands for a smaller area.  Scale counts, local stretching by the bend does not.

        Args:
            points: ``(N, 3)`` in mm of the undeformed chest.
            mass: ``(N,)`` in mm3 of the density unit, in the undeformed chest.

        Returns:
            Tensor ``(size, size)``.
        """
        moved = self.deformation.push(points, steps=5)
        larger = 1 / float(torch.linalg.det(self.deformation.matrix))
        area = (self.pixel_mm * self.geometry.shrink(moved[:, 1])) ** 2
        position = self.geometry.project(moved, self.size, self.size)
        return splat(position, mass * larger / area, self.size, self.size)

    @property
    def lung_width(self) -> float:
        """Width of both lungs together in mm, in the patient."""
        low, high = self.chest.lungs[:, 0, 0].min(), self.chest.lungs[:, 1, 0].max()
        return float(high - low) * self.patient.scale[0]

    @property
    def magnification(self) -> float:
        """Of what lies in the middle of the lungs."""
        return 1 / float(self.geometry.shrink(self._top[1]))

    @cached_property
    def _top(self) -> Tensor:
        """Middle of the lungs' top in the patient, ``(3,)`` in mm."""
        low, high = self.chest.lungs[:, 0].amin(0), self.chest.lungs[:, 1].amax(0)
        middle = (low + high) / 2
        top = torch.tensor([self.chest.midline, float(middle[1]), float(high[2])])
        return self.deformation.push(top[None])[0]

    def film_mm(self) -> tuple[Tensor, Tensor]:
        """Film coordinates in mm from the middle of the lungs' top.

        x ``(1, size)`` grows to the patient's right, z ``(size, 1)`` upward.
        """
        x, z = self.geometry.film_axes(self.size, self.size)
        at = self._top
        cx, cz = self.geometry.centre
        x0 = cx + (float(at[0]) - cx) * self.magnification
        z0 = cz + (float(at[2]) - cz) * self.magnification
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
    x, y, z = patient.scale
    deformation = random_deformation(
        chest.low,
        chest.high,
        scale=(x, y, z * technique.stretch),
        degrees=technique.degrees,
        slope=patient.slope,
        bend_mm=patient.bend_mm,
        knot_mm=50.0,
        generator=bend,
    )
    deformation = replace(deformation, bend=_shape_cage(chest, deformation, patient))
    box = torch.stack([chest.lungs[:, 0].amin(0), chest.lungs[:, 1].amax(0)])
    corners = deformation.push(torch.cartesian_prod(*box.T))
    low, high = corners.amin(0), corners.amax(0)
    width = float(high[0] - low[0]) / technique.lungs_share
    width = max(width, float(high[2] - low[2]) / 0.84)  # long lungs need a longer film
    middle_x = float(low[0] + high[0]) / 2 + technique.offset[0]
    # the apices stand a little below the film's top
    top = float(corners[1::2, 2].mean()) + 0.07 * width + technique.offset[1]
    front = technique.view == "PA"
    film_y = float(high[1] + 60) if front else float(low[1] - 60)
    sid = 1800.0 if front else 1050.0
    shrink = 1 - (float(high[1] - low[1]) / 2 + 60) / sid
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


def _grid(chest: Chest, deformation: Deformation, side: int) -> tuple[Tensor, Tensor]:
    """x in mm, and height in a lung (0 base, 1 apex), of the points of the bend."""
    axes = [
        torch.linspace(float(low), float(high), n)
        for low, high, n in zip(
            chest.low, chest.high, deformation.bend.shape[1:], strict=True
        )
    ]
    x, _, z = torch.meshgrid(*axes, indexing="ij")
    low, high = chest.lungs[side, :, 2]
    return x, (z - low) / (high - low)


def _shape_cage(chest: Chest, deformation: Deformation, patient: Patient) -> Tensor:
    """The bend of a cage that is wider below than above by ``patient.taper``."""
    bend = deformation.bend.clone()
    x, level = _grid(chest, deformation, RIGHT)
    # a pull map looks further in where the patient is wider
    bend[0] += patient.taper * (level.clamp(-0.3, 1.2) - 0.5) * (x - chest.midline)
    return bend


def _push_mediastinum(chest: Chest, deformation: Deformation, side: int) -> Tensor:
    bend = deformation.bend.clone()
    x, level = _grid(chest, deformation, side)
    away = -1.0 if side == RIGHT else 1.0
    middle = torch.exp(-0.5 * ((x - chest.midline) / 55) ** 2)
    lower = torch.exp(-0.5 * ((level - 0.4) / 0.35) ** 2)
    bend[0] -= away * 18 * middle * lower  # a pull map looks where tissue came from
    mine = torch.sigmoid((x - chest.midline) / 15 * (1 if side == RIGHT else -1))
    bend[2] += 14 * mine * torch.exp(-0.5 * ((level - 0.05) / 0.25) ** 2)
    return bend
