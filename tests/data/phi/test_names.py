"""Names of patients in file names are found; the names that data sets give are not."""

import pytest

from eden_hf.data.phi.names import name_findings, tells_patients


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("Smith_John/view.png", "name of a person"),
        ("SMITH JOHN chest.dcm", "name of a person"),
        ("JohnSmith.png", "name of a person"),
        ("garcía-maría.png", "name of a person"),
        ("Müller, Anna.jpg", "name of a person"),
        ("Nowak.Katarzyna.png", "name of a person"),
        ("DOE^JANE.dcm", "name as DICOM has it"),
        ("cxr_1956-02-01.png", "date"),
        ("cxr_19560201.png", "date"),
        ("cxr_01.02.1956.png", "date"),
        ("garci\u0301a-mari\u0301a.png", "name of a person"),  # as macOS writes them
        ("Francois Lefevre.png", "name of a person"),
        ("Oyvind_Hansen.png", "name of a person"),
        ("\u0130brahim Y\u0131ld\u0131z.png", "name of a person"),
        ("Maria de la Cruz.png", "name of a person"),
        ("Patrick O'Brien.png", "name of a person"),
        ("John Q Smith.png", "name of a person"),
        ("cxr_02.13.1956.png", "date"),
        ("cxr_02-13-1956.png", "date"),
        ("1.2.1956.png", "date"),
        ("seen 2/13/1956", "date"),
        ("1956.2.1.png", "date"),
        ("01-Feb-1956.png", "date"),
        ("cxr_1FEB1956.png", "date"),
        ("February 1st, 1956", "date"),
        ("IM_20190203103000.png", "date"),
        ("mrn_A4471203.png", "number of a patient"),
        ("NHS 943 476 5919.png", "number of a patient"),
        ("tel +49 30 123456", "number of a patient"),
        ("MRN-4471203.png", "number of a patient"),
        ("dob1956.png", "number of a patient"),
        ("078-05-1120.png", "social security number"),
        ("jane.doe@example.org.png", "e-mail address"),
    ],
)
def test_names_dates_and_numbers_are_found(name, what):
    assert what in dict(name_findings(name))


@pytest.mark.parametrize(
    "name",
    [
        "00000001_000.png",  # ChestX-ray14
        "patient00001/study1/view1_frontal.jpg",  # CheXpert
        "JPCLN001.IMG",
        "CHNCXR_0001_0.png",
        "MCUCXR_0001_0.png",
        "Image_01L_1stHO.png",  # CHASE
        "21_training.tif",  # DRIVE
        "1.2.276.0.7230010.3.1.2.8323329.1028.1517875161.601878.png",
        "000434271f63a053c4128a0ba6352c7f.dicom",  # VinDr
        "files/p10/p10000032/s50414267/02aa804e-bde0afdd-112c0b34-7bc16630-4e384014.jpg",  # MIMIC-CXR
        "Viral Pneumonia-276.png",
        "Tuberculosis-164.png",
        "normal_left_lung_mask.png",
        "train/positive/chest_front_1.png",
        "right clavicle.png",
        "level-2/train-00000-of-00001.parquet",
        "scan_12345678.png",
        "resized_512x512_grey.png",
        "1.3.6.1.4.1.14519.5.2.1.2001.1.12.png",
        "patient_1999_1_2.png",
        "scan-2001-3-12.png",
        "march 1999 mask.png",
    ],
)
def test_what_data_sets_call_their_files_is_not(name):
    assert list(name_findings(name)) == []


def test_columns_of_patients_are_told_by_their_names():
    assert all(map(tells_patients, ("patient_name", "PatientName", "birth_date", "DOB", "last name", "e-mail", "mrn")))
    assert not any(map(tells_patients, ("file_name", "name", "image", "patient_id", "label", "address_space", "age")))
