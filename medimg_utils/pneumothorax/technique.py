"""Who is X-rayed and how: the random settings of a patient and of a film.

Each rate is a field of :class:`Rates`; the ranges stand in :func:`random_patient` and
:func:`random_technique`.  Nothing here knows how a picture is made.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Rates:
    """How often and how strongly things vary.  All are our choice.

    ``drain`` is (without, with pneumothorax): drained patients dominate the positives of
    real collections, which a network may learn instead of the disease.
    """

    drain: tuple[float, float] = (0.06, 0.30)
    line: float = 0.25
    leads: float = 0.25
    pacemaker: float = 0.03
    marker: float = 0.75
    words: float = 0.30
    shutter: float = 0.45
    opacity: float = 0.35
    effusion: float = 0.15
    skin_fold: float = 0.06
    emphysema: float = 0.15
    bulla: float = 0.06
    companion_shadow: float = 0.4
    hair: float = 0.04
    clothes: float = 0.08
    bedside: float = 0.40
    mirrored: float = 0.02


@dataclass(frozen=True)
class Patient:
    """A build: the anatomy it is made of and how it is deformed.

    Attributes:
        scale: of the chest along x, y, z.
        bend_mm: standard deviation of the smooth deformation.
        fat_mm: water-equivalent thickness of fat added around the chest.
        breast_mm: thickness of the breasts, 0 for none.
        girdle: scale of clavicles and scapulae.
        mirrored: left and right exchanged (situs inversus: far rarer in life).
        slope: lift of the front of the chest in mm per mm before the back: it makes
            ribs level or steep.
        taper: by which share the cage is wider at its base than at its apex.
        shoulder: which of the two girdles, 0 or 1.
    """

    anatomy: str
    sex: str
    age: int
    scale: tuple[float, float, float]
    bend_mm: float
    bend_seed: int
    fat_mm: float
    breast_mm: float
    girdle: float
    mirrored: bool
    slope: float = 0.0
    taper: float = 0.0
    shoulder: int = 0

    @property
    def habitus(self) -> str:
        """`lean`, `average` or `heavy`: fat below 15 mm, below 30 mm, or more."""
        return ("lean", "average", "heavy")[int(np.digitize(self.fat_mm, (15, 30)))]


def random_patient(
    anatomies: tuple[str, ...], rates: Rates, generator: np.random.Generator
) -> Patient:
    """Draw a patient from one of the anatomies."""
    sex = "F" if generator.random() < 0.45 else "M"
    size = generator.normal(1.0 if sex == "M" else 0.94, 0.05)
    scale = tuple(
        float(size * (1 + generator.normal(0, s))) for s in (0.06, 0.08, 0.07)
    )
    return Patient(
        anatomy=str(generator.choice(anatomies)),
        sex=sex,
        age=int(np.clip(generator.normal(50, 18), 16, 92)),
        scale=(scale[0], scale[1], scale[2]),
        bend_mm=float(generator.uniform(3, 9)),
        bend_seed=int(generator.integers(2**31)),
        fat_mm=float(generator.gamma(2.0, 12.0)),
        breast_mm=float(generator.uniform(8, 40)) if sex == "F" else 0.0,
        girdle=float(generator.normal(1.0, 0.06)),
        mirrored=bool(generator.random() < rates.mirrored),
        slope=float(np.clip(generator.normal(0, 0.12), -0.3, 0.3)),
        taper=float(generator.normal(0, 0.08)),
        shoulder=int(generator.integers(2)),
    )


@dataclass(frozen=True)
class Technique:
    """How one film of a patient was taken and displayed."""

    view: str
    degrees: tuple[float, float, float]
    energy: float
    lungs_share: float
    offset: tuple[float, float]
    shoulders: tuple[float, float, float]
    bone: float
    lung: float
    seed: int
    devices: tuple[str, ...]
    findings: tuple[str, ...]
    scatter_fraction: float
    photons: float
    blur_mm: float
    equalise: float
    equalise_mm: float
    sharpen: float
    sharpen_mm: float
    tone: tuple[float, float, float, float] = field(default=(0.01, 0.99, 1.0, 0.5))
    drain_side: int | None = None  # 0 right, 1 left; any where None
    planes: float = 0.6  # contrast of the planes of fat
    rib_edges: float = 1.2  # contrast of the cortex of bones
    trabeculae: float = 0.08
    fibres: float = 0.008  # contrast of muscle and fat at the film's resolution
    vessels: float = 1.1  # over what the tree of a healthy chest holds
    stretch: float = (
        1.0  # of the lungs along z: the diaphragm of a standing patient hangs
    )


def random_technique(
    rates: Rates, collapsed: bool, generator: np.random.Generator
) -> Technique:
    """Draw view, pose, exposure and what lies on the patient.

    Only the rate of drains depends on the pneumothorax.
    """
    g = generator
    bedside = g.random() < rates.bedside
    devices = []
    if g.random() < rates.drain[int(collapsed)]:
        devices.append("drain")
    sick = 1.8 if bedside else 0.5  # devices and bedside films go together
    for name, rate in (("line", rates.line), ("leads", rates.leads)):
        if g.random() < min(1.0, rate * sick):
            devices.append(name)
    if g.random() < rates.pacemaker:
        devices.append("pacemaker")
    if g.random() < rates.marker:
        devices.append("marker")
    if g.random() < rates.words:
        devices.append("words")
    if g.random() < rates.shutter:
        devices.append("shutter")
    findings = [
        name
        for name, rate in (
            ("opacity", rates.opacity),
            ("effusion", rates.effusion * sick),
            ("skin fold", rates.skin_fold * sick),
            ("emphysema", rates.emphysema),
            ("bulla", rates.bulla),
            ("companion shadow", rates.companion_shadow),
            ("hair", rates.hair),
            ("clothes", rates.clothes),
        )
        if g.random() < rate
    ]
    turn = 4.0 if bedside else 2.0
    return Technique(
        view="AP" if bedside else "PA",
        degrees=(
            float(g.normal(0, 4)),
            float(g.normal(0, turn * 0.7)),
            float(g.normal(0, turn)),
        ),
        energy=float(g.uniform(48, 64)),
        lungs_share=float(g.uniform(0.68, 0.92)),
        offset=(float(g.normal(0, 10)), float(g.normal(0, 9))),
        shoulders=(
            float(g.uniform(0, 1)),
            float(g.normal(0, 1)),
            float(g.normal(0, 1)),
        ),
        bone=float(g.uniform(1.2, 2.4)),
        lung=float(g.uniform(1.1, 2.0)),
        seed=int(g.integers(2**31)),
        devices=tuple(devices),
        findings=tuple(findings),
        scatter_fraction=float(g.uniform(0.3, 0.65)),
        photons=float(10 ** g.uniform(5.3, 7.0)),
        blur_mm=float(g.uniform(0.12, 0.5)),
        equalise=float(g.uniform(0.25, 0.8)),
        equalise_mm=float(g.uniform(14, 50)),
        sharpen=float(g.uniform(0.1, 1.5)),
        sharpen_mm=float(g.uniform(1.2, 5.0)),
        tone=(
            float(g.uniform(0.0, 0.008)),
            float(g.uniform(0.965, 1.0)),
            float(g.uniform(0.7, 1.35)),
            float(g.uniform(0.35, 1.0)),
        ),
        planes=float(np.exp(g.uniform(np.log(0.35), np.log(2.2)))),
        rib_edges=float(g.uniform(0.2, 1.8)),
        trabeculae=float(np.exp(g.uniform(np.log(0.02), np.log(0.12)))),
        fibres=float(np.exp(g.uniform(np.log(0.002), np.log(0.012)))),
        vessels=float(np.exp(g.uniform(np.log(0.7), np.log(1.6)))),
        stretch=float(g.normal(1.06 if bedside else 1.22, 0.07)),
    )
