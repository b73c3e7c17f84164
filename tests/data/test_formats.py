"""What is opened by which name, what is told of what is not, and lines and members of every size."""

import bz2
import gzip
import io
import json
import lzma
import pickle
import random
import re
import tarfile
import zipfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from bytemtp.common.errors import UserError
from bytemtp.data import documents
from bytemtp.data.archives import ZipMembers
from bytemtp.data.compression import Format, format_of
from bytemtp.data.documents import Reading, open_documents, sniff_suffix
from bytemtp.data.long_lines import LongLine
from bytemtp.data.sources import Damaged, RawFile, SkipLog, Source
from bytemtp.data.stream import stream

LINES = b'{"text": "one"}\n\n{"id": 7, "text": "two"}\n'
TEXT = b"the text of a file"


@pytest.fixture(autouse=True)
def _nothing_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "_told", set())


def read(path: Path, skip_log: SkipLog | None = None, **reading: Any) -> list[bytes]:
    """All documents of a file."""
    with closing(open_documents(Source(str(path), 0), skip_log or SkipLog("error"), Reading(**reading))) as opened:
        return [opened.read_fully(1 << 24) for _ in iter(opened.advance, False)]


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def tar_of(members: dict[str, bytes], dialect: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=dialect) as archive:
        for name, data in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(data)
            archive.addfile(header, io.BytesIO(data))
    return buffer.getvalue()


def zip_of(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


ARCHIVES: dict[str, Callable[[dict[str, bytes]], bytes]] = {"a.tar": tar_of, "a.zip": zip_of}

NAMES = {
    "a.ndjson": Format(None, "jsonl"),
    "a.jsonlines.GZIP": Format("gz", "jsonl"),
    "a.jsonl.zstd": Format("zst", "jsonl"),
    "a.txt.bzip2": Format("bz2", None),
    "a.json.gz": Format("gz", "json"),
    "a.json": Format(None, "json"),
    "a.tar.zstd": Format("zst", "tar"),
    "a.tbz": Format("bz2", "tar"),
    "a.zip": Format(None, "zip"),
    "zip": Format(None, None),
}


@pytest.mark.parametrize("name", NAMES)
def test_names(name: str) -> None:
    assert format_of(name) == NAMES[name]
    assert format_of(name, earlier=True) in ((None, None), ("gz", None))


@pytest.mark.parametrize(
    ("name", "compress"),
    [
        ("a.ndjson", bytes),
        ("a.jsonlines", bytes),
        ("a.json", bytes),
        ("a.json.gz", gzip.compress),
        ("a.jsonl.gzip", gzip.compress),
        ("a.jsonl.zstd", zstandard.compress),
        ("a.ndjson.bzip2", bz2.compress),
        ("a.json.xz", lzma.compress),
    ],
)
def test_json_lines_by_any_name(name: str, compress: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = written(tmp_path / name, compress(LINES))
    assert read(path) == [b"one", b"two"]
    assert read(path, format="raw") == [LINES]
    assert read(path, decompress=False) == [compress(LINES)]
    assert len(read(path, format="earlier")) == (
        2 if ".jsonl." in name and "gzip" not in name and "zstd" not in name else 1
    )


def test_json_that_is_no_lines_is_a_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Settings of a program, an array of records, one object over many lines: nobody asked for their fields."""
    for content in (b'{"name": "x"}', b'[{"text": "a"}]', b'{\n "text": "a"\n}', b'{"text": 1}\n', b"", b"{"):
        assert read(written(tmp_path / "a.json", content)) == [content]
    assert capsys.readouterr().err == ""
    lines = b'{"body": "a"}\n{"body": "b"}\n'
    assert read(written(tmp_path / "a.json", lines)) == [lines]
    assert capsys.readouterr().err.count("has JSON on each line, but no field 'text': it is read as one document") == 1
    assert read(tmp_path / "a.json", text_field="body") == [b"a", b"b"]


def test_first_line_beyond_the_head(tmp_path: Path) -> None:
    line = json.dumps({"meta": "m" * 2_000_000, "text": "a"}).encode()
    assert read(written(tmp_path / "a.json", line + b"\n")) == [line + b"\n"], "the field lies beyond what is looked at"
    line = json.dumps({"text": "a" * 2_000_000}).encode()
    assert read(written(tmp_path / "b.json", line + b"\n")) == [b"a" * 2_000_000]
    for record in ({"posts": [{"text": "a"}] * 99_000}, {"meta": {"text": "q"}, "data": "x" * 2_000_000}):
        whole = json.dumps(record).encode()
        assert read(written(tmp_path / "c.json", whole)) == [whole], "a field further in is none of the line's"


def test_damage_is_told_once_however_often_the_first_bytes_are_looked_at(tmp_path: Path) -> None:
    """A decoder of bz2 that has failed has other errors for who asks again."""
    damaged = bytearray(bz2.compress(b'{"text": "hello world"}\n' * 30))
    damaged[-1] ^= 0x80
    with pytest.raises(Damaged, match=r"crc.json.bz2: is damaged: Invalid data stream"):
        read(written(tmp_path / "crc.json.bz2", bytes(damaged)))


def test_format_is_said_for_all_files(tmp_path: Path) -> None:
    assert read(written(tmp_path / "lines", LINES), format="jsonl") == [b"one", b"two"]
    assert read(written(tmp_path / "lines.gz", gzip.compress(LINES)), format="jsonl") == [b"one", b"two"]
    assert read(written(tmp_path / "tar", tar_of({"a": TEXT})), format="tar") == [TEXT]
    assert read(written(tmp_path / "zip", zip_of({"a": TEXT})), format="zip") == [TEXT]
    for name, kind in (("tars", tar_of), ("zipped", zip_of)):  # members are what they are by their names
        kept = kind({"a.json": LINES, "b.jsonl": LINES})
        assert read(written(tmp_path / name, kept), format=name[:3]) == 2 * [b"one", b"two"]
    inner = zip_of({"c": TEXT})
    assert read(written(tmp_path / "zips", zip_of({"a": TEXT, "b.zip": inner, "c": TEXT})), format="zip") == [
        TEXT,
        inner,
        TEXT,
    ]
    assert read(written(tmp_path / "a.zip", zip_of({"a": TEXT})), format="raw") == [zip_of({"a": TEXT})]
    with pytest.raises(Damaged, match=r"zip\.gz: is a \.zip in a compressed file; decompress it first"):
        read(written(tmp_path / "zip.gz", gzip.compress(zip_of({"a": TEXT}))), format="zip")


def piped(data: bytes, folder: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> list[bytes]:
    """Documents of standard input, as `bytemtp.stream` reads them."""
    with written(folder / "input", data).open() as file:
        monkeypatch.setattr("sys.stdin", file)
        [batch] = stream("-", seq_len=200, batch_size=1, n_future=1, shuffle=False, **options)
    ids = batch.ids[0, : batch.lengths[0]].tolist()
    return bytes(x if x < 256 else 0 for x in ids).split(b"\0")[:-1]


@pytest.mark.parametrize("compress", [bytes, gzip.compress, zstandard.compress])
def test_json_lines_by_standard_input(
    compress: Callable[[bytes], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert piped(compress(LINES), tmp_path, monkeypatch) == [b"one", b"two"]
    assert piped(compress(b"\xef\xbb\xbf" + LINES), tmp_path, monkeypatch) == [b"one", b"two"]
    assert piped(compress(LINES), tmp_path, monkeypatch, format="raw") == [LINES]
    assert piped(compress(b"text\n" + LINES), tmp_path, monkeypatch) == [b"text\n" + LINES]


def test_standard_input_gets_the_name_of_its_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for data, suffix in {
        LINES: ".jsonl",
        gzip.compress(LINES): ".jsonl.gz",
        b'{"a": 1}\n{"a": 2}\n': ".json",
        zstandard.compress(tar_of({"a": TEXT})): ".tar.zst",
        zip_of({"a": TEXT}): ".zip",
        bz2.compress(TEXT): ".bz2",
        b"BZh is no compression": "",
        TEXT: "",
        gzip.compress(TEXT)[:-9]: ".gz",
    }.items():
        assert sniff_suffix(written(tmp_path / "input", data), "text") == suffix
    for options in ({}, {"format": "zip"}):
        with pytest.raises(UserError, match=r"^-: is a \.zip, which cannot be read from a pipe; save it to a file"):
            piped(zip_of({"a": TEXT}), tmp_path, monkeypatch, **options)


@pytest.mark.parametrize("name", ARCHIVES)
def test_members_are_opened_by_their_names(name: str, tmp_path: Path) -> None:
    members = {
        "a.txt": TEXT,
        "b.txt.gz": gzip.compress(TEXT),
        "deep/c.jsonl": LINES,
        "d.ndjson.zst": zstandard.compress(LINES),
        "empty.txt": b"",
        "e.json": b'{"a": 1}',
        "z" * 150 + "/f.jsonl": LINES,
    }
    path = written(tmp_path / name, ARCHIVES[name](members))
    documents = [TEXT, TEXT, b"one", b"two", b"one", b"two", b"", b'{"a": 1}', b"one", b"two"]
    assert read(path) == documents
    if name == "a.tar":
        assert read(path, format="earlier") == list(members.values())
        assert read(written(tmp_path / "gnu.tar", tar_of(members, tarfile.GNU_FORMAT))) == documents


@pytest.mark.parametrize("name", ARCHIVES)
def test_resume_inside_members(name: str, tmp_path: Path) -> None:
    """A document's number leads to it again, whatever members with many documents lie before it."""
    draw = random.Random(0)
    texts = [draw.choice(["", "x", "words " * 40]) + str(number) for number in range(60)]
    lines = [json.dumps({"text": text}).encode() + b"\n" * draw.randint(1, 2) for text in texts]
    members = {f"{i}.jsonl": b"".join(lines[i * 20 : i * 20 + 20]) for i in range(3)} | {
        "p": TEXT,
        "q.gz": gzip.compress(TEXT),
    }
    path = written(tmp_path / name, ARCHIVES[name](members))
    options: dict[str, Any] = {"seq_len": 16, "batch_size": 4, "n_future": 2, "prefetch": 0}
    for split in ("all", "train", "valid"):
        options |= {"split": split, "valid_fraction": 0.3}
        batches = list(stream(path, **options))
        for place in range(0, len(batches), 3):
            rest = stream(path, cursor=batches[place].cursor, **options)
            assert [batch.ids.tolist() for batch in rest] == [batch.ids.tolist() for batch in batches[place + 1 :]]


@pytest.mark.parametrize("name", ARCHIVES)
def test_damaged_member_is_left_out_by_itself(name: str, tmp_path: Path) -> None:
    members = {
        "a.gz": gzip.compress(TEXT)[:-9],
        "b.jsonl": b'{"text": "one"}\nno json\n{"text": "two"}\n',
        "c.txt": TEXT,
    }
    path = written(tmp_path / name, ARCHIVES[name](members))
    with pytest.raises(Damaged, match=rf"{name}: a\.gz: is truncated"):
        read(path)
    skip_log = SkipLog("skip")
    assert read(path, skip_log) == [TEXT, b"one", b"two", TEXT] or read(path, skip_log) == [b"", b"one", b"two", TEXT]
    assert [where.rpartition(": ")[2] for where, _ in skip_log.listed[:2]] == ["a.gz", "b.jsonl"]


def test_truncated_archive_ends_there(tmp_path: Path) -> None:
    """What a member lacks because its archive was cut is no damage of the member alone."""
    path = written(tmp_path / "a.tar", tar_of({"a.jsonl": LINES, "b.jsonl": LINES * 200})[:3000])
    skip_log = SkipLog("skip")
    with pytest.raises(Damaged, match=r"a\.tar: is truncated: it ends inside its member 'b\.jsonl'"):
        read(path, skip_log)
    assert skip_log.count == 0


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
@given(contents=st.lists(st.binary(max_size=300) | st.integers(0, 600_000).map(bytes), max_size=4))
def test_zip(tmp_path_factory: pytest.TempPathFactory, method: int, contents: list[bytes]) -> None:
    data = zip_of({f"{i}.bin": content for i, content in enumerate(contents)} | {"folder/": b""}, method)
    path = written(tmp_path_factory.mktemp("zip") / "a.zip", data)
    assert read(path) == contents


def test_damaged_zip(tmp_path: Path) -> None:
    content = random.Random(0).randbytes(700_000)
    data = bytearray(zip_of({"a": content, "b": TEXT}, zipfile.ZIP_STORED))
    with pytest.raises(Damaged, match=r"a\.zip: is damaged: File is not a zip file"):
        read(written(tmp_path / "a.zip", bytes(data[:-30])))
    data[600_000] ^= 1
    path, skip_log = written(tmp_path / "a.zip", bytes(data)), SkipLog("skip")
    with pytest.raises(Damaged, match=r"a\.zip: a: is damaged: Bad CRC-32"):
        read(path)
    assert read(path, skip_log) == [content[: 2 << 18], TEXT]
    assert skip_log.count == 1


class Lossy(io.BytesIO):
    """A file at a URL, whose library raises errors of its own."""

    is_lost = False

    def read(self, *size: int | None) -> bytes:
        if self.is_lost:
            raise LookupError("connection lost")
        return super().read(*size)


def test_zip_at_a_url_that_cannot_be_read_is_damaged() -> None:
    data = zip_of({"a": bytes(700_000)}, zipfile.ZIP_STORED)
    file = Lossy(data)
    members = ZipMembers(RawFile("https://host/a.zip", file, len(data)))
    assert members.advance()
    file.is_lost = True
    with pytest.raises(Damaged, match=r"^https://host/a\.zip: a: cannot be read: connection lost$"):
        members.read(1)
    with pytest.raises(Damaged, match=r"^https://host/a\.zip: cannot be read: connection lost$"):
        ZipMembers(RawFile("https://host/a.zip", file, len(data)))
    assert file.closed


def test_litter_in_archives_is_left_out_and_keeps_its_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    members = {"a.txt": b"a", "__MACOSX/._a.txt": b"litter", "src/.git/HEAD": b"litter", "b.log": b"b", "c.txt": b"c"}
    for name, archive in ARCHIVES.items():
        path, skip_log = written(tmp_path / name, archive(members)), SkipLog("error")
        assert read(path, skip_log) == [b"a", b"b", b"c"]
        assert skip_log.left_out == {"__MACOSX": 1, ".git": 1}
        assert read(path, exclude=("*.log", "src")) == [b"a", b"c"]
        with closing(open_documents(Source(str(path), 0), SkipLog("error"))) as opened:
            assert [opened.index for _ in iter(opened.advance, False)] == [0, 3, 4]
    assert capsys.readouterr().err.count("members that match __MACOSX are left out") == 1


def npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, a=np.zeros(3))
    return buffer.getvalue()


def npy() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    return buffer.getvalue()


PACKED = {
    "a.txt": (gzip.compress(TEXT), r"a \.gz by its first bytes"),
    "a.bin": (zstandard.compress(TEXT), r"a \.zst by its first bytes"),
    "b.txt": (bz2.compress(TEXT), r"a \.bz2 by its first bytes"),
    "c.txt": (lzma.compress(TEXT), r"a \.xz by its first bytes"),
    "a.docx": (zip_of({"a": TEXT}), r"a \.zip by its first bytes"),
    "a.npz": (npz(), r"a \.zip by its first bytes"),
    "a.dat": (tar_of({"a": TEXT}), r"a \.tar by its first bytes"),
    "a.npy": (npy(), "a NumPy array by its first bytes"),
    "a.pkl": (pickle.dumps(["a"]), "a Python pickle"),
    "b.pkl": (pickle.dumps({"a": 1}, protocol=2), "a Python pickle"),
    "a.7z": (b"7z\xbc\xaf\x27\x1c rest", "a 7z archive"),
    "a.rar": (b"Rar!\x1a\x07\x01\x00 rest", "a RAR archive"),
    "a.lz4": (b"\x04\x22\x4d\x18 rest", "LZ4"),
    "a.parquet": (b"PAR1 rest", "Parquet"),
    "a.lzma": (lzma.compress(TEXT, lzma.FORMAT_ALONE), "LZMA"),
    "twice.gz": (gzip.compress(gzip.compress(TEXT)), r"a \.gz by its first bytes"),
    "a.zip.gz": (gzip.compress(zip_of({"a": TEXT})), r"a \.zip by its first bytes"),
    "b.tar": (tar_of({"inner.zip": zip_of({"a": TEXT})}), r"a \.zip by its first bytes"),
    "c.tar": (tar_of({"inner.tar": tar_of({"a": TEXT})}), r"a \.tar by its first bytes"),
}


@pytest.mark.parametrize("name", PACKED)
def test_what_is_not_opened_is_told_once(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, kind = PACKED[name]
    path = written(tmp_path / name, data)
    [plain] = read(path)
    read(path)
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert told.startswith(f"warning: {path}")

    assert re.search(f" is {kind}.* and is not opened: it is read as it lies", told)
    assert len(plain) >= 8
    read(path, format="raw")
    read(path, decompress=False)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("content", [TEXT, b"", b"PK", b"BZh 9", b"\x80 euros", "\u00e9".encode(), bytes(300), b"]\0"])
def test_no_false_alarm(content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert read(written(tmp_path / "a.txt", content)) == [content]
    assert capsys.readouterr().err == ""


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["text", 'a"', "b\\"]), inner, max_size=3)
    ),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.sampled_from(["text", "id", 'quo"te', "back\\", "{", "a:b,c", "\u00e9", ""]), JSON_VALUES)


@given(OBJECTS | JSON_VALUES, st.booleans(), st.sampled_from([None, 1]), st.lists(st.integers(1, 9), min_size=1))
def test_long_line_keeps_the_field(record: Any, ascii_only: bool, indent: int | None, sizes: list[int]) -> None:
    """In whatever pieces: the parser finds in the short line what it finds in the whole one."""
    text = json.dumps(record, ensure_ascii=ascii_only, indent=indent).replace("\n", " ")
    data = text.encode("utf-8", "surrogatepass")
    long, place = LongLine("text", 1 << 20), 0
    for turn in range(len(data)):
        size = sizes[turn % len(sizes)]
        long.add(data[place : place + size])
        place += size
    line = long.line()
    assert line is not None
    if not isinstance(record, dict):
        assert isinstance(json.loads(line), type(record)) or isinstance(record, dict)
        return
    whole, short = json.loads(data), json.loads(line)
    assert list(short) == list(whole)
    assert short.get("text") == whole.get("text")
    assert all(value == 0 for name, value in short.items() if name != "text")


def test_line_with_long_fields_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the text has to be held: the vectors and the HTML that records carry along do not count."""
    monkeypatch.setattr(documents, "MAX_LINE_BYTES", 1000)
    monkeypatch.setattr(documents, "READ_BYTES", 64)
    others = {"html": '\\"' * 3000, "vector": [0.5] * 1000, "meta": {"text": ["no", {"text": "no"}] * 200}}
    records = [
        {**others, "text": "one"},
        {"text": "two"},
        {"text": "three", **others},
        {**others},
        {"text": "x" * 1100},
    ]
    lines = [json.dumps(record).encode() for record in [*records, {"text": "last", "meta": others}]]
    for end in (b"", b"\n"):
        skip_log = SkipLog("skip")
        path = written(tmp_path / "a.jsonl", b"\n".join(lines) + end)
        assert read(path, skip_log) == [b"one", b"two", b"three", b"last"]
        assert [reason.split(",")[0] for _, reason in skip_log.listed] == [
            "line 4 has no field 'text'",
            "line 5 is longer than 0 MiB",
        ]


def test_overlong_line_is_left_out_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It used to end the file: the lines after it were dropped without a word."""
    monkeypatch.setattr(documents, "MAX_LINE_BYTES", 1 << 20)
    long = b'{"text": "' + b"x" * (3 << 20) + b'"}\n'
    content = b'{"text": "one"}\n' + long + b'{"text": "two"}\n' + long + b"x" * (2 << 20) + b'\n{"text": "three"}'
    skip_log = SkipLog("skip")
    assert read(written(tmp_path / "a.jsonl", content), skip_log) == [b"one", b"two", b"three"]
    assert skip_log.count == 3
    with pytest.raises(Damaged, match=r"a\.jsonl: line 2 is longer than 1 MiB, its other fields left aside"):
        read(tmp_path / "a.jsonl")


def test_byte_order_mark(tmp_path: Path) -> None:
    mark = b"\xef\xbb\xbf"
    assert read(written(tmp_path / "a.jsonl", mark + LINES)) == [b"one", b"two"]
    assert read(written(tmp_path / "b.jsonl", mark + b"\n" + LINES)) == [b"one", b"two"]
    assert read(written(tmp_path / "a.json", mark + LINES)) == [b"one", b"two"]
    assert read(written(tmp_path / "a.txt", mark + TEXT)) == [mark + TEXT], "bytes of plain files stay"
