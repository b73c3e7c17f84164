"""Hypothesis strategies for whatever reads bytes: documents, compressed files of every format, corpora on disk.

Property-test your own pipeline with them:

    @given(corpora())
    def test_nothing_is_lost(corpus):
        with tempfile.TemporaryDirectory() as folder:
            assert my_documents(corpus.write(Path(folder))) == corpus.documents

Needs the `testing` extra (hypothesis).
"""

import bz2
import gzip
import io
import json
import lzma
import tarfile
from collections.abc import Callable
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any, NamedTuple

import zstandard
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

MAX_DOCUMENT_BYTES = 300

Draw = Callable[[SearchStrategy[Any]], Any]


class CorpusFile(NamedTuple):
    """One file and what it stands for."""

    name: str
    """relative, with the suffixes that say its format"""
    data: bytes
    """as it lies on disk"""
    documents: tuple[bytes, ...]
    """what a reader must find in it, in order"""


class Corpus(NamedTuple):
    """Files with different names, in the order of their names."""

    files: tuple[CorpusFile, ...]

    @property
    def documents(self) -> list[bytes]:
        """All documents, in the order of a reader that sorts each folder by name."""
        return [document for file in self.files for document in file.documents]

    def write(self, folder: Path) -> Path:
        """Put the files into `folder`; returns it."""
        for file in self.files:
            path = folder / file.name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(file.data)
        return folder


def byte_documents(max_size: int = MAX_DOCUMENT_BYTES) -> SearchStrategy[bytes]:
    """Documents of 0 to `max_size` bytes: any bytes, text, and runs that compress well."""
    text = st.text(max_size=max_size // 4).map(lambda string: string.encode("utf-8"))
    unit = st.binary(min_size=1, max_size=3)
    runs = st.tuples(unit, st.integers(1, max(1, max_size // 3))).map(lambda pair: pair[0] * pair[1])
    return st.one_of(st.binary(max_size=max_size), text, runs).map(lambda document: document[:max_size])


@st.composite
def compressed_files(draw: Draw, content: SearchStrategy[bytes] | None = None) -> CorpusFile:
    """One document in any compression, or in none: one or more frames, streams or members, with every header option."""
    document = draw(byte_documents() if content is None else content)
    suffix, data = draw(_compressed(document))
    return CorpusFile("document" + suffix, data, (document,))


@st.composite
def corpora(draw: Draw, max_files: int = 4) -> Corpus:
    """1 to `max_files` files in folders: plain, .tar or .jsonl, each in any compression.  At least one byte in all."""
    stems = draw(st.lists(st.sampled_from(_STEMS), min_size=1, max_size=max_files, unique=True))
    files = tuple(draw(_corpus_file(stem)) for stem in sorted(stems))
    if any(any(file.documents) for file in files):
        return Corpus(files)
    return Corpus((*files, CorpusFile("\u4e2d.txt", b"z", (b"z",))))


_STEMS = ("a", "b", "c-d/a", "c-d/b", "c-d/e/f", "g [1]*?", "\u00e9\u4e2d")
"""File names without suffix, whose sorted order is that of a sorted walk."""


@st.composite
def _corpus_file(draw: Draw, stem: str) -> CorpusFile:
    container = draw(st.sampled_from(["", ".tar", ".jsonl"]))
    if container == "":
        documents = [draw(byte_documents())]
        data = documents[0]
    elif container == ".tar":
        documents = draw(st.lists(byte_documents(), max_size=4))
        data = draw(_archive(*documents))
    else:
        documents = [text.encode("utf-8", "surrogatepass") for text in draw(st.lists(_json_texts(), max_size=4))]
        data = draw(_lines(*documents))
    suffix, data = draw(_compressed(data))
    name = stem + container + suffix
    return CorpusFile(name if container or suffix else f"{stem}.txt", data, tuple(documents))


def _json_texts() -> SearchStrategy[str]:
    """Any string that JSON can spell, halves of surrogate pairs included."""
    return st.text(st.characters(exclude_categories=()), max_size=100)


@st.composite
def _lines(draw: Draw, *documents: bytes) -> bytes:
    """Lines of JSON with other fields before and after, blank lines, and perhaps no newline at the end."""
    newline = draw(st.sampled_from([b"\n", b"\r\n"]))
    data = b""
    for document in documents:
        text = document.decode("utf-8", "surrogatepass")
        record: dict[str, Any] = {**draw(_OTHER_FIELDS), "text": text, **draw(_OTHER_FIELDS)}
        # UTF-8 cannot spell half of a surrogate pair, an escape can.
        ascii_only = draw(st.booleans()) or any("\ud800" <= letter <= "\udfff" for letter in text)
        line = json.dumps(record, ensure_ascii=ascii_only).encode()
        data += line + newline + draw(st.sampled_from([b"", newline, b" " + newline]))
    return data.removesuffix(b"\n").removesuffix(b"\r") if draw(st.booleans()) else data


_OTHER_FIELDS = st.dictionaries(st.sampled_from(["id", "meta"]), st.none() | st.integers() | st.just({"text": "no"}))


@st.composite
def _archive(draw: Draw, *documents: bytes) -> bytes:
    """A tar of each dialect; long names; folders and links between the files."""
    buffer = io.BytesIO()
    dialect = draw(st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
    with tarfile.open(fileobj=buffer, mode="w", format=dialect) as archive:
        for number, document in enumerate(documents):
            if draw(st.booleans()):
                archive.addfile(_without_data(f"extra-{number}", draw(st.sampled_from([tarfile.DIRTYPE, b"1", b"2"]))))
            long = dialect != tarfile.USTAR_FORMAT and draw(st.booleans())
            member = tarfile.TarInfo(f"{number}-" + ("long/" * 40 if long else "") + "member")
            member.size = len(document)
            archive.addfile(member, io.BytesIO(document))
    return buffer.getvalue()


def _without_data(name: str, kind: bytes) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type = kind
    member.linkname = "elsewhere" if kind != tarfile.DIRTYPE else ""
    return member


@st.composite
def _compressed(draw: Draw, data: bytes) -> tuple[str, bytes]:
    """A suffix, and the data as a file with that suffix holds it."""
    suffix = draw(st.sampled_from(["", ".zst", ".gz", ".xz", ".bz2"]))
    if suffix == "":
        return suffix, data
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=2)))
    parts = [data[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    return suffix, reduce(add, [draw(_COMPRESSORS[suffix](part)) for part in parts])


@st.composite
def _zstd_frame(draw: Draw, part: bytes) -> bytes:
    parameters = zstandard.ZstdCompressionParameters(
        compression_level=draw(st.sampled_from([-5, 1, 3, 12])),
        window_log=draw(st.sampled_from([10, 20, 27])),
        write_checksum=True,
        write_content_size=draw(st.booleans()),
    )
    compressor = zstandard.ZstdCompressor(compression_params=parameters)
    frame = compressor.compress(part)
    if draw(st.booleans()):  # many blocks, the last one empty
        stream = compressor.compressobj()
        halves = [part[: len(part) // 2], part[len(part) // 2 :]]
        frame = b"".join(stream.compress(half) + stream.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK) for half in halves)
        frame += stream.flush()
    return draw(st.sampled_from([frame, _skippable(draw(st.binary(max_size=9))) + frame]))


def _skippable(user_data: bytes) -> bytes:
    return b"\x5a\x2a\x4d\x18" + len(user_data).to_bytes(4, "little") + user_data


@st.composite
def _gzip_member(draw: Draw, part: bytes) -> bytes:
    buffer = io.BytesIO()
    name = draw(st.sampled_from(["", "name.txt"]))
    with gzip.GzipFile(name, "wb", draw(st.sampled_from([0, 1, 9])), buffer, mtime=0) as file:
        file.write(part)
    return buffer.getvalue() + bytes(draw(st.sampled_from([0, 512])))


@st.composite
def _xz_stream(draw: Draw, part: bytes) -> bytes:
    check = draw(st.sampled_from([lzma.CHECK_CRC32, lzma.CHECK_CRC64, lzma.CHECK_SHA256]))
    return lzma.compress(part, check=check, preset=0) + bytes(draw(st.sampled_from([0, 4])))


_COMPRESSORS = {
    ".zst": _zstd_frame,
    ".gz": _gzip_member,
    ".xz": _xz_stream,
    ".bz2": lambda part: st.integers(1, 9).map(lambda level: bz2.compress(part, level)),
}
