"""Masks of DICOM images as DICOM Segmentation objects; needs the extra `dicom-seg` (highdicom).

A segmentation belongs to the patient, study and frame of reference of its source and has its rows, columns, position
and spacing. Projection radiographs (CR, DX) have no position in the patient: theirs has none either, and refers to the
source pixel by pixel. Of the source's header only what a segmentation must repeat is taken over.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from eden_hf.data.errors import SourceError

if TYPE_CHECKING:
    from pydicom import Dataset

#: Must be known: what a segmentation refers to.
_REFERRED = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Rows", "Columns")
#: May be empty, but must be there: patient and study, by which an archive files it, and what highdicom asks for.
_FILED = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate",
    "StudyTime", "ReferringPhysicianName", "SliceThickness",
)  # fmt: skip
#: Where the source has it.
_GEOMETRY = (
    "SpecificCharacterSet", "Modality", "FrameOfReferenceUID", "PositionReferenceIndicator", "ImagePositionPatient",
    "ImageOrientationPatient", "PixelSpacing", "SpacingBetweenSlices", "LossyImageCompression",
    "LossyImageCompressionRatio", "LossyImageCompressionMethod",
)  # fmt: skip
_LONGEST = 64  # characters of a DICOM string


class SegmentationError(SourceError):
    """Masks that cannot be written as DICOM; the message names the source and the mend."""


def write_dicom_seg(
    source: str | Path,
    masks: Mapping[str, np.ndarray],
    output: str | Path,
    *,
    algorithm: str,
    version: str,
    model: str,
) -> None:
    """Write masks of one DICOM image as a segmentation, a segment each.

    Args:
        source: The DICOM file of one frame that the masks were found in.
        masks: Boolean `[H, W]` by name, of the picture that `read_image` gives; they may overlap. Where that had its
            pixels made square, they are brought back to the rows and columns of the file.
        output: File to write; its folder is made.
        algorithm: What found the masks.
        version: Its version.
        model: The model that it used.

    Raises:
        SegmentationError: highdicom is not installed, the source is no DICOM file or lacks what a segmentation refers
            to, or there are no masks.
    """
    try:
        import highdicom as hd
        from pydicom.sr.codedict import codes
    except ImportError as error:
        raise SegmentationError(f"DICOM SEG needs highdicom: pip install eden_hf[dicom-seg] ({error})") from error
    if not masks:
        raise SegmentationError(f"{source}: there are no masks to write")
    header = _header(source)
    identification = hd.AlgorithmIdentificationSequence(
        algorithm, codes.DCM.ArtificialIntelligence, version, source="eden_hf", parameters={"model": model}
    )
    segments = [
        hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=name[:_LONGEST],
            segmented_property_category=codes.SCT.AnatomicalStructure,
            segmented_property_type=codes.SCT.AnatomicalStructure,
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=identification,
        )
        for number, name in enumerate(masks, start=1)
    ]
    try:
        segmentation = hd.seg.Segmentation(
            source_images=[header],
            pixel_array=_as_stored(masks, header)[None],
            segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=segments,
            series_instance_uid=hd.UID(),
            series_number=1,
            sop_instance_uid=hd.UID(),
            instance_number=1,
            manufacturer="eden_hf",
            manufacturer_model_name=algorithm,
            software_versions=version,
            device_serial_number="none",
            content_label="MASKS",
            series_description=f"eden_hf masks, {model}"[:_LONGEST],
            omit_empty_frames=False,  # a structure that was not found has a frame of zeros
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise SegmentationError(f"{source}: its header does not do for a DICOM SEG: {error}") from error
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    segmentation.save_as(output)


def _header(source: str | Path) -> "Dataset":
    """Of a DICOM file the elements that a segmentation repeats."""
    from pydicom import Dataset, dcmread
    from pydicom.errors import InvalidDicomError

    try:
        full = dcmread(source, stop_before_pixels=True, force=True)
    except (OSError, InvalidDicomError) as error:
        raise SegmentationError(f"{source}: cannot be read as DICOM ({error})") from error
    if missing := [keyword for keyword in _REFERRED if full.get(keyword) in (None, "")]:
        raise SegmentationError(
            f"{source}: its header lacks {', '.join(missing)}, which a DICOM SEG refers to; mend the header, or do "
            "without --dicom_seg"
        )
    if int(full.get("NumberOfFrames") or 1) > 1:
        raise SegmentationError(f"{source}: it holds several frames; DICOM SEG is written of images of one frame")
    header = Dataset()
    for keyword in (*_REFERRED, *_FILED, *_GEOMETRY):
        if full.get(keyword) not in (None, ""):  # an empty element counts as absent
            header.add(full[keyword])
        elif keyword in _FILED:
            setattr(header, keyword, None)
    return header


def _as_stored(masks: Mapping[str, np.ndarray], header: "Dataset") -> np.ndarray:
    """Masks as uint8 `[Rows, Columns, segments]`."""
    size = (header.Columns, header.Rows)
    resized = [Image.fromarray(np.asarray(m, np.uint8)).resize(size, Image.Resampling.NEAREST) for m in masks.values()]
    return np.stack([np.asarray(mask) for mask in resized], axis=2)
