from .descent_explorer import DescentExplorer
from .field_explorer import FieldExplorer
from .kernel_explorer import KernelExplorer
from .mask_overlay import MaskOverlayViewer
from .planes import PlanesViewer
from .prevalence_explorer import PrevalenceExplorer
from .series import SeriesViewer
from .study_explorer import StudyExplorer
from .surface import SurfaceViewer
from .threshold_explorer import ThresholdExplorer
from .window_explorer import WindowExplorer
from .worklist_explorer import WorklistExplorer

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
