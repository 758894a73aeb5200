import codecs
import errno
from pathlib import Path

import pytest

from eden_hf.data.text_files import (
    append_line,
    parse_json,
    parse_yaml,
    read_csv,
    read_lines,
    read_record,
    read_text,
    write_text,
)

TEXT = "file_name,Größe\nÄ.png,1\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "latin-1", "cp1252"])
def test_text_of_any_usual_encoding(tmp_path, encoding, caplog):
    (tmp_path / "table.csv").write_bytes(TEXT.encode(encoding))
    assert read_text(tmp_path / "table.csv") == TEXT
    assert ("table.csv is no UTF-8: read as Windows-1252" in caplog.text) == (encoding in ("latin-1", "cp1252"))


def test_utf_16_of_both_byte_orders(tmp_path):
    for mark, encoding in ((codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be")):
        (tmp_path / "list.txt").write_bytes(mark + TEXT.encode(encoding))
        assert read_text(tmp_path / "list.txt") == TEXT


@pytest.mark.parametrize("content", [b"\x89PNG\r\n\x1a\n\0\0", "a.png".encode("utf-16-le")])
def test_what_is_no_text_is_refused_by_name(tmp_path, content):
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(ValueError, match=r"list\.txt holds null characters"):
        read_text(tmp_path / "list.txt")


def test_torn_text_is_refused_by_name(tmp_path):
    (tmp_path / "list.txt").write_bytes("ab".encode("utf-16")[:-1])
    with pytest.raises(ValueError, match=r"list\.txt is torn: not the utf-16 that it begins as"):
        read_text(tmp_path / "list.txt")


def test_text_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "list.txt").write_text("a")
    assert read_text("~/list.txt") == "a"


def test_a_mark_that_was_converted_with_the_text_is_left_out(tmp_path):
    (tmp_path / "list.txt").write_bytes("\ufeffa.png\n".encode("utf-16"))
    assert read_text(tmp_path / "list.txt") == "a.png\n"


def test_a_file_is_written_whole_or_stays_as_it_was(tmp_path, monkeypatch):
    file = tmp_path / "kept.json"
    write_text(file, "né")
    assert file.read_bytes() == "né".encode()
    monkeypatch.setattr(Path, "replace", lambda *given: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(OSError, match=r"full.*kept\.json") as refused:
        write_text(file, "new")
    assert refused.value.errno == errno.ENOSPC
    assert [path.name for path in tmp_path.iterdir()] == ["kept.json"]
    assert file.read_text(encoding="utf-8") == "né"


def test_a_line_that_cannot_be_written_names_its_file(tmp_path):
    append_line(tmp_path / "lines", "a")
    append_line(tmp_path / "lines", "b")
    assert (tmp_path / "lines").read_text() == "a\nb\n"
    with pytest.raises(IsADirectoryError, match=str(tmp_path)):
        append_line(tmp_path, "c")


def test_tables_tell_delimiter_and_lines(tmp_path):
    (tmp_path / "a.csv").write_bytes(b'\r\nname;x\r\n\r\n"a;b"; 1,5\r\n;\r\n"two\nlines";2\r\n')
    delimiter, lines = read_csv(tmp_path / "a.csv")
    assert delimiter == ";"
    assert [(line.where.rpartition(" ")[2], line.cells) for line in lines] == [
        ("2", ["name", "x"]),
        ("4", ["a;b", "1,5"]),
        ("7", ["two\nlines", "2"]),
    ]


def test_a_cell_without_end_is_refused_by_line(tmp_path):
    (tmp_path / "a.csv").write_text("name,x\na,1\n" + "b" * 200_000)
    with pytest.raises(ValueError, match=r"a\.csv, line 3: field larger than field limit"):
        read_csv(tmp_path / "a.csv")


@pytest.mark.parametrize(("parse", "text"), [(parse_json, "[" * 100_000), (parse_yaml, "[" * 2000)])
def test_nesting_without_end_is_a_wrong_value(parse, text):
    with pytest.raises(ValueError, match="lists in lists without end"):
        parse(text)


@pytest.mark.parametrize("doubled", ["[*{0}, *{0}]", "{{<<: [*{0}, *{0}]}}"])
def test_yaml_of_references_to_references_is_refused(doubled):
    text = "a0: &a0 {x: 1}\n" + "\n".join(f"a{n}: &a{n} {doubled.format(f'a{n - 1}')}" for n in range(1, 60))
    with pytest.raises(ValueError, match="references to references"):
        parse_yaml(text)
    with pytest.raises(ValueError, match="lists in lists without end"):
        parse_yaml("&a [*a]")
    assert parse_yaml("base: &b {x: 1}\none: {<<: *b}") == {"base": {"x": 1}, "one": {"x": 1}}


@pytest.mark.parametrize("text", ["a: [", "!!python/object/apply:os.system [ls]", "!!bool a", "!!timestamp a"])
def test_yaml_that_is_none_or_runs_code_is_refused(text):
    with pytest.raises(ValueError, match=r"expected|could not determine a constructor|plain values"):
        parse_yaml(text)


def test_records_and_lines_that_are_none_are_named(tmp_path):
    for name, content in {"a.json": "[" * 100_000, "b.yaml": "a: [", "c.json": "[1]", "d.yaml": ""}.items():
        (tmp_path / name).write_text(content)
        with pytest.raises(ValueError, match=rf"{name} (is damaged|must hold a mapping)"):
            read_record(tmp_path / name)
    (tmp_path / "e.yaml").write_text("a: 1\n", encoding="utf-16")
    assert read_record(tmp_path / "e.yaml") == {"a": 1}
    lines = tmp_path / "f.jsonl"
    lines.write_text('{"a": 1}\n{"a": ')
    assert read_lines(lines) == [{"a": 1}]
    lines.write_text('{"a": 1}\n{"a": 2}')  # by an editor
    assert read_lines(lines) == [{"a": 1}, {"a": 2}]
    for wrong in ("[1]", "{"):
        lines.write_text(f'{{"a": 1}}\n{wrong}\n')
        with pytest.raises(ValueError, match=r"f\.jsonl, line 2"):
            read_lines(lines)
