"""DICOM attributes by the profile of PS3.15 Annex E: what it takes away is found, what it leaves is not."""

from datetime import datetime
from io import BytesIO

import numpy as np
import pydicom
import pytest
from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import DigitalXRayImageStorageForPresentation

from eden_hf.data.errors import DecodeError
from eden_hf.data.phi.attributes import _profile, _within, attribute_findings


def deidentified(**attributes) -> Dataset:
    """A radiograph that says that it was de-identified, dates included, with further attributes."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = pydicom.uid.generate_uid()
    dataset.StudyInstanceUID = pydicom.uid.generate_uid()
    dataset.Modality, dataset.BodyPartExamined, dataset.ViewPosition = "DX", "CHEST", "PA"
    dataset.PatientIdentityRemoved, dataset.LongitudinalTemporalInformationModified = "YES", "REMOVED"
    dataset.BurnedInAnnotation = "NO"
    dataset.Rows = dataset.Columns = 8
    dataset.SamplesPerPixel, dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 1, 8, 8, 7
    dataset.PixelRepresentation, dataset.PhotometricInterpretation = 0, "MONOCHROME2"
    dataset.PixelData = np.arange(64, dtype=np.uint8).tobytes()
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    return dataset


def findings(dataset: Dataset) -> dict[str, str]:
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return dict(attribute_findings(buffer.getvalue(), "x.dcm"))


def test_a_deidentified_file_has_none_and_dummies_pass():
    assert findings(deidentified()) == {}
    dummies = deidentified(
        PatientName="ANONYMIZED", PatientID="4711", PatientSex="F", StudyDate="", StudyID="1", StudyTime="101010",
        InstitutionName="removed", ContentDate="20190101",
    )  # fmt: skip
    assert findings(dummies) == {}


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("PatientName", "Doe^Jane"), ("ReferringPhysicianName", "Who^Doctor"), ("InstitutionName", "St. Anna"),
        ("OperatorsName", "Doe^J"), ("PatientAge", "045Y"), ("PatientComments", "fell from a horse"),
        ("StationName", "ROOM4"), ("OtherPatientIDs", ["1", "2"]), ("PatientAddress", "Some street 1"),
        ("StudyDescription", "Thorax of Jane Doe"), ("ImageComments", "see Jane Doe"), ("PatientWeight", 61.5),
    ],
)  # fmt: skip
def test_names_and_what_goes_are_found_whatever_the_file_says(keyword, value):
    assert set(findings(deidentified(**{keyword: value}))) == {keyword}


def test_values_that_may_be_the_patients_are_found_where_nothing_says_that_they_are_not():
    told = {"PatientID": "4711", "PatientSex": "F", "StudyDate": "20190203", "AccessionNumber": "99"}
    assert findings(deidentified(**told)) == {}
    dates = deidentified(**told, LongitudinalTemporalInformationModified="UNMODIFIED")
    assert findings(dates) == {"StudyDate": "20190203"}
    plain = deidentified(**told)
    del plain.PatientIdentityRemoved
    assert findings(plain) == told | {
        "PatientIdentityRemoved": "absent: nothing says that it was de-identified",
    }


def value_of(vr: str) -> object:
    """Some value of a patient, of a value representation."""
    if vr in ("FD", "FL", "SL", "SS", "UL", "US"):
        return 42
    values = {"DA": "20190203", "DT": "20190203101112", "TM": "101112", "PN": "Doe^Jane", "AS": "045Y", "DS": "4.2",
              "IS": "42", "SQ": Sequence([Dataset()]), "UI": "1.2.3", "CS": "SOME",
              "UR": "https://example.org"}  # fmt: skip
    return values.get(vr, b"some" if vr.startswith("O") or vr == "UN" else "some")


def test_every_attribute_of_the_profile_is_found_but_uids_which_one_mark_tells_of():
    single, repeated = _profile()
    assert len(single) > 500
    assert len(repeated) == 3
    for tag, action in single.items():
        if not dictionary_has_tag(tag):  # one whose group this pydicom does not know
            continue
        dataset, vr = Dataset(), dictionary_VR(tag).split(" or ")[0]
        dataset.add_new(tag, vr, value_of(vr))
        assert bool(dict(_within(dataset, False, False))) == (action != "uid"), f"{tag:08x} {vr}"


def test_sequences_private_elements_overlays_and_warnings_are_looked_into():
    inner = Dataset()
    inner.RequestedProcedureDescription = "Thorax of Jane Doe"
    dataset = deidentified(BurnedInAnnotation="YES", ProcedureCodeSequence=[inner])
    block = dataset.private_block(0x0009, "A maker", create=True)
    block.add_new(0x01, "LO", "Doe^Jane")
    dataset.add_new(0x60023000, "OW", b"\1\0" * 4)
    dataset.add_new(0x60024000, "LT", "an overlay of Jane Doe")
    found = findings(dataset)
    assert set(found) == {
        "BurnedInAnnotation", "ProcedureCodeSequence.RequestedProcedureDescription", "(0009,1001)", "(6002,3000)",
        "(6002,4000)",
    }  # fmt: skip
    assert found["(0009,1001)"] == "private: 'Doe^Jane'"


def test_a_preamble_may_hold_words():
    buffer = BytesIO()
    dataset = deidentified()
    dataset.preamble = b"Jane Doe".ljust(128, b"\0")
    dataset.save_as(buffer, enforce_file_format=True)
    assert dict(attribute_findings(buffer.getvalue(), "x.dcm")) == {"preamble": "b'Jane Doe'"}


def test_what_a_known_program_deidentified_has_no_findings_but_that_it_does_not_say_so(tmp_path):
    from dicomanonymizer.simpledicomanonymizer import anonymize_dataset

    dataset = deidentified(
        PatientName="Doe^Jane", PatientID="4711", PatientBirthDate="19560201", StudyDate="20190203", StudyTime="1010",
        InstitutionName="St. Anna", OperatorsName="Doe^J", PatientAge="045Y", AccessionNumber="99",
        AcquisitionDateTime=datetime(2019, 2, 3).strftime("%Y%m%d"), StudyDescription="Thorax", StationName="ROOM4",
    )  # fmt: skip
    assert len(findings(dataset)) >= 6
    anonymize_dataset(dataset, delete_private_tags=True)
    assert set(findings(dataset)) <= {"PatientIdentityRemoved"}


@pytest.mark.parametrize("keyword", ["PatientID", "AccessionNumber", "Manufacturer", "SoftwareVersions"])
@pytest.mark.parametrize("value", ["DOE^JANE", "Anna Nowak", "1956-02-01"])
def test_texts_that_may_stay_are_found_where_they_name_somebody(keyword, value):
    assert findings(deidentified(**{keyword: value})) == {keyword: value}


def test_what_lies_behind_the_pixels_or_in_their_bits_is_found():
    dataset = deidentified()
    dataset.private_block(0x7FE1, "A maker", create=True).add_new(0x01, "LO", "Doe^Jane")
    dataset.add_new(0x60000102, "US", 12)
    assert set(findings(dataset)) == {"(6000,0102)", "(7FE1,1001)"}
    assert set(findings(deidentified(EncapsulatedDocument=b"%PDF Jane Doe"))) == {"EncapsulatedDocument"}


def test_what_does_not_show_whole_is_told_apart():
    for name in ("ReferencedStudySequence", "RequestedProcedureCodeSequence"):
        items = [Dataset(), Dataset()]
        items[0].CodeMeaning, items[1].CodeMeaning = "one", "another"
        assert len({findings(deidentified(**{name: [item]})).get(name, str(item)) for item in items}) == 2
    blocks = [deidentified(), deidentified()]
    for dataset, content in zip(blocks, (b"a" * 400, b"b" * 400), strict=True):
        dataset.private_block(0x0009, "A maker", create=True).add_new(0x01, "OB", content)
    assert findings(blocks[0]) != findings(blocks[1])


@pytest.mark.filterwarnings("ignore:End of file reached")
def test_damaged_pixels_do_not_hide_what_is_before_them():
    dataset = deidentified(PatientName="Doe^Jane")
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.JPEGBaseline8Bit
    dataset.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8" * 40])
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    told = attribute_findings(buffer.getvalue()[:-60], "x.dcm")
    assert next(told) == ("PatientName", "Doe^Jane")
    with pytest.raises(DecodeError, match="damaged pixels"):
        next(told)
