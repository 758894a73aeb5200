"""Medical images in: files, DICOM, sources, anatomy crops, prepared images and views, phantoms, downstream tasks."""

from eden_hf.data.anatomy_crops import AnatomyCrops, build_anatomy_crops
from eden_hf.data.phantoms import phantom_dataset
from eden_hf.data.prepared import PreparedImages, prepare_images
from eden_hf.data.reading import ImageReadError, read_image
from eden_hf.data.sources import load_source
from eden_hf.data.tasks import Task, load_source_task, load_task

__all__ = [
    "AnatomyCrops",
    "ImageReadError",
    "PreparedImages",
    "Task",
    "build_anatomy_crops",
    "load_source",
    "load_source_task",
    "load_task",
    "phantom_dataset",
    "prepare_images",
    "read_image",
]
