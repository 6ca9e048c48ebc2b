"""Kinds of sources beside the plain file: packed ones, folders, patterns, saved sets, spreadsheets, large files."""

import bz2
import gzip
import json
import lzma
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest

from qlora_core.data import DataSet, ReadOptions, read_data
from qlora_core.data.sources import line_file
from qlora_profiles.errors import UserError

Read = Callable[..., DataSet]


def pairs(letter: str, rows: int) -> bytes:
    lines = (json.dumps({"prompt": f"{letter}{n}", "completion": "yes"}) for n in range(rows))
    return "".join(f"{line}\n" for line in lines).encode()


def said(data: DataSet) -> list[str]:
    return [row.messages[0].content for row in data.conversations]


def read_at(path: Path | str) -> DataSet:
    return read_data(ReadOptions(path=str(path)))


def zstandard(data: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as packed:
        packed.write(data)
    return bytes(sink.getvalue())


@pytest.mark.parametrize(
    ("suffix", "pack"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress), (".zst", zstandard)]
)
def test_packed_files(read: Read, suffix: str, pack: Callable[[bytes], bytes]) -> None:
    packed = pack(pairs("a", 3))
    assert said(read(f"a.jsonl{suffix}", packed)) == ["a0", "a1", "a2"]
    assert said(read(f"a.tsv{suffix}", pack(b"question\tanswer\nHi, you\tHello\n"))) == ["Hi, you"]
    with pytest.raises(UserError, match="cannot be unpacked"):
        read(f"a.jsonl{suffix}", packed[:-9])


def test_a_zip_of_several_files_names_them(tmp_path: Path) -> None:
    path = tmp_path / "rows.zip"
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("in/a.jsonl", pairs("a", 2))
        packed.writestr("__MACOSX/in/._a.jsonl", b"junk")
    assert said(read_at(path)) == ["a0", "a1"]
    with zipfile.ZipFile(path, "a") as packed:
        packed.writestr("b.csv", "question,answer\nb0,yes\n")
    with pytest.raises(UserError, match=r"holds 2 files: in/a.jsonl, b.csv  -> --data .*rows.zip#in/a.jsonl"):
        read_at(path)
    assert said(read_at(f"{path}#b.csv")) == ["b0"]
    with pytest.raises(UserError, match=r"no such file; did you mean b.csv\?"):
        read_at(f"{path}#b.cvs")


def test_folders_and_patterns(tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    (folder / "more").mkdir(parents=True)
    with pytest.raises(UserError, match="a folder without data files"):
        read_at(folder)
    (folder / "more" / "c.jsonl").write_bytes(pairs("c", 1))
    with pytest.raises(UserError, match=r"those below it: --data .*\*.jsonl"):
        read_at(folder)
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(pairs("b", 1)))
    (folder / "a.jsonl").write_bytes(pairs("a", 2))
    (folder / "dataset_infos.json").write_text("{}", encoding="utf-8")
    data = read_at(folder)
    assert said(data) == ["a0", "a1", "b0"]
    assert [row.file for row in data.conversations] == ["a.jsonl", "a.jsonl", "b.jsonl.gz"]
    assert f"{folder}: 2 files, a.jsonl, b.jsonl.gz" in data.notes
    assert said(read_at(folder / "**" / "*.jsonl")) == ["a0", "a1", "c0"]
    before = data.fingerprint
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(pairs("d", 1)))
    assert read_at(folder).fingerprint != before
    assert len(said(read_at(f"{folder}:0.67"))) == 2


def test_sets_saved_to_disk(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    one = Dataset.from_dict({"prompt": ["a", "b"], "completion": ["c", "d"]})
    one.save_to_disk(tmp_path / "one")
    assert said(read_at(tmp_path / "one")) == ["a", "b"]
    both = DatasetDict({"train": one, "test": one.select([1])})
    both.save_to_disk(tmp_path / "both")
    data = read_at(tmp_path / "both")
    assert (said(data), data.notes[0]) == (["a", "b"], "both: the split train; not read: test")
    assert said(read_at(f"{tmp_path / 'both'}#test:1")) == ["b"]
    with pytest.raises(UserError, match=r"has no split tset; did you mean test\?: train, test"):
        read_at(f"{tmp_path / 'both'}#tset")


SHEET = """<?xml version="1.0"?><worksheet xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"><sheetData>
<row r="2"><c r="A2" t="inlineStr"><is><t>question</t></is></c><c r="B2" t="inlineStr"><is><t>answer</t></is></c></row>
<row r="4"><c r="A4" t="inlineStr"><is><t>Hi, %s</t></is></c><c r="B4"><v>42</v></c></row></sheetData></worksheet>"""
KIND = "application/vnd.openxmlformats-officedocument.spreadsheetml"
RELATION = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
PACKAGE = "http://schemas.openxmlformats.org/package/2006"


def workbook(path: Path, *sheets: str) -> None:
    """The smallest file that is a workbook."""
    numbers = range(1, len(sheets) + 1)
    parts = "".join(
        f'<Override PartName="/xl/worksheets/s{n}.xml" ContentType="{KIND}.worksheet+xml"/>' for n in numbers
    )
    listed = "".join(f'<sheet name="{name}" sheetId="{n}" r:id="r{n}"/>' for n, name in enumerate(sheets, 1))
    related = "".join(
        f'<Relationship Id="r{n}" Type="{RELATION}/worksheet" Target="worksheets/s{n}.xml"/>' for n in numbers
    )
    book = f'<Override PartName="/xl/workbook.xml" ContentType="{KIND}.sheet.main+xml"/>'
    spread = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("[Content_Types].xml", f'<Types xmlns="{PACKAGE}/content-types">{book}{parts}</Types>')
        root = f'<Relationship Id="r1" Type="{RELATION}/officeDocument" Target="xl/workbook.xml"/>'
        packed.writestr("_rels/.rels", f'<Relationships xmlns="{PACKAGE}/relationships">{root}</Relationships>')
        packed.writestr(
            "xl/workbook.xml",
            f'<workbook xmlns="{spread}" xmlns:r="{RELATION}"><sheets>{listed}</sheets></workbook>',
        )
        packed.writestr(
            "xl/_rels/workbook.xml.rels", f'<Relationships xmlns="{PACKAGE}/relationships">{related}</Relationships>'
        )
        for number, name in enumerate(sheets, 1):
            packed.writestr(f"xl/worksheets/s{number}.xml", SHEET % name)


def test_spreadsheets(tmp_path: Path) -> None:
    pytest.importorskip("python_calamine")
    workbook(tmp_path / "a.xlsx", "good", "other")
    data = read_at(tmp_path / "a.xlsx")
    (row,) = data.conversations
    assert (row.line, row.messages[0].content, row.messages[1].content) == (4, "Hi, good", "42")
    assert "a.xlsx: the sheet good; not read: other" in data.notes
    assert said(read_at(f"{tmp_path / 'a.xlsx'}#other")) == ["Hi, other"]
    with pytest.raises(UserError, match=r"no such sheet; did you mean other\?: good, other"):
        read_at(f"{tmp_path / 'a.xlsx'}#othr")
    (tmp_path / "b.xlsx").write_bytes(b"PK\x03\x04")
    with pytest.raises(UserError, match="no spreadsheet that can be read"):
        read_at(tmp_path / "b.xlsx")


def test_a_large_file_is_read_line_by_line_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + pairs("a", 50) + b"\n \n" + b"{broken\n" + pairs("é", 5).rstrip())
    options = ReadOptions(path=str(path), skip_bad_rows=True)
    sampled = ReadOptions(path=f"{path}:0.4", skip_bad_rows=True)
    small = [read_data(options), read_data(sampled)]
    monkeypatch.setattr(line_file, "LARGE_BYTES", 1)
    assert line_file.is_line_file(path)
    for one, other in zip([read_data(options), read_data(sampled)], small, strict=True):
        assert one == other
    assert (len(small[0].conversations), small[0].rejected[0].line) == (55, 53)
