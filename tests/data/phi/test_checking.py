"""Whole folders and tables: every finding is written, a person accepts them row by row, nothing is passed over."""

import csv
import shutil
from datetime import date, datetime
from functools import partialmethod
from io import BytesIO

import datasets
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow.parquet import write_table
from tqdm import tqdm

from eden_hf import cli
from eden_hf.data.errors import SourceError
from eden_hf.data.phi import Finding, PhiError, check_phi, checking, data_findings, guard, read_accepted

from .test_attributes import deidentified
from .test_burned_in import phantom

AUTHOR = {"comment": b"Jane Doe"}


def encoded(image: Image.Image, format_: str = "PNG", **options) -> bytes:
    buffer = BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


@pytest.fixture
def images(tmp_path):
    """A folder with something of every kind."""
    folder = tmp_path / "images"
    (folder / "Smith_John").mkdir(parents=True)
    plain = phantom(64)
    plain.save(folder / "plain.png")
    plain.save(folder / "Smith_John" / "1.png")
    plain.save(folder / "Smith_John" / "2.png")
    plain.save(folder / "author.jpg", **AUTHOR)
    deidentified(PatientName="Doe^Jane").save_as(folder / "IM0001", enforce_file_format=True)
    phantom(256, ("DOE^JANE 1956", 4, 4)).save(folder / "text.tif")
    (folder / "torn.png").write_bytes(encoded(plain)[:60])
    (folder / "notes.txt").write_text("nothing")
    (folder / ".hidden").write_text("nothing")
    return folder


def check(path, tmp_path, **options):
    return check_phi([str(path)], str(tmp_path / "phi.csv"), **options)


def test_a_folder_is_looked_at_whole(images, tmp_path):
    report = check(images, tmp_path)
    assert sorted((finding.file, finding.kind, finding.where) for finding in report.findings[:-1]) == [
        ("IM0001", "attribute", "PatientName"),
        ("Smith_John", "name", "name of a person"),
        ("author.jpg", "tag", "comment"),
        ("text.tif", "text", report.findings[-2].where),
    ]
    assert report.findings[-1][:3] == ("torn.png", "unreadable", "image")
    assert report.findings[-2].where.startswith("box ")
    assert (report.images, report.others, report.hidden, report.accepted) == (7, 1, 1, 0)
    with report.file.open(newline="", encoding="utf-8") as file:
        assert [tuple(row) for row in csv.reader(file)] == [Finding._fields, *report.findings]


def test_what_a_person_accepts_is_found_no_more_and_what_changed_is(images, tmp_path):
    kept = tmp_path / "kept.csv"
    shutil.move(check(images, tmp_path).file, kept)
    report = check(images, tmp_path, accepted=str(kept))
    assert (report.findings, report.accepted) == ([], 5)
    phantom(64).save(images / "author.jpg", comment=b"John Doe")
    (finding,) = check(images, tmp_path, accepted=str(kept)).findings
    assert finding == ("author.jpg", "tag", "comment", "John Doe")


def test_the_command_exits_with_one_on_findings_and_tells_no_values(images, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        cli.check_phi(["images", "images/plain.png", "--skip_text"])
    assert ended.value.code == 1
    told = capsys.readouterr().out
    assert "images/author.jpg\ttag\tcomment" in told
    assert "Jane" not in told
    assert "looked at 8 images, without burned-in text; of 1 other files the names" in told
    cli.check_phi(["images/plain.png"])  # and ends as usual
    assert "0 findings, 0 accepted: phi.csv" in capsys.readouterr().out


def test_progress_may_be_silenced(tmp_path, monkeypatch, capsys):
    for name in "ab":
        phantom(64).save(tmp_path / f"{name}.png")
    check(tmp_path, tmp_path / "out", skip_text=True)
    assert "file/s" in capsys.readouterr().err
    monkeypatch.setattr(tqdm, "__init__", partialmethod(tqdm.__init__, disable=True))  # as --quiet does
    check(tmp_path, tmp_path / "out", skip_text=True)
    assert capsys.readouterr().err == ""


def test_parquet_and_saved_data_sets_are_looked_at_row_by_row(tmp_path, monkeypatch):
    monkeypatch.setattr(checking, "find_text", lambda picture: [])
    plain, author = encoded(phantom(64)), encoded(phantom(64), "JPEG", **AUTHOR)
    cells = [{"bytes": plain, "path": "Smith_John.png"}, {"bytes": author, "path": None}, None]
    folder = tmp_path / "cohort"
    folder.mkdir()
    table = pa.table({"image": cells, "raw": [plain, plain, author], "patient_name": ["a", "b", "c"],
                      "source_id": ["1.png", "Anna Nowak", "3.png"], "age": [1, 2, 3]})  # fmt: skip
    write_table(table, folder / "train.parquet")
    expected = {
        ("train.parquet", "name", "column", "patient_name"),
        ("train.parquet row 0", "name", "image: name of a person", "Smith John"),
        ("train.parquet row 1", "tag", "image: comment", "Jane Doe"),
        ("train.parquet row 1", "name", "source_id: name of a person", "Anna Nowak"),
        ("train.parquet row 2", "tag", "raw: comment", "Jane Doe"),
    }
    report = check(folder, tmp_path)
    assert set(report.findings) == expected
    assert report.images == 5
    saved = datasets.load_dataset("parquet", data_files=str(folder / "train.parquet"), cache_dir=str(tmp_path / "c"))
    saved["train"].save_to_disk(tmp_path / "saved")
    rows = {(file.replace("train.parquet", "train"), *rest) for file, *rest in expected}
    assert set(check(tmp_path / "saved", tmp_path).findings) == rows
    assert set(data_findings(saved["train"], "train")) == rows


def test_every_frame_and_every_page_is_looked_at(tmp_path):
    pages = [phantom(256), phantom(256, ("DOE^JANE 1956", 4, 4))]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    frames = deidentified(NumberOfFrames=2, Rows=256, Columns=256)
    frames.PixelData = b"".join(page.tobytes() for page in pages)
    frames.save_as(tmp_path / "frames.dcm", enforce_file_format=True)
    found = check(tmp_path, tmp_path / "out").findings
    assert [(finding.file, finding.where.partition(" box")[0]) for finding in found] == [
        ("frames.dcm", "frame 1"), ("pages.tif", "frame 1"),
    ]  # fmt: skip


def test_text_under_transparency_and_in_it_is_found_once(tmp_path):
    plain, text = phantom(256), phantom(256, ("DOE^JANE 1956", 4, 4))
    nothing, all_of_it = Image.new("L", plain.size), Image.new("L", plain.size, 255)
    for name, grey, alpha in (("under", text, nothing), ("in", plain, text), ("seen", text, all_of_it)):
        Image.merge("LA", (grey, alpha)).save(tmp_path / f"{name}.png")
    found = check(tmp_path, tmp_path / "out").findings
    assert [finding.file for finding in found] == ["in.png", "seen.png", "under.png"]


def test_images_are_known_by_their_content(tmp_path):
    (tmp_path / "image.dat").write_bytes(encoded(phantom(64), "JPEG", **AUTHOR))
    assert [finding.where for finding in check(tmp_path, tmp_path / "out").findings] == ["comment"]


def test_a_dicom_report_has_attributes_and_no_pixels(tmp_path):
    report = deidentified(PatientName="Doe^Jane", SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11")
    del report.PixelData
    report.file_meta.MediaStorageSOPClassUID = report.SOPClassUID
    report.save_as(tmp_path / "report.dcm", enforce_file_format=True)
    assert [finding.where for finding in check(tmp_path, tmp_path / "out").findings] == ["PatientName"]


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "its first line is ''"), ("a,b\n", "is no CSV of eden check-phi.*'a,b'.*keep that line"),
     ("file,kind,where,found\na.png,text\n", "row 2 has 2 values, not 4")],
)  # fmt: skip
def test_a_file_that_holds_no_findings_is_told(tmp_path, content, message):
    file = tmp_path / "accepted.csv"
    file.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_accepted(file)


def test_accepted_rows_are_read_as_spreadsheet_programs_write_them(tmp_path):
    file = tmp_path / "accepted.csv"
    file.write_bytes('\ufefffile,kind,where,found\r\na.png,tag,Author,"Doe, Jane"\r\n\r\n'.encode())
    assert read_accepted(file) == {Finding("a.png", "tag", "Author", "Doe, Jane")}


def test_the_guard_refuses_without_telling_values(tmp_path):
    findings = [Finding("a.png", "tag", "Author", "Jane Doe"), Finding("b.png", "text", "box 1,2,3,4", "DOE")]
    with pytest.raises(
        PhiError, match=r"1 tag, 1 text\n  a\.png: tag Author\n  b.*\n.*phi\.csv says.*as --accepted"
    ) as told:
        guard(findings, frozenset(), tmp_path / "phi.csv", "--accepted")
    assert "DOE" not in str(told.value)
    guard(findings, read_accepted(tmp_path / "phi.csv"), tmp_path / "none.csv", "--accepted")
    assert not (tmp_path / "none.csv").exists()


def test_an_empty_folder_and_nothing_at_all(tmp_path):
    with pytest.raises(SourceError, match="it has no files"):
        check(tmp_path, tmp_path / "out")
    with pytest.raises(SourceError, match="nothing at"):
        check(tmp_path / "none", tmp_path / "out")


def test_texts_days_and_images_within_others_are_found_in_tables(tmp_path):
    author = {"bytes": encoded(phantom(64), "JPEG", **AUTHOR), "path": None}
    table = pa.table({
        "who": [{"patient_name": "Anna Nowak", "age": 3}], "names": [["normal", "Anna Nowak"]], "pages": [[author]],
        "pairs": pa.array([[("by", "Anna Nowak")]], pa.map_(pa.string(), pa.string())), "vector": [[0.5] * 9],
        "born": [date(1956, 2, 1)], "seen": [datetime(2019, 2, 3, 10)],
    })  # fmt: skip
    write_table(table.replace_schema_metadata({"author": "Jane Doe", "huggingface": "{}"}), tmp_path / "t")
    found = check(tmp_path / "t", tmp_path, skip_text=True).findings
    assert [finding[1:] for finding in found] == [
        ("name", "column", "patient_name"), ("tag", "metadata author", "Jane Doe"),
        ("name", "who: patient_name: name of a person", "Anna Nowak"),
        ("name", "names: name of a person", "Anna Nowak"),
        ("tag", "pages: comment", "Jane Doe"), ("name", "pairs: name of a person", "Anna Nowak"),
        ("name", "born: date", "1956-02-01"), ("name", "seen: date", "2019-02-03T10:00:00"),
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["a.zip", "scan.nii.gz", "A.NPY", "shard.arrow", "page.pdf"])
def test_files_that_cannot_be_looked_into_are_findings(tmp_path, name):
    (tmp_path / name).write_bytes(b"something")
    report = check(tmp_path, tmp_path / "out")
    assert [finding[:3] for finding in report.findings] == [(name, "unreadable", "file")]
    (tmp_path / name).write_bytes(b"another")
    assert check(tmp_path, tmp_path / "new", accepted=str(report.file)).findings


def test_dicom_without_mark_and_raw_images_are_looked_at(tmp_path):
    buffer = BytesIO()
    deidentified(PatientName="Doe^Jane").save_as(buffer, enforce_file_format=True)
    meta = 144 + int.from_bytes(buffer.getvalue()[140:144], "little")
    for number, data in enumerate((buffer.getvalue()[132:], buffer.getvalue()[meta:])):
        (tmp_path / f"IM{number}").write_bytes(data)
    (tmp_path / "JPCLN001.IMG").write_bytes(np.arange(64, dtype=">u2").tobytes())
    (tmp_path / "torn.IMG").write_bytes(b"torn")
    report = check(tmp_path, tmp_path / "out")
    assert [finding[:3] for finding in report.findings] == [
        ("IM0", "attribute", "PatientName"), ("IM1", "attribute", "PatientName"), ("torn.IMG", "unreadable", "image"),
    ]  # fmt: skip
    assert (report.images, report.others) == (4, 0)


def test_names_and_values_that_no_csv_can_hold_are_written_and_accepted(tmp_path, capsys):
    phantom(64).save(tmp_path / "a.jpg", **AUTHOR)
    (tmp_path / "a.jpg").rename(tmp_path / "a\udcff.jpg")
    deidentified(PatientComments="x\0y").save_as(tmp_path / "b.dcm", enforce_file_format=True)
    report = check(tmp_path, tmp_path / "out")
    assert [finding.file for finding in report.findings] == ["a\\udcff.jpg", "b.dcm"]
    assert check(tmp_path, tmp_path / "new", accepted=str(report.file)).accepted == 2
    with pytest.raises(PhiError, match="1 tag"):
        guard([Finding("a\udcff", "tag", "b", "c\0")], frozenset(), tmp_path / "out" / "phi.csv", "--accepted")


def test_what_cannot_be_read_is_told_alike_each_time(tmp_path):
    (tmp_path / "no.png").write_bytes(b"no image")
    report = check(tmp_path, tmp_path / "out")
    assert "0x" not in report.findings[0].found
    assert check(tmp_path, tmp_path / "new", accepted=str(report.file)).accepted == 1


def test_plain_arrays_of_a_data_set_are_no_images(tmp_path):
    data = datasets.Dataset.from_dict({"numbers": [np.zeros(4).tolist()], "text": ["normal"], "nothing": [None]})
    assert list(data_findings(data, "train")) == []
