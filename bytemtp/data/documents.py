"""Documents: a file holds one (plain), one a line (.jsonl) or those of its members (.tar, .zip).  Their split into
train and valid.

A reader goes forward only: `advance` opens the next document, `read` gives its bytes and none at its end.  A document's
number, and a byte in it, name the same place in any later reading of the file.

Try:  python -c "from bytemtp.data.documents import *; d = open_documents(Source('README.md', 0), SkipLog('error'));
      print(d.advance(), d.index, d.read(60))"
"""

import io
import json
from abc import abstractmethod
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from bytemtp.common.runtime import log
from bytemtp.common.settings import DataFormat
from bytemtp.data.archives import Member, Members, TarMembers, ZipMembers
from bytemtp.data.compression import LATER_NAMES, Format, decompress, format_of
from bytemtp.data.first_bytes import (
    HEAD_BYTES,
    JSON_HEAD_BYTES,
    PeekableFile,
    sniff_compression,
    sniff_container,
    sniff_json_lines,
    unopened_kind,
)
from bytemtp.data.leave_out import LeaveOut
from bytemtp.data.long_lines import LongLine
from bytemtp.data.sources import READ_BYTES, STANDARD_INPUT, ByteFile, Damaged, SkipLog, Source

SECTION_BYTES = 1 << 18
"""Longer documents are dealt to train and valid in sections of this size, shorter ones whole."""
MAX_LINE_BYTES = 1 << 25
"""Longest .jsonl line that is read, its other fields left aside; a line has to be held in memory whole."""

Keep = Callable[[int, int], bool]
"""Whether (document, section) of a file belongs to the split that is read."""


@dataclass(frozen=True)
class Reading:
    """How files become documents: see `DataConfig`, whose settings these are."""

    text_field: str = "text"
    decompress: bool = True
    format: DataFormat = "auto"
    exclude: tuple[str, ...] = ()

    @property
    def leave_out(self) -> LeaveOut:
        """What of folders and archives is no corpus."""
        return LeaveOut(self.exclude, defaults=self.format != "earlier")

    def format_of(self, name: str) -> Format:
        """By the suffixes of a name, or what is set for all files."""
        found = format_of(name, earlier=self.format == "earlier")
        if self.format in ("auto", "earlier"):
            return found
        return Format(found.compression, None if self.format == "raw" else self.format)

    def is_later(self, name: str) -> bool:
        """Whether a file may be read in another way than by older versions."""
        if self.format == "earlier" or not self.decompress:
            return False
        return self.format != "auto" or LATER_NAMES.search(name) is not None


AS_NAMED = Reading()
"""Every file as its name says."""


class Documents(ByteFile):
    """The documents of one file, in order.  `read` and `skip` end where the open one does."""

    def __init__(self, file: ByteFile) -> None:
        self.name = file.name
        self.index = -1
        """number of the open document in its file; -1 before the first"""
        self._file = file

    @abstractmethod
    def advance(self, at_least: int = 0) -> bool:
        """Open the next document whose number is at least that; False after the last one."""

    def read(self, size: int) -> bytes:
        return self._file.read(size)

    def close(self) -> None:
        self._file.close()


def open_documents(source: Source, skip_log: SkipLog, reading: Reading = AS_NAMED) -> Documents:
    """Open a file by its suffix, standard input by its first bytes.  Damaged if it cannot be opened."""
    raw = source.open()
    if not reading.decompress:
        return PlainDocument(raw)
    compression, container = reading.format_of(source.name)
    opener = _Opener(source.root, skip_log, reading)
    if container == "zip" and compression is None:
        return Archive(ZipMembers(raw), opener)
    if source.name != STANDARD_INPUT:
        return opener.documents(decompress(raw, compression), container)
    peekable = PeekableFile(raw)
    file = PeekableFile(decompress(peekable, sniff_compression(peekable.peek(HEAD_BYTES))))
    if reading.format == "auto":
        container = _sniff(file, reading.text_field)
    if container == "zip":
        raw.seekable()
    return opener.documents(file, container)


def sniff_suffix(path: Path, text_field: str) -> str:
    """The suffix that would tell `open_documents` the format of a file, from its first bytes: "", ".tar.zst" ..."""
    with closing(PeekableFile(Source(str(path), 0).open())) as file:
        compression = sniff_compression(file.peek(HEAD_BYTES))
        container = _sniff(PeekableFile(decompress(file, compression)), text_field)
    return "".join(f".{kind}" for kind in (container, compression) if kind)


def _sniff(file: PeekableFile, text_field: str) -> str | None:
    """The container that the first bytes of a file without a name say."""
    head = file.peek(JSON_HEAD_BYTES)
    kinds = {"yes": "jsonl", "without the field": "json", None: None}
    return sniff_container(head) or kinds[sniff_json_lines(head, text_field)]


@dataclass(frozen=True)
class _Opener:
    """Opens decompressed files, and files inside archives."""

    root: str
    """what the user named, to tell things once for all files of it"""
    skip_log: SkipLog
    reading: Reading
    inside: bool = False
    """whether the files are members of an archive, which are not opened if they are archives themselves"""

    def documents(self, file: ByteFile, container: str | None) -> Documents:
        if container == "tar" and not self.inside:
            return Archive(TarMembers(file), self)
        if container == "jsonl":
            return JsonLines(file, self.reading.text_field, self.skip_log)
        if container == self.reading.format == "zip" and not self.inside:
            file.close()
            raise Damaged(file.name, "is a .zip in a compressed file; decompress it first")
        if self.reading.format != "auto" and not self.inside:
            return PlainDocument(file)
        peekable = file if isinstance(file, PeekableFile) else PeekableFile(file)
        if container == "json" and self._is_json_lines(peekable):
            return JsonLines(peekable, self.reading.text_field, self.skip_log)
        if kind := unopened_kind(peekable.peek(HEAD_BYTES)):
            self.tell(
                kind,
                f"{file.name} is {kind} and is not opened: it is read as it lies, like others of its kind; "
                "give it its ending, unpack it, leave it out with data.exclude, or say data.format raw",
            )
        return PlainDocument(peekable)

    def member(self, file: Member, name: str) -> Documents:
        """The documents of an archive's member."""
        if self.reading.format == "earlier":
            return PlainDocument(file)
        compression, container = format_of(name)
        return self.documents(decompress(file, compression), container)

    def tell(self, what: str, message: str) -> None:
        if (self.root, what) not in _told:
            _told.add((self.root, what))
            log(f"warning: {message}")

    def _is_json_lines(self, file: PeekableFile) -> bool:
        field = self.reading.text_field
        answer = sniff_json_lines(file.peek(JSON_HEAD_BYTES), field)
        if answer == "without the field":
            self.tell(answer, f"{file.name} has JSON on each line, but no field {field!r}: it is read as one document")
        return answer == "yes"


_told: set[tuple[str, str]] = set()
"""Warnings given so far, by the PATH that they are about: a run opens its files many times over."""


class PlainDocument(Documents):
    """A file that is one document."""

    def advance(self, at_least: int = 0) -> bool:
        is_first, self.index = self.index < 0, 0
        return is_first and at_least <= 0

    def skip(self, count: int) -> int:
        return self._file.skip(count)


class Archive(Documents):
    """The documents of all files in an archive.  Each is opened by its name; its documents are numbered on.

    A member that is damaged inside a sound archive is left out by itself, from the damage on.
    """

    def __init__(self, members: Members, opener: _Opener) -> None:
        super().__init__(members)
        self._members = members
        self._opener = replace(opener, inside=True)
        self._leave_out = opener.reading.leave_out
        self._open: Documents | None = None
        self._first = 0

    def advance(self, at_least: int = 0) -> bool:
        while self._open or self._next_member():
            if self._advance_inside(at_least):
                return True
            self._first += self._inner.index + 1
            self._open = None
        return False

    def read(self, size: int) -> bytes:
        with self._reporting():
            return self._inner.read(size)
        return b""

    def skip(self, count: int) -> int:
        with self._reporting():
            return self._inner.skip(count)
        return 0

    @property
    def _inner(self) -> Documents:
        assert self._open is not None, "advance comes first"
        return self._open

    def _next_member(self) -> bool:
        """Open the next member that is wanted; the others keep their numbers."""
        while self._members.advance():
            name = self._members.member
            if not self._is_left_out(name.removeprefix("./")):
                self._open = self._opener.member(Member(self._members), name)
                return True
            self._first += 1
        return False

    def _advance_inside(self, at_least: int) -> bool:
        with self._reporting():
            is_open = self._inner.advance(at_least - self._first)
            self.index = self._first + self._inner.index
            return is_open
        return False

    def _is_left_out(self, member: str) -> bool:
        why = self._leave_out.why_below(member, member)
        if why:
            self._opener.skip_log.left_out[why] += 1
            self._opener.tell(why, f"{self.name}: members that match {why} are left out")
        return why is not None

    @contextmanager
    def _reporting(self) -> Iterator[None]:
        """Report damage of the open member; that of the archive goes on to the caller."""
        try:
            yield
        except Damaged as damage:
            if damage.name == self.name:
                raise
            self._opener.skip_log.report(damage)


class JsonLines(Documents):
    """One document a line: the string in `text_field` of the object on it.  The line number is the document's number.

    Blank lines are passed over.  A line that cannot be used is Damaged by itself: the next ones are still read.
    """

    def __init__(self, file: ByteFile, text_field: str, skip_log: SkipLog) -> None:
        super().__init__(file)
        self._text_field = text_field
        self._skip_log = skip_log
        self._lines = self._read_lines()
        self._text = io.BytesIO()

    def advance(self, at_least: int = 0) -> bool:
        for line in self._lines:
            self.index += 1
            if line and self.index == 0:
                line = line.removeprefix(BOM_UTF8)
            if self.index >= at_least and (line is None or (line and not line.isspace())):
                with self._skip_log.reporting(self.name):
                    self._text = io.BytesIO(self._parse(line))
                    return True
        return False

    def read(self, size: int) -> bytes:
        return self._text.read(size)

    def _read_lines(self) -> Iterator[bytes | None]:
        """Each line; None for one that is too long.  Of long ones only what is needed."""
        pieces, long = io.BytesIO(), None  # of the line that is open: its bytes, or what is kept of a long one
        while data := self._file.read(READ_BYTES):
            first, *others = data.split(b"\n")
            (long.add if long else pieces.write)(first)
            if others:
                yield long.line() if long else pieces.getvalue()
                yield from others[:-1]
                pieces, long = io.BytesIO(), None
                pieces.write(others[-1])
            if not long and pieces.tell() > MAX_LINE_BYTES:
                long = LongLine(self._text_field, MAX_LINE_BYTES)
                long.add(pieces.getvalue())
                pieces = io.BytesIO()
        yield long.line() if long else pieces.getvalue()

    def _parse(self, line: bytes | None) -> bytes:
        if line is None:
            raise self._damaged(f"is longer than {MAX_LINE_BYTES >> 20} MiB, its other fields left aside")
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise self._damaged(f"is no JSON: {error}") from error
        if not isinstance(record, dict) or self._text_field not in record:
            fields = ", ".join(map(repr, record)) if isinstance(record, dict) else f"a {type(record).__name__}"
            raise self._damaged(
                f"has no field {self._text_field!r}, but {fields[:200] or 'none'}; name it (data.text_field)"
            )
        text = record[self._text_field]
        if not isinstance(text, str):
            raise self._damaged(f"field {self._text_field!r} is a {type(text).__name__}, not a string")
        # JSON can spell half of a surrogate pair; its bytes are kept rather than lost.
        return text.encode("utf-8", "surrogatepass")

    def _damaged(self, reason: str) -> Damaged:
        return Damaged(self.name, f"line {self.index + 1} {reason}")


class SplitReader:
    """The pieces of a file's documents that belong to one split.

    A piece is a longest run of kept sections of one document: the whole document if all are kept.  A place (document,
    section, byte) is the piece that starts at that section, and a byte of it.
    """

    def __init__(self, documents: Documents, keep: Keep) -> None:
        self._documents = documents
        self._keep = keep
        self._section = self._byte = 0

    def seek(self, document: int, section: int, byte: int) -> bool:
        """Start at a place instead of the first one; False if the file no longer holds it."""
        self._section, self._byte = section, byte
        distance = section * SECTION_BYTES + byte
        is_open = self._documents.advance(document) and self._documents.index == document
        return is_open and self._documents.skip(distance) == distance

    def read(self) -> Iterator[tuple[int, int, int, bytes]]:
        """Each place with the bytes that come next: none at the end of a piece, where an end-of-text id belongs."""
        if self._documents.index >= 0:
            yield from self._read_document(self._section, self._byte)
        while self._documents.advance():
            yield from self._read_document(0, 0)

    def _read_document(self, section: int, byte: int) -> Iterator[tuple[int, int, int, bytes]]:
        """The pieces of the open document, from a byte of one on.  Damaged after the bytes before the damage."""
        document, end = self._documents.index, section * SECTION_BYTES + byte
        is_open = byte > 0 or self._keep(document, section)
        try:
            for offset, octets in self._kept_bytes(end):
                if offset > end:
                    if is_open:
                        yield document, section, byte, b""
                    section, byte = offset // SECTION_BYTES, 0
                is_open = True
                yield document, section, byte, octets
                byte += len(octets)
                end = offset + len(octets)
        except Damaged:
            if is_open:
                yield document, section, byte, b""
            raise
        if is_open:
            yield document, section, byte, b""

    def _kept_bytes(self, offset: int) -> Iterator[tuple[int, bytes]]:
        """Bytes of kept sections of the open document, each with its offset.  A section without a byte is none."""
        while True:
            section, inside = divmod(offset, SECTION_BYTES)
            if self._keep(self._documents.index, section):
                octets = self._documents.read(SECTION_BYTES - inside)
                if not octets:
                    return
                yield offset, octets
                offset += len(octets)
            else:
                offset += SECTION_BYTES
                if self._documents.skip(SECTION_BYTES) < SECTION_BYTES:
                    return
