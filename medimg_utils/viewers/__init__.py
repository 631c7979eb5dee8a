"""Interactive viewers that also live on a web page without a kernel.

Each viewer is one Python class, which checks and packs the data, and one JavaScript
file, which draws and computes.
"""

from medimg_utils.viewers.mask_overlay import MaskOverlayViewer
from medimg_utils.viewers.planes import PlanesViewer
from medimg_utils.viewers.series import SeriesViewer
from medimg_utils.viewers.surface import SurfaceViewer
from medimg_utils.viewers.threshold_explorer import ThresholdExplorer

__all__ = [
    "MaskOverlayViewer",
    "PlanesViewer",
    "SeriesViewer",
    "SurfaceViewer",
    "ThresholdExplorer",
]
