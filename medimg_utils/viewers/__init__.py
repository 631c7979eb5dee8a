"""Interactive viewers that also live on a web page without a kernel.

Each viewer is one Python class, which checks and packs the data, and one JavaScript
file, which draws and computes.

What there is stands in ``__init__.pyi``; a viewer is imported when it is asked for, so
that one that needs no PyTorch does not wait for it.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
