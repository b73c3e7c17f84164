"""Compressed files and containers: what they hold comes out, and no damage goes unnoticed.

The slow twins are the standard library's own readers and, for .zst, the one-shot decompression of each frame.
"""

import bz2
import gzip
import io
import json
import lzma
import tarfile
import tempfile
from collections.abc import Callable
from contextlib import closing
from itertools import cycle
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from bytemtp.data import compression, documents
from bytemtp.data.compression import Format, decompress, format_of
from bytemtp.data.documents import Reading, open_documents
from bytemtp.data.sources import Damaged, SkipLog, Source
from bytemtp.testing import CorpusFile, compressed_files

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "zst": zstandard.ZstdCompressor(write_checksum=True).compress,
    "gz": gzip.compress,
    "xz": lzma.compress,
    "bz2": bz2.compress,
}


def read(data: bytes, name: str, sizes: list[int] | None = None) -> bytes:
    """All bytes of a file, asked for in pieces of these sizes in turn."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(data)
        with closing(decompress(Source(str(path), 0).open(), format_of(name).compression)) as file:
            return b"".join(iter(map(file.read, cycle(sizes or [1 << 20])).__next__, b""))


def read_or_damage(data: bytes, name: str) -> bytes | Damaged:
    try:
        return read(data, name)
    except Damaged as damage:
        return damage


def read_documents(data: bytes, name: str, skip_log: SkipLog | None = None) -> list[bytes]:
    """All documents of a file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(data)
        opened = open_documents(Source(str(path), 0), skip_log or SkipLog("error"), Reading())
        with closing(opened):
            return [opened.read_fully(1 << 20) for _ in iter(opened.advance, False)]


FORMATS = {
    "a": Format(None, None),
    "a.txt": Format(None, None),
    "a.zst": Format("zst", None),
    "a.TXT.GZ": Format("gz", None),
    "a.jsonl": Format(None, "jsonl"),
    "a.jsonl.bz2": Format("bz2", "jsonl"),
    "a.tar": Format(None, "tar"),
    "a.tar.xz": Format("xz", "tar"),
    "a.tgz": Format("gz", "tar"),
    "a.tzst": Format("zst", "tar"),
    "a.tbz2": Format("bz2", "tar"),
    "a.txz": Format("xz", "tar"),
    "tar": Format(None, None),
    "a.zst/b.txt": Format(None, None),
}


@pytest.mark.parametrize("name", FORMATS)
def test_format_of(name: str) -> None:
    assert format_of(name) == FORMATS[name]


@given(compressed_files(), st.lists(st.integers(1, 700), min_size=1, max_size=3))
def test_any_frames_in_any_pieces(file: CorpusFile, sizes: list[int]) -> None:
    """Many frames, streams or members, skippable frames, long windows, padding: the content, in whatever pieces."""
    assert read(file.data, file.name, sizes) == file.documents[0]


@given(compressed_files(), st.data())
def test_no_truncation_goes_unnoticed(file: CorpusFile, data: st.DataObject) -> None:
    """A file cut short is an error, or the cut was where a shorter file may end; zstandard alone would just stop."""
    if format_of(file.name).compression is None:
        return
    cut = data.draw(st.integers(0, len(file.data) - 1))
    found = read_or_damage(file.data[:cut], file.name)
    if isinstance(found, Damaged):
        assert found.reason == "is truncated: it ends inside its compressed data"
    else:
        # Read on from the cut: there must be whole frames, or the zeros that pad a stream.
        rest = file.data[cut:].lstrip(b"\0")
        assert found + (read(rest, file.name) if rest else b"") == file.documents[0]


@given(compressed_files(), st.data())
def test_no_flipped_bit_goes_unnoticed(file: CorpusFile, data: st.DataObject) -> None:
    """A flipped bit is an error, or it stood where there is no content: in a file name, a date, a skippable frame."""
    if format_of(file.name).compression is None:
        return
    place = data.draw(st.integers(0, len(file.data) - 1))
    flipped = bytearray(file.data)
    flipped[place] ^= 1 << data.draw(st.integers(0, 7))
    found = read_or_damage(bytes(flipped), file.name)
    assert isinstance(found, Damaged) or found == file.documents[0]


@pytest.mark.parametrize("kind", COMPRESS)
def test_garbage_after_the_end(kind: str) -> None:
    """bz2 and lzma of the standard library ignore what follows the first stream, even a second one that is broken."""
    with pytest.raises(Damaged, match=rf"a\.{kind}: is (damaged|truncated)"):
        read(COMPRESS[kind](b"content") + b"garbage", f"a.{kind}")


@pytest.mark.parametrize("kind", COMPRESS)
def test_empty_compressed_file(kind: str) -> None:
    with pytest.raises(Damaged, match=rf"a\.{kind}: is truncated"):
        read(b"", f"a.{kind}")


@pytest.mark.parametrize("kind", COMPRESS)
def test_damage_cuts_every_reading_at_the_same_byte(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resumed run asks in other pieces than the first one, and must still see the same bytes before the damage."""
    monkeypatch.setattr(compression, "CELL_BYTES", 100)
    monkeypatch.setattr(compression, "COMPRESSED_READ_BYTES", 64)
    data = bytearray(COMPRESS[kind](bytes(range(256)) * 3) + COMPRESS[kind](bytes(range(256)) * 9))
    data[-12] ^= 255

    def before_the_damage(sizes: list[int], folder: Path) -> bytes:
        path = folder / f"a.{kind}"
        path.write_bytes(data)
        out = b""
        with closing(decompress(Source(str(path), 0).open(), kind)) as file:
            for turn in range(10_000):
                try:
                    out += file.read(sizes[turn % len(sizes)])
                except Damaged:
                    return out
        raise AssertionError("the damage was not noticed")

    with tempfile.TemporaryDirectory() as folder:
        results = {before_the_damage(sizes, Path(folder)) for sizes in ([1000], [100], [99], [1], [7, 230])}
    assert len(results) == 1


def test_long_window() -> None:
    """`zstd --long=31` needs the largest window that the format has; the library refuses above 128 MiB unless told."""
    parameters = zstandard.ZstdCompressionParameters(window_log=28, write_content_size=False)
    frame = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    assert read(frame.compress(b"content") + frame.flush(), "a.zst") == b"content"


def tar_of(*members: bytes, dialect: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=dialect) as archive:
        for number, data in enumerate(members):
            header = tarfile.TarInfo(f"member-{number}")
            header.size = len(data)
            archive.addfile(header, io.BytesIO(data))
    return buffer.getvalue()


TAR = tar_of(b"first", b"", b"x" * 700)
TAR_END = 1024 + 512 + 512 + 1024 + 512
"""Three headers and their padded data, and one block of zeros."""


@given(st.integers(0, len(TAR)))
def test_truncated_tar(cut: int) -> None:
    """tarfile ends silently where a header is missing."""
    if cut >= TAR_END:
        assert read_documents(TAR[:cut], "a.tar") == [b"first", b"", b"x" * 700]
    else:
        with pytest.raises(Damaged, match=r"a\.tar: is truncated"):
            read_documents(TAR[:cut], "a.tar")


@pytest.mark.parametrize("place", [0, 150, 1024 + 124])
def test_flipped_byte_in_a_tar_header(place: int) -> None:
    """tarfile also ends silently where a later header is broken."""
    data = bytearray(TAR)
    data[place] ^= 1
    with pytest.raises(Damaged, match=r"a\.tar: is damaged: bad checksum"):
        read_documents(bytes(data), "a.tar")


def test_tar_with_more_behind_its_end() -> None:
    with pytest.raises(Damaged, match=r"a\.tar: holds more after its end mark; two archives joined"):
        read_documents(tar_of(b"first") + tar_of(b"second"), "a.tar")


def test_compressed_tar_is_read_to_its_end() -> None:
    """The end mark of an archive comes before the end of its compressed file, where the checksum is."""
    data = bytearray(gzip.compress(TAR))
    data[-8] ^= 1
    with pytest.raises(Damaged, match=r"a\.tgz: is damaged: .*incorrect data check"):
        read_documents(bytes(data), "a.tgz")


def test_pax_size_overrides_the_header() -> None:
    """Members above 8 GiB have their size only in a pax record."""
    record = b"13 size=1234\n"
    notes = tarfile.TarInfo("notes")
    notes.type, notes.size = tarfile.XHDTYPE, len(record)
    member = tarfile.TarInfo("member").tobuf(tarfile.USTAR_FORMAT)
    data = notes.tobuf(tarfile.USTAR_FORMAT) + record.ljust(512, b"\0") + member + b"y" * 1234 + bytes(302 + 1024)
    assert read_documents(data, "a.tar") == [b"y" * 1234]


@pytest.mark.parametrize("record", [b"garbage", b"9 size=1234\n", b"0 a=b\n", b"22 GNU.sparse.major=1\n"])
def test_broken_pax_record(record: bytes) -> None:
    notes = tarfile.TarInfo("notes")
    notes.type, notes.size = tarfile.XHDTYPE, len(record)
    data = notes.tobuf(tarfile.USTAR_FORMAT) + record.ljust(512, b"\0") + tar_of(b"first")
    with pytest.raises(Damaged, match=r"a\.tar: (is damaged: a broken pax header|holds a sparse file)"):
        read_documents(data, "a.tar")


JSON_LINES = {
    b"no json": r"a\.jsonl: line 2 is no JSON: ",
    b'{"text": "cut': r"a\.jsonl: line 2 is no JSON: ",
    b"\xff": r"a\.jsonl: line 2 is no JSON: ",
    b"[" * 10**6: r"a\.jsonl: line 2 is no JSON: ",
    b'{"content": "a", "id": 1}': r"a\.jsonl: line 2 has no field 'text', but 'content', 'id'; name it \(data\.text_f",
    b"[]": r"a\.jsonl: line 2 has no field 'text', but a list",
    b"{}": r"a\.jsonl: line 2 has no field 'text', but none",
    b'{"text": 5}': r"a\.jsonl: line 2 field 'text' is a int, not a string",
}


@pytest.mark.parametrize("line", JSON_LINES, ids=lambda line: line[:20].decode("latin-1"))
def test_bad_json_line(line: bytes) -> None:
    """It stops the reading, or is left out and counted while the lines around it are read."""
    data = b'{"text": "before"}\n' + line + b'\n{"text": "after"}\n'
    with pytest.raises(Damaged, match=JSON_LINES[line]):
        read_documents(data, "a.jsonl")
    skip_log = SkipLog("skip")
    assert read_documents(data, "a.jsonl", skip_log) == [b"before", b"after"]
    assert skip_log.count == 1


def test_endless_json_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line is held in memory, so there is a longest one."""
    monkeypatch.setattr(documents, "MAX_LINE_BYTES", 1 << 20)
    line = json.dumps({"text": "a" * 900_000}).encode()
    assert read_documents(line, "a.jsonl") == [b"a" * 900_000]
    with pytest.raises(Damaged, match=r"a\.jsonl: line 2 is longer than 1 MiB"):
        read_documents(line + b"\n" + line + line, "a.jsonl")
