"""Medical images in: files, DICOM, sources, anatomy crops, prepared images and views, phantoms, downstream tasks.

Names are imported when they are first used: settings of views, which the command line parses, need no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eden_hf.data.anatomy_crops import AnatomyCrops, build_anatomy_crops
    from eden_hf.data.phantoms import phantom_dataset
    from eden_hf.data.prepared import PreparedImages, prepare_images
    from eden_hf.data.reading import ImageReadError, read_image
    from eden_hf.data.sources import load_source
    from eden_hf.data.streamed import StreamedImages
    from eden_hf.data.tasks import Task, load_source_task, load_task

_MODULES = {
    "AnatomyCrops": "anatomy_crops",
    "ImageReadError": "reading",
    "PreparedImages": "prepared",
    "StreamedImages": "streamed",
    "Task": "tasks",
    "build_anatomy_crops": "anatomy_crops",
    "load_source": "sources",
    "load_source_task": "tasks",
    "load_task": "tasks",
    "phantom_dataset": "phantoms",
    "prepare_images": "prepared",
    "read_image": "reading",
}
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
