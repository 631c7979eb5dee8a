"""What a label map does not know: everything around bones, cartilage and menisci.

Skin, fat, fascia, muscles, vessels, tendons, ligaments, the capsule, and the spaces that
fluid can fill are laid out by hand: tables of places in mm that were drawn after
anatomical atlases and the real scan of the registry, scaled to the tibia and hung onto
landmarks of the bones.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage as ndi
from scipy.interpolate import PchipInterpolator

from medimg_utils.knee.hard_tissue import HardTissue
from medimg_utils.knee.shapes import (
    Array,
    Column,
    Curve,
    Grid,
    closing,
    ramp,
    rough,
    signed_distance,
    spread,
    tube,
)
from medimg_utils.knee.voxels import COARSE, GRID, SPACES, Code

#: Soft tissue comes in these builds: share of fat, bulk of muscle in mm, seed of the rest.
HABITUS = {"lean": (0.55, 4.5, 1), "average": (0.85, 4.0, 2), "heavy": (1.4, 3.2, 3)}

#: Limb: z, half-width and back in mm; its front follows the patella and the tibia.
_LIMB = (
    (96.0, 68.0, -72.0),
    (70.0, 63.0, -69.0),
    (45.0, 57.0, -64.0),
    (25.0, 54.0, -59.0),
    (10.0, 52.0, -57.0),
    (-5.0, 51.0, -57.0),
    (-25.0, 50.0, -60.0),
    (-50.0, 51.0, -66.0),
    (-84.0, 54.0, -72.0),
)

#: Muscles: z, x, y, half-width, half-depth (mm), turn (degrees).
_MUSCLES: dict[str, tuple[tuple[float, float, float, float, float, float], ...]] = {
    "vastus medialis": (
        (97, -34, 26, 27, 25, 20),
        (75, -40, 24, 18, 25, 25),
        (55, -43, 24, 11, 21, 30),
        (38, -42, 24, 6, 14, 35),
        (26, -40, 26, 1, 4, 35),
    ),
    "vastus lateralis": (
        (97, 38, 24, 23, 28, -20),
        (75, 41, 23, 14, 23, -25),
        (58, 41, 22, 7, 15, -30),
        (44, 40, 22, 1, 5, -30),
    ),
    "vastus intermedius": (
        (97, 4, 42, 24, 9, 0),
        (80, 3, 42, 20, 7, 0),
        (66, 3, 42, 10, 3, 0),
    ),
    "rectus femoris": (
        (97, 4, 58, 19, 6, 0),
        (86, 4, 56, 14, 3, 0),
        (80, 4, 55, 8, 1, 0),
    ),
    "biceps femoris": (
        (97, 31, -36, 19, 19, -20),
        (60, 37, -33, 13, 16, -15),
        (30, 41, -27, 8, 12, -10),
        (8, 42, -22, 4, 7, 0),
        (-4, 41, -20, 1, 2, 0),
    ),
    "semimembranosus": (
        (97, -20, -36, 20, 17, 15),
        (60, -28, -35, 16, 15, 20),
        (32, -32, -33, 10, 10, 20),
        (14, -32, -29, 5, 6, 10),
        (2, -31, -25, 2, 3, 0),
    ),
    "semitendinosus": (
        (97, -14, -56, 11, 8, 0),
        (72, -24, -54, 6, 5, 0),
        (58, -29, -51, 2.4, 2.4, 0),
    ),
    "gracilis": (
        (97, -52, -26, 7, 11, 10),
        (70, -51, -30, 4, 7, 0),
        (52, -49, -35, 2, 2, 0),
    ),
    "sartorius": (
        (97, -57, -4, 6, 17, 10),
        (60, -55, -18, 5, 15, 5),
        (25, -52, -22, 4, 12, 0),
        (0, -49, -20, 3, 9, -5),
        (-22, -46, -10, 1.6, 7, -10),
    ),
    "medial gastrocnemius": (
        (36, -19, -24, 3, 2, 0),
        (24, -21, -31, 10, 6, 10),
        (5, -22, -39, 16, 9, 8),
        (-25, -24, -46, 21, 13, 5),
        (-55, -26, -51, 24, 15, 5),
        (-86, -27, -53, 26, 17, 5),
    ),
    "lateral gastrocnemius": (
        (33, 20, -25, 3, 2, 0),
        (22, 21, -31, 9, 5, -10),
        (5, 20, -38, 13, 9, -8),
        (-25, 20, -46, 18, 12, -5),
        (-55, 20, -51, 21, 14, -5),
        (-86, 20, -53, 23, 16, -5),
    ),
    "popliteus": (
        (-2, 22, -25, 2, 2, 0),
        (-10, 14, -28, 9, 4, -10),
        (-25, 0, -25, 19, 7, -5),
        (-45, -9, -21, 16, 7, 5),
        (-62, -14, -17, 5, 3, 10),
    ),
    "soleus": (
        (-16, 30, -31, 3, 2, 0),
        (-30, 24, -35, 11, 5, -10),
        (-55, 8, -37, 28, 8, 0),
        (-86, 2, -38, 37, 12, 0),
    ),
    "tibialis anterior": (
        (-6, 32, 8, 2, 2, 0),
        (-25, 30, 8, 8, 11, 25),
        (-55, 29, 9, 12, 15, 20),
        (-86, 28, 9, 13, 16, 20),
    ),
    "extensor digitorum longus": (
        (-12, 39, -3, 2, 2, 0),
        (-40, 39, -2, 6, 8, 0),
        (-86, 40, -1, 8, 10, 0),
    ),
    "peroneus longus": (
        (-16, 43, -12, 2, 2, 0),
        (-40, 43, -14, 6, 8, 0),
        (-86, 44, -15, 8, 11, 0),
    ),
    "tibialis posterior": (
        (-34, 13, -16, 2, 2, 0),
        (-60, 13, -16, 9, 6, 0),
        (-86, 12, -16, 11, 8, 0),
    ),
}

#: Round cords and vessels: points (x, y, z) and half-width in mm.
_ARTERY = (
    (-9, -22, 97),
    (-4, -29, 60),
    (1, -32, 25),
    (3, -33, 0),
    (3, -33, -25),
    (4, -28, -55),
    (5, -26, -86),
)
_VEIN = (
    (-3, -29, 97),
    (1, -36, 60),
    (5, -39, 25),
    (6, -40, 0),
    (5, -39, -25),
    (7, -33, -55),
    (9, -31, -86),
)
_NERVE = (
    (6, -42, 97),
    (8, -46, 60),
    (10, -46, 25),
    (9, -46, 0),
    (8, -44, -25),
    (11, -36, -55),
    (13, -33, -86),
)
_PERONEAL_NERVE = (
    (16, -46, 97),
    (28, -47, 55),
    (37, -41, 20),
    (42, -32, 0),
    (42, -26, -14),
)
_SAPHENOUS = (
    (-61, -30, 97),
    (-57, -35, 50),
    (-54, -34, 10),
    (-52, -26, -30),
    (-52, -20, -86),
)
_SEMITENDINOSUS = (
    (-29, -51, 60),
    (-34, -49, 35),
    (-39, -42, 10),
    (-42, -28, -15),
    (-38, -8, -38),
    (-24, 10, -56),
)
_GRACILIS = (
    (-48, -38, 54),
    (-46, -40, 30),
    (-45, -35, 8),
    (-44, -22, -18),
    (-37, -2, -40),
    (-23, 12, -58),
)


def build(hard: HardTissue, habitus: str) -> dict[str, NDArray]:
    """Lay out the soft tissue and return what is stored."""
    fat, bulk, seed = HABITUS[habitus]
    generator = np.random.default_rng([11, seed])
    marks = _landmarks(hard)
    codes = _limb(hard, marks, fat, bulk, generator)
    _vessels(codes, hard)
    fill = _joint_spaces(codes, hard, marks, generator)
    _tendons(codes, hard, marks)
    _bones(codes, hard, generator)
    fill[~_is(codes, *SPACES)] = 0
    arrays: dict[str, NDArray] = {"codes": codes, "fill": fill}
    for side, meniscus in hard.menisci.items():
        for field, value in vars(meniscus).items():
            arrays[f"{side}-{field}"] = value
    for key, point in marks.items():
        arrays[f"at-{key}"] = np.asarray(point, np.float32)
    return arrays


def _by(point: NDArray, x: float, y: float, z: float) -> NDArray:
    """A point, moved by so many mm."""
    return point + np.array([x, y, z])


def _scaled(hard: HardTissue, points: Iterable[Iterable[float]]) -> NDArray[np.float64]:
    """Points of the tables above in this knee."""
    return np.asarray(list(points), float) * (hard.width, hard.depth, 1.0)


def _landmarks(hard: HardTissue) -> dict[str, NDArray]:
    """Points that ligaments, tendons and findings hold on to, in mm."""
    femur, tibia, patella, fibula = (
        _points(hard.masks[bone]) for bone in ("femur", "tibia", "patella", "fibula")
    )
    low, high = patella[:, 2].min(), patella[:, 2].max()
    pole = patella[patella[:, 2] < low + 3].mean(0)
    base = patella[patella[:, 2] > high - 3]
    front = tibia[
        (np.abs(tibia[:, 0] - 5) < 6) & (tibia[:, 2] < -30) & (tibia[:, 2] > -42)
    ]
    condyles = femur[
        (femur[:, 2] > 18) & (femur[:, 2] < 34) & (np.abs(femur[:, 1]) < 12)
    ]
    medial, lateral = (
        condyles[condyles[:, 0].argmin()],
        condyles[condyles[:, 0].argmax()],
    )
    return {
        "patella-pole": np.array([pole[0], pole[1] + 2, low]),
        "patella-base": np.array([base[:, 0].mean(), base[:, 1].mean() + 1, high]),
        "patella": patella.mean(0),
        "tubercle": front[front[:, 1].argmax()],
        "medial-epicondyle": medial,
        "lateral-epicondyle": lateral,
        "fibular-head": fibula[fibula[:, 2] > fibula[:, 2].max() - 3].mean(0),
        "scale": np.array([hard.width, hard.depth, 1.0]),
    }


def _points(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    return np.argwhere(mask) * GRID.spacing + np.array(GRID.low)


def _refine(field: Array) -> Array:
    """A field of the coarse grid on the fine one, by linear interpolation."""
    coarse = torch.from_numpy(np.ascontiguousarray(field, np.float32))
    padded = F.pad(coarse[None, None], (0, 1, 0, 1, 0, 1), mode="replicate")
    size = [2 * n + 1 for n in field.shape]
    fine = F.interpolate(padded, size=size, mode="trilinear", align_corners=True)
    return fine[0, 0, :-1, :-1, :-1].numpy()


#: From the middle of the patellar tendon to the skin in front of it, in mm.
_OVER_TENDON = 7.5


def _front(marks: dict[str, NDArray]) -> PchipInterpolator:
    """y of the skin in front of the knee as a function of z, in mm."""
    patella, pole, tubercle = (
        marks[k] for k in ("patella", "patella-pole", "tubercle")
    )
    front = patella[1] + 10.0  # of the patella
    profile = (
        (-86.0, tubercle[1] + 1),
        (tubercle[2] - 8, tubercle[1] + 5),
        (tubercle[2] + 12, tubercle[1] + 10),
        (pole[2] - 14, front - 7),
        (pole[2] + 4, front + 2),
        (patella[2] + 4, front + 6),
        (patella[2] + 28, front + 4),
        (98.0, front + 5),
    )
    level, y = np.array(profile).T
    # skin and fat cover the patellar tendon, also where the patella stands high
    tendon = np.interp(level, (tubercle[2], pole[2]), (tubercle[1] + 1.8, pole[1] + 1))
    between = (level > tubercle[2]) & (level < pole[2])
    return PchipInterpolator(
        level, np.where(between, np.maximum(y, tendon + _OVER_TENDON), y)
    )


def _limb(
    hard: HardTissue,
    marks: dict[str, NDArray],
    fat: float,
    bulk: float,
    generator: np.random.Generator,
) -> NDArray[np.uint8]:
    """Skin, fat, fascia and muscles; no joint yet."""
    grid = COARSE
    x, y, z = grid.axes()
    scale = (hard.width + hard.depth) / 2
    rows = np.array(sorted(_LIMB))
    half_x, back = (
        PchipInterpolator(rows[:, 0], rows[:, k])(grid.axis(2)).astype(np.float32)
        * scale
        for k in (1, 2)
    )
    front = _front(marks)(grid.axis(2)).astype(np.float32)
    extra = 4.0 * (fat - 1)
    half_x, half_y = half_x + extra, (front - back) / 2 + extra
    dx, dy = x / half_x, (y - (front + back) / 2) / half_y
    outline = ((np.abs(dx) ** 2.3 + np.abs(dy) ** 2.3) ** (1 / 2.3) - 1) * np.minimum(
        half_x, half_y
    )
    patella = signed_distance(hard.masks["patella"][::2, ::2, ::2], grid.spacing)
    outline = _union(outline, patella - (4.0 + 1.5 * fat), 18.0)
    bones = hard.cover - 7.0 - 2 * fat
    outline = _union(outline, bones, 10.0) + 0.7 * rough(grid, 30.0, generator)
    angle = np.arctan2(dy, dx)  # pi/2 is the front, pi the medial side
    thick = (
        7.5
        + 2.5 * ramp(-np.cos(angle), -0.2, 0.9)
        + 1.5 * ramp(-np.sin(angle), 0.3, 1)
        - 3.5 * ramp(np.sin(angle), 0.3, 0.9)
        + 2.0 * ramp(z, 40, 95)
    )
    thick = np.maximum(fat * thick * (1 + 0.12 * rough(grid, 35.0, generator)), 2.5)
    fascia = outline + thick
    fascia = np.minimum(fascia, hard.cover - 3.0 + 0 * z)
    fascia = ndi.gaussian_filter(fascia, 1.5)
    first, second = _muscles(grid, hard, bulk, generator)
    skin_fine, fascia_fine = _refine(outline), _refine(fascia)
    codes = np.zeros(GRID.shape, np.uint8)
    codes[skin_fine < 0] = Code.SKIN
    codes[skin_fine < -1.3] = Code.FAT
    web = _web(GRID, 7.0, 0.05, generator, (1.0, 1.0, 2.0))
    codes[(codes == Code.FAT) & web] = Code.SEPTUM
    codes[fascia_fine < 0] = Code.FASCIA
    codes[fascia_fine < -0.9] = Code.DEEP_FAT
    web = _web(GRID, 9.0, 0.035, generator, (1.0, 1.0, 2.5))
    codes[(codes == Code.DEEP_FAT) & web] = Code.STRAND
    inside = fascia_fine < -1.2
    del skin_fine, fascia_fine
    first, second = _refine(first), _refine(second)
    codes[inside & (first < 0)] = Code.MUSCLE
    codes[inside & (first < 0) & (second - first < 1.1)] = Code.DEEP_FAT
    # fat between the fascicles, along the limb
    streak = rough(GRID, (2.2, 2.2, 16.0), generator)
    streak += 0.7 * rough(GRID, (9.0, 9.0, 30.0), generator)
    codes[(codes == Code.MUSCLE) & (streak > 2.75)] = Code.DEEP_FAT
    return codes


def _union(a: Array, b: Array, width: float) -> Array:
    """Smooth minimum of two distances, rounded over ``width`` mm."""
    h = np.clip(0.5 + 0.5 * (b - a) / width, 0, 1)
    return b + (a - b) * h - width * h * (1 - h)


def _web(
    grid: Grid,
    cell: float,
    share: float,
    generator: np.random.Generator,
    stretch: tuple[float, float, float],
) -> NDArray[np.bool_]:
    """Thin sheets between lobules of fat: where a random field changes its sign."""
    sizes = (cell * stretch[0], cell * stretch[1], cell * stretch[2])
    return np.abs(rough(grid, sizes, generator)) < share


def _muscles(
    grid: Grid, hard: HardTissue, bulk: float, generator: np.random.Generator
) -> tuple[Array, Array]:
    """Distance to the nearest and to the second nearest muscle's surface."""
    first = np.full(grid.shape, 30.0, np.float32)
    second = np.full(grid.shape, 30.0, np.float32)
    for table in _MUSCLES.values():
        shift = generator.normal(0, 1.2, 2)
        size = 1.2 * generator.normal(1, 0.05)
        rows = tuple(
            (
                z,
                x * hard.width + shift[0],
                y * hard.depth + shift[1],
                rx * size * hard.width,
                ry * size * hard.depth,
                turn,
            )
            for z, x, y, rx, ry, turn in table
        )
        part, distance = Column(rows).distance(grid)
        # where a muscle ends in the limb it tapers into its tendon
        low, high = min(row[0] for row in rows), max(row[0] for row in rows)
        level = grid.axis(2)[part]
        to_end = np.minimum(
            np.where(low > -80, level - low, 99), np.where(high < 92, high - level, 99)
        )
        distance = distance + (bulk + 1.0) * (1 - ramp(to_end, 0, 12))
        a, b = first[:, :, part], second[:, :, part]
        nearer = distance < a
        b[...] = np.where(nearer, a, np.minimum(b, distance))
        a[...] = np.where(nearer, distance, a)
    wobble = 1.1 * rough(grid, 12.0, generator) - bulk
    return first + wobble, second + wobble


def _vessels(codes: NDArray[np.uint8], hard: HardTissue) -> None:
    for points, radius, code in (
        (_NERVE, 2.6, Code.NERVE),
        (_PERONEAL_NERVE, 1.8, Code.NERVE),
        (_VEIN, 3.6, Code.VEIN),
        (_ARTERY, 3.3, Code.ARTERY),
        (_SAPHENOUS, 1.8, Code.VEIN),
        (_SEMITENDINOSUS, 2.2, Code.TENDON),
        (_GRACILIS, 1.8, Code.TENDON),
    ):
        _paint(codes, Curve.through(_scaled(hard, points)), radius, None, code)


def _paint(
    codes: NDArray[np.uint8],
    curve: Curve,
    wide: float | tuple[float, ...],
    thin: float | tuple[float, ...] | None,
    code: int,
    direction: tuple[float, float, float] = (1.0, 0.0, 0.0),
) -> None:
    """Paint a tube, piece by piece: the boxes of short pieces hold little but the tube."""
    count = len(curve.points)
    first = spread(wide, count)
    second = first if thin is None else spread(thin, count)
    for start in range(0, count - 1, 12):
        piece = slice(start, start + 13)
        part = Curve(curve.points[piece], curve.tangents[piece])
        if len(part.points) < 2:
            continue
        shape = tube(GRID, part, first[piece], second[piece], direction, margin=0.5)
        inside = (shape.distance < 0) & (codes[shape.box] != Code.AIR)
        codes[shape.box][inside] = code


#: The box in mm that holds the joint and all that its fluid can reach.
_JOINT = ((-62.0, -45.0, -28.0), (62.0, 75.0, 96.0))


def _joint_spaces(
    codes: NDArray[np.uint8],
    hard: HardTissue,
    marks: dict[str, NDArray],
    generator: np.random.Generator,
) -> NDArray[np.uint8]:
    """Capsule, notch, and the spaces of the joint with the order in which they fill."""
    box = COARSE.box(*_JOINT)
    grid = COARSE.part(box)
    fine_x, fine_y, fine_z = (slice(2 * part.start, 2 * part.stop) for part in box)
    fine_box = (fine_x, fine_y, fine_z)
    fine_grid = GRID.part(fine_box)
    x, y, z = (
        a / s for a, s in zip(grid.axes(), (hard.width, hard.depth, 1.0), strict=True)
    )
    cover = hard.cover[box]
    level = (z > -9) & (z < 42)
    envelope = closing((cover < 0) & level, 9.0, grid.spacing) & level
    capsule = signed_distance(envelope, grid.spacing)
    space, fill = _spaces(hard, marks, box, envelope, generator)
    pad = (y > 12) & (z > -26) & (z < marks["patella-pole"][2] + 12) & (np.abs(x) < 34)
    pad = (pad & (cover < 26)).repeat(2, 0).repeat(2, 1).repeat(2, 2)
    inner = codes[fine_box]  # a view: changed in place
    free = _is(inner, Code.DEEP_FAT, Code.STRAND, Code.MUSCLE, Code.FASCIA)
    # Hoffa's fat pad: in front of the joint, behind the patellar tendon
    inner[_is(inner, Code.DEEP_FAT, Code.STRAND) & pad] = Code.HOFFA
    lobules = _web(fine_grid, 6.0, 0.06, generator, (1.3, 1.0, 1.0))
    inner[(inner == Code.HOFFA) & lobules] = Code.STRAND
    inner[(np.abs(_refine(capsule) - 0.8) < 0.6) & free & ~pad] = Code.CAPSULE
    soft = (free | _is(inner, Code.HOFFA, Code.CAPSULE)) & (inner != Code.MUSCLE)
    for code in SPACES:
        allowed = inner != Code.AIR if code in (Code.NOTCH, Code.GAP) else soft
        blurred = ndi.gaussian_filter((space == code).astype(np.float32), 0.6)
        inner[(_refine(blurred) > 0.5) & allowed] = code
    order = _refine(np.clip(fill, 0.01, 1)) + 0.03 * rough(fine_grid, 4.0, generator)
    out = np.zeros(GRID.shape, np.uint8)
    out[fine_box] = np.clip(np.round(order * 255), 1, 255).astype(np.uint8)
    return out


def _is(codes: NDArray[np.uint8], *wanted: int) -> NDArray[np.bool_]:
    """Where the code is one of some."""
    table = np.zeros(256, bool)
    table[list(wanted)] = True
    return table[codes]


def _spaces(
    hard: HardTissue,
    marks: dict[str, NDArray],
    box: tuple[slice, slice, slice],
    envelope: NDArray[np.bool_],
    generator: np.random.Generator,
) -> tuple[NDArray[np.uint8], Array]:
    """Code of the space at each coarse voxel, and when it fills: 0 first, 1 last."""
    grid = COARSE.part(box)
    x, y, z = (
        a / s for a, s in zip(grid.axes(), (hard.width, hard.depth, 1.0), strict=True)
    )

    def distance(*names: str) -> Array:
        mask = np.zeros(grid.shape, bool)
        for name in names:
            mask |= hard.masks[name][::2, ::2, ::2][box]
        return signed_distance(mask, grid.spacing)

    femur = distance("femur", "femoral cartilage")
    tibia = distance("tibia", "medial tibial cartilage", "lateral tibial cartilage")
    patella = distance("patella", "patellar cartilage")
    noise = rough(grid, 14.0, generator)
    fine = rough(grid, 5.0, generator)
    space = np.zeros(grid.shape, np.uint8)
    fill = np.ones(grid.shape, np.float32)

    def add(code: Code, where: NDArray[np.bool_], order: Array) -> None:
        new = where & (space == 0)
        space[new] = code
        fill[new] = np.broadcast_to(order, grid.shape)[new]

    # in the envelope: between the bones, between the condyles
    narrow = (femur + np.minimum(tibia, patella) < 4.5 + fine) & envelope
    add(Code.GAP, narrow, 0.36 + 0.22 * fine)
    ragged = 1.5 * fine  # no space has straight borders
    notch = envelope & (np.abs(x + 1) < 15 + ragged) & (y < 12 + ragged)
    notch &= (z > -8 + ragged) & (z < 34 + ragged)
    add(Code.NOTCH, notch, 0.46 + 0.18 * noise + 0.1 * fine - 0.012 * (y + 10))
    # behind the condyles
    recess = (femur < 5) & (y < -8) & (z > 0) & (z < 40) & (np.abs(np.abs(x) - 20) < 17)
    border = ramp(np.abs(z - 19), 10, 20) + ramp(np.abs(np.abs(x) - 20), 9, 16)
    add(Code.RECESS, recess, 0.42 + femur / 7 + 0.3 * noise + 0.6 * border)
    # beside the condyles, under the retinacula
    beside = (np.abs(x) > 14 + ragged) & (femur < 6.5) & (y > 4 + ragged)
    beside &= (z > 6 + ragged) & (z < 54 + ragged)
    border = ramp(-y + 3 * fine, -16, -5)
    border = border + ramp(np.abs(z - 30 + 6 * noise + 0.2 * x), 10, 24)
    order = 0.12 + femur / 7 + 0.2 * noise + 0.6 * border - 0.1 * ramp(y, 15, 35)
    add(Code.GUTTER, beside, order)
    # between quadriceps tendon and femur: a flat pouch, fullest in its middle
    base = marks["patella-base"]
    bottom, top = base[2] - 6, min(base[2] + 42, 93.0)
    tendon = base[1] + 0.02 * (z - base[2]) - 4.0
    shaft = femur_front(hard, box) + 2.5
    half = np.maximum((tendon - shaft) / 2, 0.8)
    off = np.abs(grid.axes()[1] - (tendon + shaft) / 2) / half
    side = np.abs(x - 3) / (27 - 9 * ramp(z, bottom + 10, top))
    rise = np.abs(z - (bottom + top) / 2) / ((top - bottom) / 2)
    reach = np.maximum(side, rise)
    pouch = (off < 1) & (reach < 1 + 0.06 * fine) & (femur > 1.5)
    order = np.maximum(0.12 + 0.8 * off, 0.15 + 0.85 * reach**3) + 0.12 * noise
    add(Code.POUCH, pouch, order)
    return space, fill


def femur_front(hard: HardTissue, box: tuple[slice, slice, slice]) -> Array:
    """y of the front of the femur in mm for each coarse (x, z), shaped to broadcast."""
    femur = hard.masks["femur"][::2, ::2, ::2][box]
    y = COARSE.part(box).axis(1)
    last = femur.shape[1] - 1 - femur[:, ::-1].argmax(1)
    front = np.where(femur.any(1), y[last], np.nan)
    # beside the shaft the level of its flank goes on
    for k in range(front.shape[1]):
        known = np.flatnonzero(~np.isnan(front[:, k]))
        if len(known):
            front[:, k] = np.interp(np.arange(front.shape[0]), known, front[known, k])
        else:
            front[:, k] = 20.0
    return ndi.gaussian_filter(front, 2.0)[:, None, :].astype(np.float32)


def _tendons(
    codes: NDArray[np.uint8], hard: HardTissue, marks: dict[str, NDArray]
) -> None:
    """Extensor mechanism, collateral ligaments, cruciate ligament and smaller bands."""
    pole, base, tubercle = (
        marks[k] for k in ("patella-pole", "patella-base", "tubercle")
    )
    half = 14 * hard.width
    patellar = [
        _by(pole, 0, 2.5, 6),
        _by(pole, 0, 0.5, -1),
        _by((pole + tubercle) / 2, 0, 1.5, 0),
        _by(tubercle, 0, 1.8, 5),
        _by(tubercle, 0, 0.5, -6),
    ]
    _paint(
        codes,
        Curve.through(patellar),
        (half, half, 0.9 * half),
        (2.0, 2.4, 2.2),
        Code.TENDON,
    )
    over = marks["patella"]
    front = _patella_front(hard)
    prepatellar = [
        _by(pole, 0, 1.5, 2),
        np.array([over[0], front + 0.6, over[2]]),
        _by(base, 0, 4.0, -2),
    ]
    _paint(codes, Curve.through(prepatellar), 0.8 * half, 0.7, Code.TENDON)
    quadriceps = [
        _by(base, 0, 3, -5),
        _by(base, 0, 1, 2),
        _by(base, 0, 1, 18),
        _by(base, -1, 2.5, 44),
    ]
    _paint(
        codes,
        Curve.through(quadriceps),
        (1.2 * half, 1.3 * half, half, 0.8 * half),
        (2.6, 3.2, 3.0, 2.2),
        Code.TENDON,
    )
    # three layers with fat between them
    for shift in (-0.9, 1.2):
        layer = [p + np.array([0, shift, 0]) for p in quadriceps[1:]]
        _paint(
            codes, Curve.through(layer), (0.9 * half, 0.8 * half), 0.26, Code.DEEP_FAT
        )
    medial, lateral, head = (
        marks[k] for k in ("medial-epicondyle", "lateral-epicondyle", "fibular-head")
    )
    cover = _refine(hard.cover)

    def hug(points: NDArray, out: float) -> NDArray:
        """Move points sideways until they lie ``out`` mm outside bone and meniscus."""
        moved = []
        for point in points:
            toward = np.array([np.sign(point[0]), 0, 0]) * 0.25
            place = np.array([0.55 * point[0], point[1], point[2]])
            while cover[GRID.index(place)] < out and abs(place[0]) < 70:
                place = place + toward
            moved.append(place)
        return np.array(moved)

    rows = [medial[2] + 4, medial[2] - 6, 10.0, 1.0, -8.0, -22.0, -40.0, -56.0]
    front = np.interp(rows, [-56, 0, medial[2]], [6.0, 2.0, medial[1]])
    path = hug(
        np.array([(medial[0], y, z) for y, z in zip(front, rows, strict=True)]), 1.0
    )
    _paint(codes, Curve.through(path), 1.2, (5.0, 6.5, 6.0, 5.0), Code.LIGAMENT)
    fibular = [
        _by(lateral, 0.8, 0, 3),
        _by(lateral, 1.5, 0, -3),
        _by((lateral + head) / 2, 3.0, 1, 0),
        _by(head, 2, 1, -4),
    ]
    _paint(codes, Curve.through(fibular), 1.7, None, Code.LIGAMENT)
    tract = _scaled(
        hard, [(52, 14, 90), (49, 14, 55), (45, 15, 25), (41, 17, 2), (36, 18, -12)]
    )
    _paint(codes, Curve.through(tract), 1.1, 7.0, Code.TENDON)
    popliteus = [
        _by(lateral, -1.0, 5, -9),
        _by(lateral, 0.5, -3, -14),
        *_scaled(hard, [(30, -17, 5), (24, -24, -3), (17, -27, -10)]),
    ]
    _paint(codes, Curve.through(popliteus), 2.4, None, Code.TENDON)
    biceps = [*_scaled(hard, [(42, -22, 14)]), _by(head, 4, -1, 3), _by(head, 3, 0, -4)]
    _paint(codes, Curve.through(biceps), 2.4, 1.8, Code.TENDON)
    semimembranosus = _scaled(hard, [(-32, -30, 18), (-31, -27, 4), (-29, -22, -9)])
    _paint(codes, Curve.through(semimembranosus), 3.2, 2.6, Code.TENDON)
    transverse = _scaled(hard, [(-20, 24, 2), (-8, 27, 3.5), (6, 24, 3.5), (16, 17, 4)])
    _paint(codes, Curve.through(transverse), 1.0, None, Code.LIGAMENT)
    posterior = posterior_cruciate(marks)
    _paint(codes, posterior, (4.6, 4.0, 4.2, 5.2), (3.4, 3.3, 3.4, 3.0), Code.PCL)
    wrisberg = _scaled(hard, [(15, -17, 5), (6, -18, 9), (-4, -13, 13), (-9, -5, 15)])
    _paint(codes, Curve.through(wrisberg), 1.0, None, Code.LIGAMENT)


def _patella_front(hard: HardTissue) -> float:
    return float(_points(hard.masks["patella"])[:, 1].max())


def posterior_cruciate(marks: dict[str, NDArray]) -> Curve:
    """Middle line of the posterior cruciate ligament, from femur to tibia."""
    points = np.array(
        [
            (-11, 10, 12),
            (-7, 3, 16.5),
            (-4, -6, 17),
            (-1.5, -14, 11),
            (0, -20, 2),
            (0, -23, -8),
        ]
    )
    return Curve.through(points * marks["scale"])


def anterior_cruciate(marks: dict[str, NDArray]) -> Curve:
    """Middle line of the anterior cruciate ligament, from femur to tibia."""
    points = np.array(
        [(10, -9, 25), (7, -5, 20), (3.5, 2, 11), (0.5, 8, 3.5), (-0.5, 10.5, -1)]
    )
    return Curve.through(points * marks["scale"])


def _bones(
    codes: NDArray[np.uint8], hard: HardTissue, generator: np.random.Generator
) -> None:
    """Cortex and marrow, cartilage in two layers, menisci."""
    z = GRID.axes()[2]
    uneven = 1 + 0.3 * _refine(rough(COARSE, 5.0, generator))
    thick = 0.75 + 2.4 * ramp(np.abs(z - 6), 38, 90)
    for name, code in (
        ("femur", Code.FEMUR),
        ("tibia", Code.TIBIA),
        ("patella", Code.PATELLA),
        ("fibula", Code.FIBULA),
    ):
        mask = hard.masks[name]
        codes[mask] = code
        thin = thick if name in ("femur", "tibia") else np.minimum(thick, 1.2)
        codes[mask & (hard.distance > -thin * uneven)] = Code.CORTEX
    # closed growth plates
    wave = 1.5 * rough(COARSE, 12.0, generator)
    x, y, zc = COARSE.axes()
    femoral = zc - 27 - 2.5 * np.cos(x / 14) + 0.05 * y + wave
    tibial = zc + 15 + 1.5 * np.cos(x / 16) + wave
    for field, code in ((femoral, Code.FEMUR), (tibial, Code.TIBIA)):
        thin = np.abs(_refine(field)) < 0.4 * uneven - 0.1
        codes[thin & (codes == code)] = Code.SCAR
    for key, code in (
        ("femoral cartilage", Code.FEMORAL_CARTILAGE),
        ("medial tibial cartilage", Code.TIBIAL_CARTILAGE),
        ("lateral tibial cartilage", Code.TIBIAL_CARTILAGE),
        ("patellar cartilage", Code.PATELLAR_CARTILAGE),
    ):
        mask = hard.masks[key]
        codes[mask] = code
        codes[mask & (hard.distance < 0.8)] = Code.DEEP_CARTILAGE
    codes[hard.masks["medial meniscus"]] = Code.MEDIAL_MENISCUS
    codes[hard.masks["lateral meniscus"]] = Code.LATERAL_MENISCUS
