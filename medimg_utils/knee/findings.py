"""What a reader may find in a knee, drawn with graded severity and into the anatomy.

A finding has a diagnosis of MRNet (ACL tear, meniscal tear, other abnormality), a kind
and a grade.  Normal knees get what only looks like a finding: a mucoid ligament, signal
within a meniscus that does not reach its surface, red marrow, more or less fluid.

:class:`Canvas` is a knee that findings are painted on.  Each voxel has a code, each code
a material: a mixture of tissues, its texture, and the diagnoses that it shows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from medimg_utils.knee.phantom import Knee
from medimg_utils.knee.shapes import Array, Curve, Grid, Tube, ramp, rough, tube
from medimg_utils.knee.soft_tissue import anterior_cruciate
from medimg_utils.knee.voxels import GRID, SPACES, Code

#: The diagnoses of the release; a lesion of the first two is an abnormality too.
DIAGNOSES = ("acl", "meniscus", "abnormal")
_BIT = {"": 0, "abnormal": 1, "acl": 3, "meniscus": 5}

Mixture = Mapping[str, float]


@dataclass(frozen=True)
class Material:
    """What fills a voxel.

    Attributes:
        mixture: shares of the tissues of :data:`medimg_utils.physics.mr.TISSUES`; what
            is missing to 1 gives no signal.
        texture: ``"marrow"``, ``"muscle"`` or ``""``.
        shows: bits of the diagnoses: 1 abnormal, 2 ACL, 4 meniscus.
    """

    mixture: tuple[tuple[str, float], ...]
    texture: str = ""
    shows: int = 0


def _material(texture: str = "", **shares: float) -> Material:
    names = {name.replace("_", " "): share for name, share in shares.items()}
    return Material(tuple(names.items()), texture)


_FAT, _FLUID, _OEDEMA = "subcutaneous fat", "synovial fluid", "marrow oedema"
_TORN = "torn meniscus"

#: What the codes of a healthy knee are made of.
MATERIALS: dict[int, Material] = {
    Code.AIR: _material(),
    Code.SKIN: _material(skin=0.8),
    Code.FAT: _material(subcutaneous_fat=1.0),
    Code.DEEP_FAT: _material(subcutaneous_fat=0.95, muscle=0.05),
    Code.SEPTUM: _material(subcutaneous_fat=0.72, tendon=0.2, synovial_fluid=0.02),
    Code.FASCIA: _material(tendon=0.65, muscle=0.15, subcutaneous_fat=0.15),
    Code.MUSCLE: _material("muscle", muscle=1.0),
    Code.CORTEX: _material(cortical_bone=0.9, marrow=0.06),
    Code.SCAR: _material("marrow", marrow=0.72, cortical_bone=0.2, marrow_oedema=0.04),
    Code.FEMUR: _material("marrow", marrow=0.97, marrow_oedema=0.03),
    Code.TIBIA: _material("marrow", marrow=0.97, marrow_oedema=0.03),
    Code.PATELLA: _material("marrow", marrow=0.97, marrow_oedema=0.03),
    Code.FIBULA: _material("marrow", marrow=0.97, marrow_oedema=0.03),
    Code.FEMORAL_CARTILAGE: _material(cartilage=1.0),
    Code.TIBIAL_CARTILAGE: _material(cartilage=1.0),
    Code.PATELLAR_CARTILAGE: _material(cartilage=1.0),
    Code.DEEP_CARTILAGE: _material(cartilage=0.62, meniscus=0.3),
    Code.MEDIAL_MENISCUS: _material(meniscus=0.97),
    Code.LATERAL_MENISCUS: _material(meniscus=0.97),
    Code.TENDON: _material(tendon=0.95, muscle=0.03),
    Code.LIGAMENT: _material(ligament=0.92, subcutaneous_fat=0.05),
    Code.CAPSULE: _material(ligament=0.5, subcutaneous_fat=0.3, muscle=0.1),
    Code.HOFFA: _material(subcutaneous_fat=0.93, muscle=0.05, synovial_fluid=0.01),
    Code.POUCH: _material(subcutaneous_fat=0.95, muscle=0.05),
    Code.GUTTER: _material(subcutaneous_fat=0.93, muscle=0.07),
    Code.RECESS: _material(subcutaneous_fat=0.95, muscle=0.05),
    Code.NOTCH: _material(subcutaneous_fat=0.70, muscle=0.22, synovial_fluid=0.03),
    Code.GAP: _material(cartilage=0.50, synovial_fluid=0.06, subcutaneous_fat=0.30),
    Code.FLUID: _material(synovial_fluid=1.0),
    Code.ARTERY: _material(blood=0.06),
    Code.VEIN: _material(blood=1.0),
    Code.NERVE: _material(muscle=0.45, subcutaneous_fat=0.40, synovial_fluid=0.03),
    Code.PCL: _material(ligament=0.95, muscle=0.04),
    Code.STRAND: _material(subcutaneous_fat=0.7, tendon=0.22, synovial_fluid=0.02),
}


@dataclass(frozen=True)
class Finding:
    """One thing to be found.

    Attributes:
        diagnosis: of :data:`DIAGNOSES`; empty for what only looks like a finding.
        kind: e.g. ``"complete"`` for a ligament, ``"radial"`` for a meniscus.
        grade: severity, 0 (barely visible) to 1.
        where: side or place, for findings that have one.
    """

    diagnosis: str
    kind: str
    grade: float
    where: str = ""


@dataclass
class Canvas:
    """A knee while findings are painted on it.

    Attributes:
        knee: the healthy anatomy; not changed.
        codes: ``(X, Y, Z)`` uint8 on :data:`.phantom.GRID`, a copy.
        materials: of each code in use.
    """

    knee: Knee
    codes: NDArray[np.uint8] = field(init=False)
    materials: dict[int, Material] = field(init=False)
    _known: dict[Material, int] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.codes = self.knee.codes.copy()
        self.materials = dict(MATERIALS)

    def code(self, mixture: Mixture, texture: str = "", diagnosis: str = "") -> int:
        """The code of a material, a new one where it is new."""
        rounded = {
            name: round(share, 3) for name, share in mixture.items() if share > 0
        }
        made = Material(tuple(sorted(rounded.items())), texture, _BIT[diagnosis])
        if made not in self._known:
            new = int(Code.FIRST_FREE) + len(self._known)
            if new > 255:
                raise RuntimeError("an exam has more materials than codes")
            self._known[made] = new
            self.materials[new] = made
        return self._known[made]

    def mix(
        self,
        box: tuple[slice, slice, slice],
        share: Array,
        tissue: Mixture,
        diagnosis: str,
        generator: np.random.Generator,
        only: Iterable[int] | None = None,
        levels: int = 5,
    ) -> None:
        """Replace a share of what is in a box by another tissue.

        ``share`` (0 to 1, of the shape of the box) is dithered to a few levels, so that
        a soft border stays soft.  Codes are replaced where they are in ``only``.
        """
        part = self.codes[box]
        dither = generator.random(share.shape, dtype=np.float32)
        level = np.floor(np.clip(share, 0, 1) * levels + dither).astype(np.uint8)
        hit = level > 0
        if only is not None:
            hit &= np.isin(part, list(only))
        out = part.copy()
        for old in np.unique(part[hit]):
            base = self.materials[int(old)]
            for k in range(1, levels + 1):
                where = hit & (part == old) & (level == k)
                if not where.any():
                    continue
                t = k / levels
                mixture = {name: (1 - t) * value for name, value in base.mixture}
                for name, value in tissue.items():
                    mixture[name] = mixture.get(name, 0) + t * value
                shown = diagnosis if t > 0.15 or not diagnosis else ""
                out[where] = self.code(mixture, base.texture, shown)
        self.codes[box] = out


# --- which findings -------------------------------------------------------------------


def random_findings(
    labels: Mapping[str, int], age: float, generator: np.random.Generator
) -> list[Finding]:
    """Findings that give an exam its labels, and what only looks like one.

    Args:
        labels: 0 or 1 for each of :data:`DIAGNOSES`.
        age: in years; degeneration grows with it.
    """
    draw = generator.random

    def grade(low: float = 0.1) -> float:
        return float(low + (1 - low) * generator.beta(1.6, 1.4))

    worn = float(ramp(age, 25, 70))
    out: list[Finding] = []
    acute = False
    if labels["acl"]:
        kind = str(
            generator.choice(["complete", "partial", "chronic"], p=[0.5, 0.28, 0.22])
        )
        out.append(Finding("acl", kind, grade()))
        acute = kind == "complete"
    elif draw() < 0.10 + 0.15 * worn:
        out.append(Finding("", "mucoid ligament", grade()))
    else:
        out.append(Finding("", "ligament", grade(0.0)))
    torn = ""
    if labels["meniscus"]:
        torn = "medial" if draw() < 0.62 else "lateral"
        old = np.array([0.42, 0.16, 0.10, 0.06, 0.08, 0.18])
        young = np.array([0.20, 0.20, 0.08, 0.18, 0.26, 0.08])
        chances = worn * old + (1 - worn) * young
        kinds = [
            "horizontal",
            "radial",
            "root",
            "bucket handle",
            "longitudinal",
            "complex",
        ]
        kind = str(generator.choice(kinds, p=chances / chances.sum()))
        out.append(Finding("meniscus", kind, grade(), torn))
        if draw() < 0.12:
            other = "lateral" if torn == "medial" else "medial"
            out.append(Finding("meniscus", "horizontal", grade(), other))
    for side in ("medial", "lateral"):
        if side != torn and draw() < 0.22 + 0.4 * worn:
            out.append(Finding("", "intrasubstance signal", grade(), side))
    if draw() < 0.7:
        out.append(Finding("", "popliteal hiatus", grade(), "lateral"))

    # other findings: they come with the tears, and alone
    chance = {"effusion": 0.0, "bruise": 0.0, "cartilage defect": 0.0}
    chance |= {"marrow oedema": 0.0, "subchondral cyst": 0.0, "popliteal cyst": 0.0}
    chance |= {"ganglion": 0.0, "parameniscal cyst": 0.0}
    if labels["acl"]:
        chance |= {
            "effusion": 0.75 if acute else 0.45,
            "bruise": 0.7 if acute else 0.15,
        }
    if labels["meniscus"]:
        chance["effusion"] = max(chance["effusion"], 0.4)
        chance |= {"parameniscal cyst": 0.12, "popliteal cyst": 0.15}
        chance |= {"cartilage defect": 0.25, "marrow oedema": 0.2}
    alone = labels["abnormal"] and not (labels["acl"] or labels["meniscus"])
    if alone:
        chance |= {"effusion": 0.5, "cartilage defect": 0.5, "marrow oedema": 0.4}
        chance |= {"bruise": 0.12, "subchondral cyst": 0.15, "popliteal cyst": 0.2}
        chance |= {"ganglion": 0.12}
    found: list[Finding] = []
    while True:
        for kind, rate in chance.items():
            if draw() < rate:
                place = torn if kind == "parameniscal cyst" else ""
                found.append(Finding("abnormal", kind, grade(), place))
        if found or not alone:
            break
    out += found
    if draw() < 0.35:
        out.append(Finding("", "red marrow", grade(0.0)))
    return out


def without(
    findings: Iterable[Finding],
    labels: Mapping[str, int],
    generator: np.random.Generator,
) -> list[Finding]:
    """The same knee before something happened to it.

    Findings of diagnoses that ``labels`` does not name are taken out, an intact ligament
    takes the place of a torn one, and an exam that is still abnormal has a finding.
    """
    kept = []
    for finding in findings:
        gone = bool(finding.diagnosis) and not labels[finding.diagnosis]
        gone |= finding.kind == "parameniscal cyst" and not labels["meniscus"]
        if not gone:
            kept.append(finding)
        elif finding.diagnosis == "acl":
            kept.append(Finding("", "ligament", float(generator.random())))
    if labels["abnormal"] and not any(finding.diagnosis for finding in kept):
        kind = str(generator.choice(["effusion", "cartilage defect", "marrow oedema"]))
        kept.append(Finding("abnormal", kind, float(generator.uniform(0.1, 1))))
    return kept


def paint(
    knee: Knee, findings: Iterable[Finding], generator: np.random.Generator
) -> Canvas:
    """A knee with findings, and with the fluid that every knee has.

    Each finding has a randomness of its own: what else is painted does not change it.
    """
    canvas = Canvas(knee)
    findings = list(findings)
    seed = int(generator.integers(2**62))
    effusion = next((f for f in findings if f.kind == "effusion"), None)
    _fill_with_fluid(canvas, effusion, np.random.default_rng([seed, 0]))
    kinds = list(_PAINTERS)
    for finding in findings:
        if finding.kind in _PAINTERS:
            own = [seed, 1, kinds.index(finding.kind), finding.where == "lateral"]
            _PAINTERS[finding.kind](canvas, finding, np.random.default_rng(own))
    return canvas


# --- fluid ----------------------------------------------------------------------------


def _fill_with_fluid(
    canvas: Canvas, effusion: Finding | None, generator: np.random.Generator
) -> None:
    """Fluid up to a level in each space of the joint; every knee has some.

    A small effusion is more than this knee held before, and may be no more than another
    healthy knee holds: there readers disagree, too.  It collects above the patella and
    under it; the gutters, where a healthy knee has a mere film, fill as it grows.
    """
    healthy = 0.03 + 0.37 * generator.beta(1.3, 3.2)
    more = 0.0 if effusion is None else 0.10 + (0.86 - healthy) * effusion.grade
    # fluid does not spread evenly: most of it lies above and beside the patella
    share = dict(zip(SPACES, (1.0, 0.85, 0.7, 0.75, 0.8), strict=True))
    film = dict(zip(SPACES, (1.0, 0.5, 1.0, 1.0, 1.0), strict=True))
    if effusion is not None:
        share[Code.GUTTER] *= 0.35 + 0.65 * effusion.grade
    extra = canvas.code({_FLUID: 1.0}, "", "abnormal")
    where = canvas.knee.spaces
    fill = canvas.knee.fill.ravel()[where]
    before = canvas.knee.codes.ravel()[where]
    after = before.copy()
    for space in SPACES:
        normal = np.clip(healthy + generator.normal(0, 0.05), 0.02, 0.45)
        normal *= 255 * film[space]
        rise = 255 * more * share[space] * np.clip(generator.normal(1, 0.18), 0.5, 1.3)
        inside = before == space
        after[inside & (fill <= normal)] = Code.FLUID
        after[inside & (fill > normal) & (fill <= normal + rise)] = extra
    canvas.codes.ravel()[where] = after


# --- anterior cruciate ligament -------------------------------------------------------

_LIGAMENT: Mixture = {"ligament": 0.95}
_SWOLLEN: Mixture = {_OEDEMA: 0.55, _FLUID: 0.25, "ligament": 0.2}
_SOFT = (
    *SPACES,
    Code.FLUID,
    Code.HOFFA,
    Code.STRAND,
    Code.DEEP_FAT,
    Code.CAPSULE,
    Code.LIGAMENT,
)


def _cruciate(
    canvas: Canvas,
    curve: Curve,
    swelling: float,
    share: Callable[[Tube, Grid], Array],
    tissue: Mixture,
    diagnosis: str,
    generator: np.random.Generator,
    ends: tuple[float, float] = (0.0, 1.0),
) -> None:
    """Paint an anterior cruciate ligament: fibres, with a share of another tissue.

    ``swelling`` scales the thickness; ``ends`` keeps only a part of its length.
    """
    wide = np.array([4.6, 4.0, 4.0, 4.8, 6.0]) * swelling
    thin = np.array([2.6, 2.3, 2.3, 2.7, 3.6]) * swelling
    shape = tube(GRID, curve, wide, thin, (0.55, -0.6, 0.5), margin=1.0)
    part = GRID.part(shape.box)
    ragged = 0.0 if ends == (0.0, 1.0) else 0.05
    along = shape.along + ragged * rough(part, 2.5, generator)
    inside = (shape.distance < 0.25 * rough(part, 3.0, generator)) & (along >= ends[0])
    inside &= (along <= ends[1]) & _is_soft(canvas, shape.box)
    canvas.codes[shape.box][inside] = canvas.code(_LIGAMENT, "", diagnosis)
    # bundles run along the ligament, with a little fat between them toward the tibia
    stripes = np.sin(9 * shape.across + 1.5 * rough(part, 8.0, generator))
    streaks = np.clip(0.9 * stripes - 0.35, 0, 1) * (0.12 + 0.35 * shape.along)
    own = [canvas.code(_LIGAMENT, "", diagnosis)]
    canvas.mix(
        shape.box,
        np.where(inside, streaks, 0),
        {_FAT: 0.6, "muscle": 0.3, _FLUID: 0.06},
        diagnosis,
        generator,
        own,
        3,
    )
    more = np.where(inside, np.clip(share(shape, part), 0, 1), 0)
    if more.max() > 0:
        codes = [int(c) for c in np.unique(canvas.codes[shape.box][inside])]
        canvas.mix(shape.box, more, tissue, diagnosis, generator, codes, 4)


def _is_soft(canvas: Canvas, box: tuple[slice, slice, slice]) -> NDArray[np.bool_]:
    """Where a ligament may run: not in bone, cartilage or meniscus."""
    part = canvas.codes[box]
    return np.isin(part, [int(c) for c in _SOFT]) | (part >= Code.FIRST_FREE)


def _ligament_curve(canvas: Canvas, generator: np.random.Generator) -> Curve:
    curve = anterior_cruciate(canvas.knee.landmarks)
    shift = generator.normal(0, 0.8, (2, 3))
    shift[0, 0] = -1.0 - abs(shift[0, 0])  # into the notch: on the other side is bone
    t = np.linspace(0, 1, len(curve.points))[:, None]
    bow = generator.normal(0, 0.6, 3) * np.sin(np.pi * t)
    return Curve.through((curve.points + (1 - t) * shift[0] + t * shift[1] + bow)[::4])


def _healthy_ligament(
    canvas: Canvas, finding: Finding, generator: np.random.Generator
) -> None:
    size = generator.uniform(0.88, 1.12)
    # a little signal near the tibia is normal

    def share(shape: Tube, part: Grid) -> Array:
        return (
            0.45
            * finding.grade
            * ramp(shape.along, 0.5, 1.0)
            * _noise(part, 4, generator)
        )

    curve = _ligament_curve(canvas, generator)
    _cruciate(canvas, curve, size, share, {_OEDEMA: 0.6, _FAT: 0.3}, "", generator)


def _noise(part: Grid, scale: float, generator: np.random.Generator) -> Array:
    """Random field between 0 and 1."""
    return np.clip(0.5 + 0.35 * rough(part, scale, generator), 0, 1)


def _mucoid_ligament(
    canvas: Canvas, finding: Finding, generator: np.random.Generator
) -> None:
    """Thick and bright, but every fibre is there: a celery stalk, not a tear."""
    swelling = 1.1 + 0.5 * finding.grade

    def share(shape: Tube, part: Grid) -> Array:
        fibres = np.sin(11 * shape.across + 2 * rough(part, 10.0, generator))
        between = np.clip(0.65 + 0.5 * fibres, 0, 1)
        rim = ramp(shape.radial, 1.0, 0.75)
        return (0.45 + 0.4 * finding.grade) * between * rim

    tissue = {_OEDEMA: 0.8, _FLUID: 0.1 + 0.1 * finding.grade}
    _cruciate(
        canvas,
        _ligament_curve(canvas, generator),
        swelling,
        share,
        tissue,
        "",
        generator,
    )


def _complete_tear(
    canvas: Canvas, finding: Finding, generator: np.random.Generator
) -> None:
    """No continuous fibre: a gap, swollen stumps, the tibial one fallen forward."""
    curve = _ligament_curve(canvas, generator)
    g = finding.grade
    place = generator.choice(
        [generator.uniform(0.15, 0.35), generator.uniform(0.4, 0.62)]
    )
    gap = (1.8 + 3.0 * g) / curve.length

    def share(shape: Tube, part: Grid) -> Array:
        close = np.exp(-(((shape.along - place) / (0.22 + 0.2 * g)) ** 2))
        return (0.35 + 0.8 * close) * (0.6 + 0.6 * _noise(part, 3, generator))

    # fluid and blood where the ligament is torn
    centre = curve.at(float(place))
    _blob(
        canvas,
        centre,
        np.array([4.5, 4.5, 4.5]) + 2.5 * g,
        {_FLUID: 0.55, _OEDEMA: 0.4},
        "acl",
        generator,
        0.5 + 0.4 * g,
        [int(c) for c in _SOFT],
    )
    swelling = 1.05 + 0.35 * g
    _cruciate(
        canvas, curve, swelling, share, _SWOLLEN, "acl", generator, (0.0, place - gap)
    )
    t = np.linspace(0, 1, len(curve.points))
    fall = np.clip((1 - t) / (1 - place), 0, 1) ** 1.5 * (t > place)
    fallen = curve.points + fall[:, None] * np.array(
        [0.0, 1.5 + 3.5 * g, -2.0 - 7.0 * g]
    )
    keep = fallen[t > place + 0.7 * gap]
    stump = Curve.through(keep[:: max(1, len(keep) // 5)])
    _cruciate(canvas, stump, swelling, share, _SWOLLEN, "acl", generator, (0.03, 1.0))


def _partial_tear(
    canvas: Canvas, finding: Finding, generator: np.random.Generator
) -> None:
    """One part of the section is torn and bright, the other runs through."""
    g = finding.grade
    place, reach = generator.uniform(0.2, 0.6), 0.12 + 0.14 * g
    way = generator.choice([-1.0, 1.0])

    def share(shape: Tube, part: Grid) -> Array:
        torn = ramp(way * shape.across, 0.35 - 0.5 * g, 0.6 - 0.5 * g)
        close = np.exp(-(((shape.along - place) / reach) ** 2))
        soft = 0.3 * (0.4 + g) * _noise(part, 4, generator)
        return np.maximum(torn * close * (0.75 + 0.3 * g), soft * close**0.3)

    curve = _ligament_curve(canvas, generator)
    size = 1.0 + 0.3 * g
    _cruciate(canvas, curve, size, share, {_FLUID: 0.5, _OEDEMA: 0.5}, "acl", generator)


def _chronic_tear(
    canvas: Canvas, finding: Finding, generator: np.random.Generator
) -> None:
    """No oedema: the ligament is gone, or a thin lax band that leans on the posterior one."""
    curve = _ligament_curve(canvas, generator)
    mark = tube(GRID, curve, 4.0, 2.4, (0.55, -0.6, 0.5), margin=0.0)
    empty = (mark.distance < 0) & _is_soft(canvas, mark.box)
    part = canvas.codes[mark.box]
    fluid = rough(GRID.part(mark.box), 4.0, generator) > 1.6 - 1.2 * finding.grade
    part[empty] = canvas.code({_FAT: 0.6, "muscle": 0.3, _FLUID: 0.04}, "", "acl")
    part[empty & fluid] = canvas.code({_FLUID: 0.9}, "", "acl")
    if generator.random() < 0.6:
        t = np.linspace(0, 1, len(curve.points))[:, None]
        lean = np.array([-6.0, 1.0, -9.0]) * (1 - t) ** 0.7
        sag = np.array([0.0, -1.0, -4.0]) * np.sin(np.pi * t)
        lax = Curve.through((curve.points + lean + sag)[4::4])

        def share(shape: Tube, part: Grid) -> Array:
            return 0.25 * _noise(part, 4, generator)

        size = 0.75 - 0.35 * finding.grade
        _cruciate(canvas, lax, size, share, {_OEDEMA: 0.5, _FAT: 0.4}, "acl", generator)


# --- menisci --------------------------------------------------------------------------

#: Length of a meniscus from root to root along its middle, and its width, in mm.
_LENGTH, _WIDTH = 80.0, 10.0


def _meniscal_tear(
    canvas: Canvas, finding: Finding, generator: np.random.Generator
) -> None:
    """Fluid in a cleft that reaches the surface; :data:`Finding.kind` says its course."""
    meniscus = canvas.knee.menisci[finding.where]
    g = finding.grade
    gap = 0.55 + 0.95 * g + generator.uniform(0, 0.25)  # mm
    signal = 0.45 + 0.5 * g
    a, r, h = meniscus.angle, meniscus.radius, meniscus.height
    thick = meniscus.thickness
    wave = _along(meniscus.voxels, 5.0, generator)
    posterior = finding.where == "medial" or generator.random() < 0.5
    middle = (
        generator.uniform(0.62, 0.84) if posterior else generator.uniform(0.25, 0.6)
    )
    reach = 0.10 + 0.10 * g + generator.uniform(0, 0.05)
    kind = finding.kind
    if kind == "complex":
        near = np.abs(a - middle) < reach
        sheet = np.abs(h - 0.5 + 0.12 * wave) * thick < gap / 2
        cut = np.abs(a - middle + 0.015 * wave) * _LENGTH < gap / 2 + 0.3
        split = np.abs(r - 0.55 + 0.06 * wave) * _WIDTH < gap / 2
        torn = near & (sheet | split) | cut & (r < 0.8)
    elif kind == "horizontal":
        slope = generator.choice([0.0, 0.45, -0.45], p=[0.4, 0.4, 0.2])
        level = 0.5 + slope * (r - 0.55) + 0.10 * wave
        torn = (np.abs(h - level) * thick < gap / 2) & (r < 0.88)
        torn &= np.abs(a - middle) < reach
    elif kind == "radial":
        deep = 0.45 + 0.5 * g
        torn = np.abs(a - middle + 0.012 * wave) * _LENGTH < gap / 2 + 0.35
        torn &= r < deep + 0.05 * wave
    elif kind == "root":
        torn = np.abs(a - 0.945 + 0.012 * wave) * _LENGTH < gap / 2 + 0.8 + 1.2 * g
    elif kind == "bucket handle":
        inner = 0.46 + 0.06 * wave
        torn = (r < inner) & (np.abs(a - 0.58) < 0.22 + 0.1 * g)
        _bucket_fragment(canvas, finding)
        signal = max(signal, 0.8)
    else:  # longitudinal
        torn = np.abs(r - 0.68 + 0.06 * wave) * _WIDTH < gap / 2
        torn &= np.abs(a - middle) < 1.4 * reach
    own = meniscus.voxels[torn]
    _blend(canvas, own, signal, {_FLUID: 0.3, _TORN: 0.65}, "meniscus", generator)
    halo = np.abs(a - middle) < 1.3 * reach
    halo &= ~torn & (np.abs(h - 0.5) * thick < 1.6) & (r > 0.2)
    if kind in ("horizontal", "complex"):
        soft = 0.10 + 0.2 * generator.random()
        _blend(canvas, meniscus.voxels[halo], soft, {_TORN: 0.7}, "", generator)


def _along(
    voxels: NDArray[np.int16], scale: float, generator: np.random.Generator
) -> Array:
    """A smooth random value at each voxel, unit variance."""
    low = voxels.min(0)
    shape = voxels.max(0) - low + 1
    part = Grid(
        (0.0, 0.0, 0.0), (int(shape[0]), int(shape[1]), int(shape[2])), GRID.spacing
    )
    return rough(part, scale, generator)[tuple((voxels - low).T)]


def _blend(
    canvas: Canvas,
    voxels: NDArray[np.int16],
    share: float,
    tissue: Mixture,
    diagnosis: str,
    generator: np.random.Generator,
) -> None:
    """Give single voxels of a meniscus a share of another tissue, with some grain."""
    if not len(voxels):
        return
    level = np.clip(share * generator.normal(1, 0.15, len(voxels)), 0, 1)
    step = np.clip(np.round(level * 6), 1, 6).astype(int)
    for k in np.unique(step):
        t = k / 6
        mixture = {"meniscus": 0.97 * (1 - t)}
        for name, value in tissue.items():
            mixture[name] = mixture.get(name, 0) + t * value
        index = voxels[step == k].astype(int)
        canvas.codes[tuple(index.T)] = canvas.code(mixture, "", diagnosis)


def _bucket_fragment(canvas: Canvas, finding: Finding) -> None:
    """The torn-off inner rim lies in the notch, below the posterior cruciate ligament."""
    away = 1.0 if finding.where == "lateral" else -1.0
    points = (
        np.array(
            [
                (9 * away, 15, 4),
                (4 * away, 6, 5),
                (2.5 * away, -4, 5.5),
                (5 * away, -14, 4),
            ]
        )
        * canvas.knee.landmarks["scale"]
    )
    shape = tube(
        GRID, Curve.through(points), 2.6 + 0.8 * finding.grade, 2.0, margin=0.5
    )
    inside = (shape.distance < 0) & _is_soft(canvas, shape.box)
    canvas.codes[shape.box][inside] = canvas.code({"meniscus": 0.95}, "", "meniscus")


def _intrasubstance(
    canvas: Canvas, finding: Finding, generator: np.random.Generator
) -> None:
    """Signal within a meniscus that stays a millimetre away from every surface."""
    meniscus = canvas.knee.menisci[finding.where]
    a, r, h = meniscus.angle, meniscus.radius, meniscus.height
    deep = np.minimum(h, 1 - h) * meniscus.thickness
    middle = generator.uniform(0.55, 0.88)
    wave = _along(meniscus.voxels, 5.0, generator)
    spot = (deep > 1.1) & (r > 0.38) & (r < 0.88 + 0.05 * wave)
    spot &= np.abs(a - middle) < 0.06 + 0.1 * finding.grade
    if generator.random() < 0.6:  # a line rather than a cloud
        spot &= np.abs(h - 0.5 + 0.1 * wave) * meniscus.thickness < 0.5
    share = 0.25 + 0.5 * finding.grade
    tissue = {_FLUID: 0.2, _TORN: 0.75}
    _blend(canvas, meniscus.voxels[spot], share, tissue, "", generator)


def _popliteal_hiatus(
    canvas: Canvas, finding: Finding, generator: np.random.Generator
) -> None:
    """Fluid between the lateral meniscus and the popliteus tendon, as in every knee."""
    meniscus = canvas.knee.menisci["lateral"]
    spot = (meniscus.radius > 0.93) & (np.abs(meniscus.angle - 0.70) < 0.06)
    share = 0.3 + 0.5 * finding.grade
    _blend(canvas, meniscus.voxels[spot], share, {_FLUID: 0.9}, "", generator)


# --- cartilage, bone and cysts --------------------------------------------------------


def _blob(
    canvas: Canvas,
    centre: NDArray,
    radii: NDArray,
    tissue: Mixture,
    diagnosis: str,
    generator: np.random.Generator,
    share: float,
    only: Iterable[int],
    soft: float = 0.6,
    grain: float = 0.35,
) -> None:
    """An irregular cloud of another tissue around a point.

    ``soft`` is the share of the radius over which it fades, ``grain`` how ragged it is.
    """
    reach = radii * (1.3 + grain)
    box = GRID.box(centre - reach, centre + reach)
    part = GRID.part(box)
    x, y, z = part.axes()
    distance = np.sqrt(
        ((x - centre[0]) / radii[0]) ** 2
        + ((y - centre[1]) / radii[1]) ** 2
        + ((z - centre[2]) / radii[2]) ** 2
    )
    size = float(np.mean(radii))
    distance = distance + grain * rough(part, max(0.7 * size, 1.5), generator)
    distance = distance + 0.4 * grain * rough(part, max(0.25 * size, 1.0), generator)
    amount = share * ramp(distance, 1.0, 1.0 - soft)
    canvas.mix(box, amount.astype(np.float32), tissue, diagnosis, generator, only, 4)


_MARROW_CODES = [
    int(c) for c in (Code.FEMUR, Code.TIBIA, Code.PATELLA, Code.FIBULA, Code.SCAR)
]
#: Cartilage that wears: the surface codes.
_SURFACES = (Code.FEMORAL_CARTILAGE, Code.TIBIAL_CARTILAGE, Code.PATELLAR_CARTILAGE)


def _surface_point(
    canvas: Canvas, generator: np.random.Generator
) -> tuple[NDArray, NDArray]:
    """A random place on cartilage that bears load, in mm, and the way into the bone."""
    surface = _SURFACES[int(generator.choice(3, p=[0.55, 0.2, 0.25]))]
    box = GRID.box((-45, -25, -12), (45, 70, 62))
    where = np.argwhere(canvas.knee.codes[box] == surface)
    offset = np.array([part.start for part in box])
    point = (where[generator.integers(len(where))] + offset) * GRID.spacing + GRID.low
    marrow = {
        Code.FEMORAL_CARTILAGE: Code.FEMUR,
        Code.TIBIAL_CARTILAGE: Code.TIBIA,
        Code.PATELLAR_CARTILAGE: Code.PATELLA,
    }[surface]
    near = GRID.box(point - 12, point + 12)
    bone = np.argwhere(canvas.knee.codes[near] == marrow)
    if not len(bone):
        return point, np.array([0.0, 0.0, 1.0])
    corner = np.array([part.start for part in near])
    inward = (bone + corner).mean(0) * GRID.spacing + GRID.low - point
    return point, inward / np.linalg.norm(inward)


def _cartilage_defect(
    canvas: Canvas, finding: Finding, generator: np.random.Generator
) -> None:
    """A crater, half or all the way down to the bone, with some oedema below it."""
    g = finding.grade
    point, inward = _surface_point(canvas, generator)
    radius = 3.0 + 5.0 * g
    box = GRID.box(point - radius - 3, point + radius + 3)
    part = GRID.part(box)
    x, y, z = part.axes()
    distance = np.sqrt((x - point[0]) ** 2 + (y - point[1]) ** 2 + (z - point[2]) ** 2)
    crater = distance + 1.2 * rough(part, 3.0, generator) < radius
    codes = canvas.codes[box]
    worn = np.isin(codes, [int(c) for c in _SURFACES])
    if g > 0.55:
        worn |= codes == Code.DEEP_CARTILAGE
    share = np.where(crater & worn, 0.55 + 0.45 * g, 0).astype(np.float32)
    only = [int(c) for c in (*_SURFACES, Code.DEEP_CARTILAGE)]
    canvas.mix(box, share, {_FLUID: 1.0}, "abnormal", generator, only, 4)
    if generator.random() < 0.3 + 0.5 * g:
        size = np.full(3, 3.0 + 5.0 * g)
        centre = point + inward * (3.0 + 0.5 * size[0])
        _oedema(canvas, centre, size, 0.3 + 0.4 * g, generator)


def _oedema(
    canvas: Canvas,
    centre: NDArray,
    radii: NDArray,
    share: float,
    generator: np.random.Generator,
) -> None:
    _blob(
        canvas,
        centre,
        radii,
        {_OEDEMA: 0.85, _FLUID: 0.06},
        "abnormal",
        generator,
        share,
        _MARROW_CODES,
        0.75,
        0.4,
    )


def _marrow_oedema(
    canvas: Canvas, finding: Finding, generator: np.random.Generator
) -> None:
    g = finding.grade
    point, inward = _surface_point(canvas, generator)
    radii = (5.0 + 7.0 * g) * generator.uniform(0.7, 1.3, 3)
    centre = point + inward * (3.0 + 0.6 * float(radii.mean()))
    _oedema(canvas, centre, radii, 0.35 + 0.5 * g, generator)


def _bruise(canvas: Canvas, finding: Finding, generator: np.random.Generator) -> None:
    """Where femur and tibia hit each other when the ligament tears: the lateral side."""
    g = finding.grade
    scale = canvas.knee.landmarks["scale"]
    shown = generator.random(2) < 0.8
    shown[generator.integers(2)] = True  # one of the two shows in any case
    for point in np.array([(22, 9, 15), (23, -17, -9)])[shown]:
        centre = point * scale + generator.normal(0, 2.5, 3)
        radii = (6.0 + 7.0 * g) * generator.uniform(0.7, 1.3, 3)
        _oedema(canvas, centre, radii, 0.35 + 0.45 * g, generator)


def _subchondral_cyst(
    canvas: Canvas, finding: Finding, generator: np.random.Generator
) -> None:
    point, inward = _surface_point(canvas, generator)
    size = 1.6 + 2.6 * finding.grade
    centre = point + inward * (2.5 + size)
    _oedema(canvas, centre, np.full(3, 2.2 * size), 0.4, generator)
    _blob(
        canvas,
        centre,
        size * generator.uniform(0.8, 1.2, 3),
        {_FLUID: 0.95},
        "abnormal",
        generator,
        1.0,
        [*_MARROW_CODES, *range(Code.FIRST_FREE, 256)],
        0.15,
        0.15,
    )


_CYST_MAY_REPLACE = [
    int(c)
    for c in (
        Code.DEEP_FAT,
        Code.STRAND,
        Code.MUSCLE,
        Code.FASCIA,
        Code.HOFFA,
        Code.FAT,
        Code.SEPTUM,
        Code.CAPSULE,
        Code.FLUID,
        *SPACES,
    )
]


def _cyst(
    canvas: Canvas, lobes: list[tuple[NDArray, NDArray]], generator: np.random.Generator
) -> None:
    """Fluid in connected lobes with a thin dark wall."""
    for centre, radii in lobes:
        _blob(
            canvas,
            centre,
            radii + 0.7,
            {"ligament": 0.5, "muscle": 0.4},
            "abnormal",
            generator,
            1.0,
            _CYST_MAY_REPLACE,
            0.05,
            0.08,
        )
    wall = [
        c for c, m in canvas.materials.items() if dict(m.mixture).get("ligament") == 0.5
    ]
    inside = [*_CYST_MAY_REPLACE, *wall]
    for centre, radii in lobes:
        _blob(
            canvas,
            centre,
            radii,
            {_FLUID: 0.97},
            "abnormal",
            generator,
            1.0,
            inside,
            0.1,
            0.08,
        )


def _popliteal_cyst(
    canvas: Canvas, finding: Finding, generator: np.random.Generator
) -> None:
    """Between semimembranosus and medial gastrocnemius, with a neck to the joint."""
    g, scale = finding.grade, canvas.knee.landmarks["scale"]
    at = np.array([-27.0, -38.0, generator.uniform(-12, 12)]) * scale
    body = (at, np.array([3.5 + 5 * g, 3.0 + 4.0 * g, 7.0 + 14 * g]))
    neck = (np.array([-25.0, -29.0, 7.0]) * scale, np.array([2.0, 5.0, 2.5]))
    _cyst(canvas, [body, neck], generator)


def _ganglion(canvas: Canvas, finding: Finding, generator: np.random.Generator) -> None:
    """Small lobes beside the cruciate ligaments or the joint of the fibula."""
    scale = canvas.knee.landmarks["scale"]
    spots = np.array([(-1, -21, 12), (2, -12, 24), (28, -24, -12), (-8, 20, 4)], float)
    at = spots[generator.integers(len(spots))] * scale
    size = 1.8 + 2.8 * finding.grade
    lobes = [
        (at + generator.normal(0, 0.9 * size, 3), size * generator.uniform(0.6, 1.2, 3))
        for _ in range(int(generator.integers(2, 5)))
    ]
    _cyst(canvas, lobes, generator)


def _parameniscal_cyst(
    canvas: Canvas, finding: Finding, generator: np.random.Generator
) -> None:
    meniscus = canvas.knee.menisci[finding.where]
    rim = np.flatnonzero(
        (meniscus.radius > 0.93)
        & (np.abs(meniscus.height - 0.5) < 0.15)
        & (np.abs(meniscus.angle - generator.uniform(0.4, 0.7)) < 0.04)
    )
    if not len(rim):
        return
    edge = meniscus.voxels[generator.choice(rim)] * GRID.spacing + GRID.low
    out = np.array([edge[0], edge[1], 0.0])
    out /= np.linalg.norm(out)
    size = 1.8 + 3.2 * finding.grade
    at = edge + out * (0.8 * size)
    _cyst(canvas, [(at, size * generator.uniform(0.7, 1.3, 3))], generator)


def _red_marrow(
    canvas: Canvas, finding: Finding, generator: np.random.Generator
) -> None:
    """Islands of red marrow in the shaft of the femur: normal, and not oedema."""
    box = GRID.box((-45, -20, 34), (45, 50, 94))
    part = GRID.part(box)
    z = part.axes()[2]
    field = rough(part, (6.0, 6.0, 11.0), generator) + 0.6 * rough(part, 3.0, generator)
    high = ramp(z, 36, 60)
    share = 0.45 * (0.4 + 0.6 * finding.grade) * ramp(field, 0.4, 1.4) * high
    tissue = {"marrow": 0.35, _OEDEMA: 0.5}
    canvas.mix(box, share, tissue, "", generator, [int(Code.FEMUR)], 4)


_PAINTERS: dict[str, Callable[[Canvas, Finding, np.random.Generator], None]] = {
    "ligament": _healthy_ligament,
    "mucoid ligament": _mucoid_ligament,
    "complete": _complete_tear,
    "partial": _partial_tear,
    "chronic": _chronic_tear,
    "horizontal": _meniscal_tear,
    "radial": _meniscal_tear,
    "root": _meniscal_tear,
    "bucket handle": _meniscal_tear,
    "longitudinal": _meniscal_tear,
    "complex": _meniscal_tear,
    "intrasubstance signal": _intrasubstance,
    "popliteal hiatus": _popliteal_hiatus,
    "cartilage defect": _cartilage_defect,
    "marrow oedema": _marrow_oedema,
    "bruise": _bruise,
    "subchondral cyst": _subchondral_cyst,
    "popliteal cyst": _popliteal_cyst,
    "ganglion": _ganglion,
    "parameniscal cyst": _parameniscal_cyst,
    "red marrow": _red_marrow,
}
