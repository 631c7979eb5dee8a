"""Interactive viewers that also live on a web page without a kernel.

Each viewer is one Python class, which checks and packs the data, and one JavaScript
file, which draws and computes.
"""

from medimg_utils.viewers.descent_explorer import DescentExplorer
from medimg_utils.viewers.mask_overlay import MaskOverlayViewer
from medimg_utils.viewers.prevalence_explorer import PrevalenceExplorer
from medimg_utils.viewers.threshold_explorer import ThresholdExplorer

__all__ = [
    "DescentExplorer",
    "MaskOverlayViewer",
    "PrevalenceExplorer",
    "ThresholdExplorer",
]
