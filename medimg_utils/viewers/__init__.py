"""Interactive viewers that also live on a web page without a kernel.

Each viewer is one Python class, which checks and packs the data, and one JavaScript
file, which draws and computes.
"""

from medimg_utils.viewers.descent_explorer import DescentExplorer
from medimg_utils.viewers.field_explorer import FieldExplorer
from medimg_utils.viewers.kernel_explorer import KernelExplorer
from medimg_utils.viewers.mask_overlay import MaskOverlayViewer
from medimg_utils.viewers.planes import PlanesViewer
from medimg_utils.viewers.prevalence_explorer import PrevalenceExplorer
from medimg_utils.viewers.series import SeriesViewer
from medimg_utils.viewers.study_explorer import StudyExplorer
from medimg_utils.viewers.surface import SurfaceViewer
from medimg_utils.viewers.threshold_explorer import ThresholdExplorer
from medimg_utils.viewers.window_explorer import WindowExplorer
from medimg_utils.viewers.worklist_explorer import WorklistExplorer

__all__ = [
    "DescentExplorer",
    "FieldExplorer",
    "KernelExplorer",
    "MaskOverlayViewer",
    "PlanesViewer",
    "PrevalenceExplorer",
    "SeriesViewer",
    "StudyExplorer",
    "SurfaceViewer",
    "ThresholdExplorer",
    "WindowExplorer",
    "WorklistExplorer",
]
