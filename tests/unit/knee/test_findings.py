"""Findings lie where they should, and give the labels that an exam carries."""

import numpy as np
import pytest

from medimg_utils.knee.findings import (
    _FLUID,
    _PAINTERS,
    DIAGNOSES,
    Canvas,
    Finding,
    paint,
    random_findings,
    without,
)
from medimg_utils.knee.phantom import load_knee
from medimg_utils.knee.shapes import Curve, tube
from medimg_utils.knee.soft_tissue import anterior_cruciate
from medimg_utils.knee.voxels import GRID, Code

LIGAMENT = Finding("", "ligament", 0.0)


@pytest.fixture(scope="module")
def knee():
    return load_knee("knee1", "average")


def painted(knee, *findings, seed=0):
    return paint(knee, findings, np.random.default_rng(seed))


def volume(canvas, diagnosis):
    """Of the lesions that show a diagnosis, in mm³."""
    bit = {"abnormal": 1, "acl": 2, "meniscus": 4}[diagnosis]
    codes = [c for c, material in canvas.materials.items() if material.shows & bit]
    return float(np.isin(canvas.codes, codes).sum()) * GRID.spacing**3


def share(canvas, *tissues):
    """Share of some tissues in each voxel of the canvas."""
    table = np.zeros(256, np.float32)
    for code, material in canvas.materials.items():
        table[code] = sum(value for name, value in material.mixture if name in tissues)
    return table[canvas.codes]


# --- the choice -----------------------------------------------------------------------


@pytest.mark.parametrize("group", [(), ("abnormal",), ("acl",), ("meniscus",)])
def test_an_exam_has_the_findings_of_its_labels(group):
    labels = {name: int(name in group) for name in DIAGNOSES}
    labels["abnormal"] = int(bool(group))
    random = np.random.default_rng(1)
    for age in (16, 40, 80) * 30:
        found = [f for f in random_findings(labels, age, random) if f.diagnosis]
        have = {f.diagnosis for f in found}
        for name in ("acl", "meniscus"):
            assert (name in have) == bool(labels[name])
        assert bool(have) == bool(labels["abnormal"])
        assert all(0 <= f.grade <= 1 for f in found)
        assert all(f.kind in _PAINTERS or f.kind == "effusion" for f in found)


def test_a_complete_tear_comes_with_fluid_and_bruises():
    """As in patients: most acute tears, few intact knees with another finding."""
    random = np.random.default_rng(0)
    acl = {"acl": 1, "meniscus": 0, "abnormal": 1}
    other = {"acl": 0, "meniscus": 0, "abnormal": 1}

    def rate(labels, kind):
        exams = [random_findings(labels, 30, random) for _ in range(400)]
        return np.mean([kind in {f.kind for f in exam} for exam in exams])

    assert rate(acl, "bruise") > 2 * rate(other, "bruise")
    assert 0.4 < rate(acl, "effusion") < 0.8


def test_degeneration_grows_with_age():
    random = np.random.default_rng(0)
    labels = {"acl": 0, "meniscus": 1, "abnormal": 1}

    def rate(age):
        exams = [random_findings(labels, age, random) for _ in range(400)]
        return np.mean([any(f.kind == "horizontal" for f in exam) for exam in exams])

    assert rate(75) > rate(18) + 0.1


def test_a_knee_before_a_tear_has_its_other_findings_and_a_ligament():
    random = np.random.default_rng(5)
    both = {"acl": 1, "meniscus": 1, "abnormal": 1}
    for _ in range(60):
        found = random_findings(both, 50, random)
        before = without(found, both | {"acl": 0}, random)
        assert [f for f in found if f.diagnosis != "acl"] == before[:-1] or any(
            f.kind == "ligament" for f in before
        )
        assert {f.diagnosis for f in before} >= {"meniscus"}
        assert not any(f.diagnosis == "acl" for f in before)
        healthy = without(found, dict.fromkeys(both, 0), random)
        assert not any(f.diagnosis for f in healthy)
        assert sum(f.kind in ("ligament", "mucoid ligament") for f in healthy) == 1
        left = without(found, both | {"acl": 0, "meniscus": 0}, random)
        assert any(f.diagnosis == "abnormal" for f in left)
        assert not any(f.kind == "parameniscal cyst" for f in left)


def test_what_else_is_painted_does_not_change_a_finding(knee):
    defect = Finding("abnormal", "cartilage defect", 0.7)
    alone = painted(knee, LIGAMENT, defect)
    more = painted(knee, LIGAMENT, Finding("meniscus", "radial", 0.5, "medial"), defect)
    assert volume(alone, "abnormal") > 0
    other = volume(more, "abnormal") - volume(more, "meniscus")
    assert volume(alone, "abnormal") == other


# --- the lesions ----------------------------------------------------------------------

TEARS = [
    ("acl", "complete", ""),
    ("acl", "partial", ""),
    ("acl", "chronic", ""),
    ("meniscus", "horizontal", "medial"),
    ("meniscus", "radial", "lateral"),
    ("meniscus", "root", "medial"),
    ("meniscus", "bucket handle", "medial"),
    ("meniscus", "longitudinal", "lateral"),
    ("meniscus", "complex", "medial"),
    ("abnormal", "effusion", ""),
    ("abnormal", "cartilage defect", ""),
    ("abnormal", "marrow oedema", ""),
    ("abnormal", "bruise", ""),
    ("abnormal", "subchondral cyst", ""),
    ("abnormal", "popliteal cyst", ""),
    ("abnormal", "ganglion", ""),
    ("abnormal", "parameniscal cyst", "medial"),
]


@pytest.mark.parametrize(("diagnosis", "kind", "where"), TEARS)
def test_every_finding_is_seen_even_when_subtle(knee, diagnosis, kind, where):
    for seed, grade in ((0, 0.1), (1, 0.95)):
        canvas = painted(knee, Finding(diagnosis, kind, grade, where), seed=seed)
        assert volume(canvas, diagnosis) > 5
        if diagnosis != "abnormal":
            assert volume(canvas, "abnormal") == volume(canvas, diagnosis)
        for other in {"acl", "meniscus"} - {diagnosis}:
            assert volume(canvas, other) == 0


def test_what_only_looks_like_a_finding_shows_no_diagnosis(knee):
    canvas = painted(
        knee,
        Finding("", "mucoid ligament", 0.9),
        Finding("", "intrasubstance signal", 0.9, "medial"),
        Finding("", "popliteal hiatus", 0.9, "lateral"),
        Finding("", "red marrow", 0.9),
    )
    assert not any(canvas.materials[int(c)].shows for c in np.unique(canvas.codes))


def test_healthy_anatomy_is_not_changed(knee):
    before = knee.codes.sum(dtype=np.int64)
    painted(knee, Finding("acl", "complete", 0.9), Finding("abnormal", "effusion", 1))
    assert knee.codes.sum(dtype=np.int64) == before


# --- anterior cruciate ligament -------------------------------------------------------


def fibres_along(knee, finding, seed):
    """Least volume of fibre in ten stretches from femur to tibia, in mm³."""
    curve = anterior_cruciate(knee.landmarks)
    shape = tube(GRID, curve, 5.5, 5.5, margin=0.0)
    canvas = painted(knee, finding, seed=seed)
    fibre = (share(canvas, "ligament")[shape.box] > 0.45) & (shape.distance < 0)
    place = np.clip((shape.along * 12).astype(int), 0, 11)
    return np.bincount(place[fibre], minlength=12)[1:11].min() * GRID.spacing**3


@pytest.mark.parametrize("seed", range(3))
def test_only_a_complete_tear_interrupts_the_fibres(knee, seed):
    assert fibres_along(knee, LIGAMENT, seed) > 10
    assert fibres_along(knee, Finding("", "mucoid ligament", 0.6), seed) > 10
    for grade in (0.2, 0.7):
        assert fibres_along(knee, Finding("acl", "partial", grade), seed) > 1.5
        assert fibres_along(knee, Finding("acl", "complete", grade), seed) < 0.5


def test_a_tear_brings_water(knee):
    def water(kind, diagnosis, grade):
        canvas = painted(knee, Finding(diagnosis, kind, grade), seed=2)
        shape = tube(GRID, anterior_cruciate(knee.landmarks), 4.0, 2.4, margin=0.0)
        near = share(canvas, _FLUID, "marrow oedema")[shape.box]
        return float(near[shape.distance < 0].mean())

    healthy = water("ligament", "", 0.0)
    assert water("complete", "acl", 0.9) > water("complete", "acl", 0.2) > healthy
    assert water("partial", "acl", 0.5) > healthy
    assert water("mucoid ligament", "", 0.6) > healthy  # the hard negative


def test_the_ligament_holds_on_to_femur_and_tibia(knee):
    curve = anterior_cruciate(knee.landmarks)
    for end, bone in ((curve.points[0], Code.FEMUR), (curve.points[-1], Code.TIBIA)):
        box = GRID.box(end - 6, end + 6)
        assert (knee.codes[box] == bone).any(), bone


# --- menisci --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", ["horizontal", "radial", "root", "longitudinal", "complex"]
)
def test_a_meniscal_tear_reaches_the_surface_and_other_signal_does_not(knee, kind):
    meniscus = knee.menisci["medial"]
    deep = np.minimum(meniscus.height, 1 - meniscus.height) * meniscus.thickness
    for seed in range(3):
        canvas = painted(knee, Finding("meniscus", kind, 0.5, "medial"), seed=seed)
        codes = canvas.codes[tuple(meniscus.voxels.T.astype(int))]
        torn = np.array([canvas.materials[int(c)].shows & 4 > 0 for c in codes])
        surface = (deep < 0.5) | (meniscus.radius < 0.15)
        assert (torn & surface).any()
    signal = Finding("", "intrasubstance signal", 1.0, "medial")
    canvas = painted(knee, signal)
    codes = canvas.codes[tuple(meniscus.voxels.T.astype(int))]
    wet = np.array(
        [dict(canvas.materials[int(c)].mixture).get(_FLUID, 0) > 0.05 for c in codes]
    )
    assert wet.any()
    assert deep[wet].min() > 1.0


def test_a_worse_tear_is_larger(knee):
    for _, kind, where in (row for row in TEARS if row[0] == "meniscus"):
        sizes = []
        for grade in (0.1, 0.95):
            canvas = painted(knee, Finding("meniscus", kind, grade, where), seed=5)
            sizes.append(volume(canvas, "meniscus"))
        assert sizes[1] > sizes[0], kind


# --- fluid, cartilage, bone -----------------------------------------------------------


def fluid(canvas):
    return int((share(canvas, _FLUID) > 0.8).sum()) * GRID.spacing**3 / 1000  # ml


def effusion(grade):
    return Finding("abnormal", "effusion", grade)


def test_every_knee_has_some_fluid_and_an_effusion_adds_to_it(knee):
    none, few, most = (), (effusion(0.1),), (effusion(1.0),)
    normal, small, large = (
        [fluid(painted(knee, *findings, seed=seed)) for seed in range(12)]
        for findings in (none, few, most)
    )
    assert min(normal) > 0.2
    for before, some, much in zip(normal, small, large, strict=True):
        assert 1.1 * before < some < much
        assert 20 < much < 120
    # much fluid of a healthy knee is more than a small effusion of another
    assert max(normal) > min(small)


def test_a_bruise_shows_in_one_bone_at_least(knee):
    places = set()
    for seed in range(30):
        canvas = painted(knee, Finding("abnormal", "bruise", 0.1), seed=seed)
        codes = [c for c, material in canvas.materials.items() if material.shows]
        where = np.isin(canvas.codes, codes)
        bones = [
            bool(where[knee.codes == bone].any()) for bone in (Code.FEMUR, Code.TIBIA)
        ]
        assert any(bones)
        places.add(tuple(bones))
    assert len(places) > 1


def test_bone_and_cartilage_findings_stay_in_their_tissue(knee):
    marrow = [Code.FEMUR, Code.TIBIA, Code.PATELLA, Code.FIBULA, Code.SCAR]
    surface = [Code.FEMORAL_CARTILAGE, Code.TIBIAL_CARTILAGE, Code.PATELLAR_CARTILAGE]
    for kind, tissue in (
        ("marrow oedema", marrow),
        ("bruise", marrow),
        ("subchondral cyst", marrow),
        ("cartilage defect", [*surface, Code.DEEP_CARTILAGE, *marrow]),
    ):
        canvas = painted(knee, Finding("abnormal", kind, 0.8), seed=3)
        codes = [c for c, m in canvas.materials.items() if m.shows]
        under = knee.codes[np.isin(canvas.codes, codes)]
        assert np.isin(under, tissue).all(), kind


def test_codes_run_out_with_a_message(knee):
    canvas = Canvas(knee)
    free = 256 - Code.FIRST_FREE
    assert len({canvas.code({"muscle": k / 1000}) for k in range(1, 1 + free)}) == free
    assert canvas.code({"muscle": 0.001}) == Code.FIRST_FREE  # known already
    with pytest.raises(RuntimeError, match="more materials than codes"):
        canvas.code({"muscle": 0.9})


def test_a_curve_is_as_long_as_its_points_say():
    assert Curve.through([(0, 0, 0), (3, 4, 0)]).length == pytest.approx(5)
