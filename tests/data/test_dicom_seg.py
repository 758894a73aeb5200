"""DICOM segmentations, opened again by pydicom and laid over their source."""

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("highdicom")

from pydicom.uid import CTImageStorage, DigitalXRayImageStorageForPresentation, SegmentationStorage  # noqa: E402

from eden_hf.data.dicom_seg import SegmentationError, write_dicom_seg  # noqa: E402

from .test_dicom import dicom, saved  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")

ROWS, COLUMNS = 20, 14
MASKS = {"heart": np.zeros((ROWS, COLUMNS), bool), "lung": np.zeros((ROWS, COLUMNS), bool)}
MASKS["heart"][5:12, 3:9] = True
MASKS["lung"][8:, 6:] = True  # overlaps
RADIOGRAPH = {
    "SOPClassUID": DigitalXRayImageStorageForPresentation, "SOPInstanceUID": "1.2.3.4", "StudyInstanceUID": "1.2.3",
    "SeriesInstanceUID": "1.2.3.1", "Modality": "DX", "PatientID": "P7", "PatientName": "Doe^Jane",
    "PatientBirthDate": "19500101", "PatientSex": "F", "StudyDate": "20200102", "StudyTime": "101112", "StudyID": "S",
    "AccessionNumber": "A1", "PixelSpacing": [0.2, 0.2], "PatientComments": "smokes", "PatientAge": "070Y",
    "OtherPatientIDs": "X9", "PatientAddress": "Main Street", "OperatorsName": "Op^A", "InstitutionName": "Clinic",
}  # fmt: skip
SLICE = {
    "SOPClassUID": CTImageStorage, "Modality": "CT", "FrameOfReferenceUID": "1.2.9",
    "ImagePositionPatient": [-100.0, -50.0, 30.0], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
    "PixelSpacing": [0.7, 0.6], "SliceThickness": 2.5,
}  # fmt: skip


def source(folder, **elements):
    file = folder / "source.dcm"
    pixels = np.arange(ROWS * COLUMNS, dtype=np.uint16).reshape(ROWS, COLUMNS)
    file.write_bytes(saved(dicom(pixels, **{**RADIOGRAPH, **elements})))
    return file


def written(folder, masks=MASKS, **elements):
    output = folder / "seg" / "out.dcm"
    write_dicom_seg(source(folder, **elements), masks, output, algorithm="eden_hf masks", version="0.1", model="eve 1")
    return pydicom.dcmread(output)


def test_segments_are_the_masks_pixel_by_pixel(tmp_path):
    seg = written(tmp_path)
    assert seg.SOPClassUID == SegmentationStorage
    assert (seg.Rows, seg.Columns) == (ROWS, COLUMNS)
    assert [segment.SegmentLabel for segment in seg.SegmentSequence] == ["heart", "lung"]
    frames = {
        seg.SegmentSequence[group.SegmentIdentificationSequence[0].ReferencedSegmentNumber - 1].SegmentLabel: frame
        for group, frame in zip(seg.PerFrameFunctionalGroupsSequence, seg.pixel_array, strict=True)
    }
    for name, mask in MASKS.items():
        np.testing.assert_array_equal(frames[name] > 0, mask)


def test_a_radiograph_is_referred_to_and_keeps_its_spacing(tmp_path):
    seg = written(tmp_path)
    (reference,) = seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    assert reference.ReferencedSOPInstanceUID == "1.2.3.4"
    assert (seg.StudyInstanceUID, seg.PatientID, seg.PatientName) == ("1.2.3", "P7", "Doe^Jane")
    assert seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing == [0.2, 0.2]
    assert "PlanePositionSequence" not in seg.PerFrameFunctionalGroupsSequence[0]  # it has none in the patient
    assert seg.SeriesInstanceUID != "1.2.3.1"


def test_a_slice_keeps_its_place_in_the_patient(tmp_path):
    seg = written(tmp_path, **SLICE)
    assert seg.FrameOfReferenceUID == "1.2.9"
    shared = seg.SharedFunctionalGroupsSequence[0]
    assert shared.PixelMeasuresSequence[0].PixelSpacing == [0.7, 0.6]
    assert shared.PlaneOrientationSequence[0].ImageOrientationPatient == [1, 0, 0, 0, 1, 0]
    holders = [shared, *seg.PerFrameFunctionalGroupsSequence]
    positions = {
        tuple(h.PlanePositionSequence[0].ImagePositionPatient) for h in holders if "PlanePositionSequence" in h
    }
    assert positions == {(-100.0, -50.0, 30.0)}


def test_of_the_patient_only_what_files_the_study_is_taken_over(tmp_path):
    text = str(written(tmp_path))
    for private in ("smokes", "070Y", "X9", "Main Street", "Op^A", "Clinic"):
        assert private not in text


def test_who_found_it_is_told(tmp_path):
    seg = written(tmp_path)
    (algorithm,) = seg.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("eden_hf masks", "0.1")
    assert "eve 1" in algorithm.AlgorithmParameters
    assert seg.SegmentSequence[0].SegmentAlgorithmType == "AUTOMATIC"


def test_masks_of_squared_pixels_come_back_to_the_stored_ones(tmp_path):
    tall = {name: np.repeat(mask, 2, axis=0) for name, mask in MASKS.items()}
    seg = written(tmp_path, masks=tall, PixelSpacing=[0.4, 0.2])
    np.testing.assert_array_equal(seg.pixel_array[0] > 0, MASKS["heart"])


def test_a_slice_may_have_no_thickness(tmp_path):
    seg = written(tmp_path, **{**SLICE, "SliceThickness": None})
    assert seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing == [0.7, 0.6]


def test_a_structure_that_was_not_found_has_an_empty_segment(tmp_path):
    seg = written(tmp_path, masks={"a": MASKS["heart"], "b": np.zeros((ROWS, COLUMNS), bool)})
    assert len(seg.SegmentSequence) == 2
    assert [frame.any() for frame in seg.pixel_array] == [True, False]


def test_an_anonymous_header_will_do(tmp_path):
    removed = dict.fromkeys(("PatientName", "PatientBirthDate", "PatientSex", "StudyDate", "StudyID", "PixelSpacing"))
    seg = written(tmp_path, **removed)
    assert not seg.PatientName
    np.testing.assert_array_equal(seg.pixel_array[0] > 0, MASKS["heart"])


@pytest.mark.parametrize(
    ("elements", "message"),
    [
        ({"StudyInstanceUID": None}, "lacks StudyInstanceUID"),
        (
            {**SLICE, "SliceThickness": None, "PixelSpacing": None},
            r"source.dcm: its header does not do .*PixelSpacing",
        ),
    ],
)
def test_a_header_that_does_not_do_is_named(elements, message, tmp_path):
    with pytest.raises(SegmentationError, match=message):
        written(tmp_path, **elements)


def test_what_is_no_dicom_is_refused(tmp_path):
    file = tmp_path / "a.png"
    file.write_bytes(b"no picture")
    with pytest.raises(SegmentationError, match=r"a\.png: "):
        write_dicom_seg(file, MASKS, tmp_path / "o.dcm", algorithm="a", version="1", model="m")
    with pytest.raises(SegmentationError, match="no masks"):
        write_dicom_seg(source(tmp_path), {}, tmp_path / "o.dcm", algorithm="a", version="1", model="m")
