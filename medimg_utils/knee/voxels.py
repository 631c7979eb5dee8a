"""The grid of a prepared knee, and what its voxels can be.

Coordinates are mm in a right knee: x to the lateral side, y to the front, z up, with the
origin between the tibial plateaus.  A left knee is mirrored into it.
"""

from __future__ import annotations

from enum import IntEnum

from medimg_utils.knee.shapes import Grid

GRID = Grid((-76.0, -85.0, -82.0), (304, 352, 352), 0.5)
#: The grid on which soft tissue is laid out: every second voxel of :data:`GRID`.
COARSE = Grid(GRID.low, (152, 176, 176), 1.0)


class Code(IntEnum):
    """What a voxel is made of, before findings."""

    AIR = 0
    SKIN = 1
    FAT = 2
    DEEP_FAT = 3
    SEPTUM = 4
    FASCIA = 5
    MUSCLE = 6
    CORTEX = 7
    SCAR = 8
    FEMUR = 9
    TIBIA = 10
    PATELLA = 11
    FIBULA = 12
    FEMORAL_CARTILAGE = 13
    TIBIAL_CARTILAGE = 14
    PATELLAR_CARTILAGE = 15
    DEEP_CARTILAGE = 16
    MEDIAL_MENISCUS = 17
    LATERAL_MENISCUS = 18
    TENDON = 19
    LIGAMENT = 20
    CAPSULE = 21
    HOFFA = 22
    POUCH = 23
    GUTTER = 24
    RECESS = 25
    NOTCH = 26
    GAP = 27
    FLUID = 28
    ARTERY = 29
    VEIN = 30
    NERVE = 31
    PCL = 32
    STRAND = 33
    #: Codes from here on are free for the findings of an exam.
    FIRST_FREE = 40


CARTILAGE = (
    Code.FEMORAL_CARTILAGE,
    Code.TIBIAL_CARTILAGE,
    Code.PATELLAR_CARTILAGE,
    Code.DEEP_CARTILAGE,
)
#: Spaces that fluid fills as far as the ``fill`` of a voxel is below the fluid's level.
SPACES = (Code.POUCH, Code.GUTTER, Code.RECESS, Code.NOTCH, Code.GAP)
