"""Documents: a file holds one (plain), one a member (.tar) or one a line (.jsonl).  Their split into train and valid.

A reader goes forward only.  `advance` opens the next document, `readinto` gives its bytes and 0 at its end, so that the
bytes of a plain document land in their final place without a copy.  A document's number, and a byte in it, name the
same place in any later reading of the file.
"""

import json
import tarfile
from collections.abc import Callable, Iterator
from typing import Protocol, runtime_checkable

from bytemtp.data.compression import CELL_BYTES, ByteFile, Peeked, decompress, format_of, sniff_compression
from bytemtp.data.sources import STANDARD_INPUT, Damaged, Damages, Source

SECTION_BYTES = 1 << 18
"""Longer documents are dealt to train and valid in sections of this size, shorter ones whole."""
MAX_LINE_BYTES = 1 << 25
"""Longest .jsonl line that is read; a line has to be held in memory whole."""
MAX_PAX_BYTES = 1 << 20

_NOTES = (tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
"""Tar records about the members that follow."""
_DATALESS = (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE)
"""Tar members without data, whatever size they give."""

Keep = Callable[[int, int], bool]
"""Whether (document, section) of a file belongs to the split that is read."""


@runtime_checkable
class Documents(Protocol):
    """The documents of one file, in order."""

    index: int
    """number of the open document in its file; -1 before the first"""

    def advance(self, at_least: int = 0) -> bool:
        """Open the next document whose number is at least that; False after the last one."""

    def readinto(self, view: memoryview) -> int:
        """Fill the front of `view` from the open document; 0 at its end."""

    def skip(self, count: int) -> int:
        """Pass over `count` bytes of the open document, or as many as there are; returns how many."""

    def close(self) -> None: ...


def open_documents(source: Source, damages: Damages, text_field: str, decompressed: bool) -> Documents:
    """Open a file by its suffix, standard input by its first bytes.  Damaged if it cannot be opened.

    decompressed: False reads every file as one document, as it lies.
    """
    raw = source.open()
    if not decompressed:
        return PlainDocument(raw)
    if source.name == STANDARD_INPUT:
        return _open_by_first_bytes(Peeked(raw))
    compression, container = format_of(source.name)
    file = decompress(raw, compression)
    if container == "tar":
        return TarDocuments(file)
    if container == "jsonl":
        return JsonLines(file, text_field, damages)
    return PlainDocument(file)


def _open_by_first_bytes(raw: Peeked) -> Documents:
    file = Peeked(decompress(raw, sniff_compression(raw.peek(6))))
    return TarDocuments(file) if begins_as_tar(file) else PlainDocument(file)


def begins_as_tar(file: Peeked) -> bool:
    """Whether a file without a name is an archive, by the magic of its first header.  Damaged if it cannot be read."""
    return file.peek(tarfile.BLOCKSIZE)[257:262] == b"ustar"


class PlainDocument:
    """A file that is one document."""

    def __init__(self, file: ByteFile) -> None:
        self.index = -1
        self._file = file

    def advance(self, at_least: int = 0) -> bool:
        self.index += 1
        return self.index == 0 == at_least

    def readinto(self, view: memoryview) -> int:
        return self._file.readinto(view)

    def skip(self, count: int) -> int:
        return self._file.skip(count)

    def close(self) -> None:
        self._file.close()


class TarDocuments:
    """The regular files in an archive; directories, links and devices hold no bytes.

    tarfile itself ends silently at a broken or missing header; here only the archive's own end mark ends it.
    """

    def __init__(self, file: ByteFile) -> None:
        self.index = -1
        self._file = file
        self._member = ""
        self._left = 0
        self._padding = 0

    def advance(self, at_least: int = 0) -> bool:
        pax_size: int | None = None
        while True:
            self._pass_over(self._left + self._padding)
            header = self._header()
            if header is None:
                self._expect_end()
                return False
            if header.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
                pax_size = self._pax_size(header.size)
                continue
            self._enter(header, pax_size)
            pax_size = pax_size if header.type in _NOTES else None
            if header.isreg():
                self.index += 1
                if self.index >= at_least:
                    return True

    def readinto(self, view: memoryview) -> int:
        if self._left == 0:
            return 0
        count = self._file.readinto(view[: self._left])
        if count == 0:
            raise Damaged(self._file.name, f"is truncated: it ends inside its member {self._member!r}")
        self._left -= count
        return count

    def skip(self, count: int) -> int:
        count = min(count, self._left)
        self._pass_over(count)
        self._left -= count
        return count

    def close(self) -> None:
        self._file.close()

    def _header(self) -> tarfile.TarInfo | None:
        """The next header; None at the end mark, a block of zeros."""
        try:
            header = tarfile.TarInfo.frombuf(self._take(tarfile.BLOCKSIZE), "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            if isinstance(error, tarfile.EOFHeaderError):  # type: ignore[attr-defined]
                return None
            raise self._damaged(f"is damaged: {error}") from error
        if header.type == tarfile.GNUTYPE_SPARSE:
            raise self._damaged(f"holds the sparse file {header.name!r}; pack it again without --sparse")
        if header.size < 0:
            raise self._damaged(f"is damaged: member {header.name!r} has a negative size")
        return header

    def _enter(self, header: tarfile.TarInfo, pax_size: int | None) -> None:
        """Stand before the data of a member."""
        self._member = header.name
        self._left = header.size if header.type in _NOTES or pax_size is None else pax_size
        if header.type in _DATALESS:
            self._left = 0
        self._padding = -self._left % tarfile.BLOCKSIZE

    def _pax_size(self, size: int) -> int | None:
        """Read a pax record (POSIX.1-2001); only the size that it may give to the next member is of use here."""
        if size > MAX_PAX_BYTES:
            raise self._damaged(f"is damaged: a pax header of {size} bytes")
        records = self._take(size)
        self._left, self._padding = 0, -size % tarfile.BLOCKSIZE
        found: int | None = None
        while records:
            length = records.partition(b" ")[0]
            if not length.isdigit() or int(length) <= len(length):
                raise self._damaged("is damaged: a broken pax header")
            key, _, value = records[len(length) + 1 : int(length)].partition(b"=")
            if key.startswith(b"GNU.sparse."):
                raise self._damaged("holds a sparse file; pack it again without --sparse")
            if key == b"size" and value.strip().isdigit():
                found = int(value)
            records = records[int(length) :]
        return found

    def _take(self, count: int) -> bytes:
        view = memoryview(bytearray(count))
        got = 0
        while got < count and (more := self._file.readinto(view[got:])):
            got += more
        if got < count:
            raise self._damaged("is truncated: it has no end mark")
        return bytes(view)

    def _pass_over(self, count: int) -> None:
        if self._file.skip(count) < count:
            raise self._damaged("is truncated")

    def _expect_end(self) -> None:
        """Read on to the end of the file, for only there a compressed file shows that it is whole."""
        scratch = memoryview(bytearray(CELL_BYTES))
        while count := self._file.readinto(scratch):
            if bytes(scratch[:count]).strip(b"\0"):
                raise self._damaged("holds more after its end mark; two archives joined must be packed as one")

    def _damaged(self, reason: str) -> Damaged:
        return Damaged(self._file.name, f"{reason}, after its member {self._member!r}" if self._member else reason)


class JsonLines:
    """One document a line: the string in `text_field` of the object on it.  The line number is the document's number.

    Blank lines are passed over.  A line that cannot be used is Damaged by itself: the next ones are still read.
    """

    def __init__(self, file: ByteFile, text_field: str, damages: Damages) -> None:
        self.index = -1
        self._file = file
        self._text_field = text_field
        self._damages = damages
        self._lines = self._read_lines()
        self._text = memoryview(b"")

    def advance(self, at_least: int = 0) -> bool:
        for line in self._lines:
            self.index += 1
            if self.index >= at_least and line and not line.isspace():
                try:
                    self._text = memoryview(self._parse(line))
                except Damaged as damage:
                    self._damages.report(damage)
                else:
                    return True
        return False

    def readinto(self, view: memoryview) -> int:
        count = min(len(view), len(self._text))
        view[:count] = self._text[:count]
        self._text = self._text[count:]
        return count

    def skip(self, count: int) -> int:
        count = min(count, len(self._text))
        self._text = self._text[count:]
        return count

    def close(self) -> None:
        self._file.close()

    def _read_lines(self) -> Iterator[bytes]:
        chunk = memoryview(bytearray(CELL_BYTES))
        parts: list[bytes] = []
        while count := self._file.readinto(chunk):
            *lines, rest = bytes(chunk[:count]).split(b"\n")
            if lines:
                yield b"".join([*parts, lines[0]])
                yield from lines[1:]
                parts.clear()
            parts.append(rest)
            if len(parts) > MAX_LINE_BYTES // CELL_BYTES:
                self.index += 1
                raise self._damaged(f"is longer than {MAX_LINE_BYTES >> 20} MiB")
        yield b"".join(parts)

    def _parse(self, line: bytes) -> bytes:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise self._damaged(f"is no JSON: {error}") from error
        if not isinstance(record, dict) or self._text_field not in record:
            fields = ", ".join(map(repr, record)) if isinstance(record, dict) else f"a {type(record).__name__}"
            raise self._damaged(f"has no field {self._text_field!r}, but {fields[:200] or 'none'}; set data.text_field")
        text = record[self._text_field]
        if not isinstance(text, str):
            raise self._damaged(f"field {self._text_field!r} is a {type(text).__name__}, not a string")
        # JSON can spell half of a surrogate pair; its bytes are kept rather than lost.
        return text.encode("utf-8", "surrogatepass")

    def _damaged(self, reason: str) -> Damaged:
        return Damaged(self._file.name, f"line {self.index + 1} {reason}")


class Pieces:
    """The parts of a file's documents that belong to one split, each to be followed by an end-of-text id.

    With no `keep` the pieces are the documents.  Otherwise a piece is a longest run of kept sections of one document.
    A position (document, section, byte) is the piece that starts at that section, and a byte of it.
    """

    def __init__(self, documents: Documents, keep: Keep | None) -> None:
        self._documents = documents
        self._keep = keep
        self._section = 0
        self._byte = 0
        self._cut = False
        self._peeked = b""

    @property
    def position(self) -> tuple[int, int, int]:
        """Document, section and byte that come next."""
        return self._documents.index, self._section, self._byte

    def advance(self) -> bool:
        """Open the next piece; False after the last one."""
        if self._cut and self._to_kept_section(self._section + self._byte // SECTION_BYTES):
            return True
        while self._documents.advance():
            self._open(0)
            if self._keep is None or self._keep(self._documents.index, 0) or self._to_kept_section(0):
                return True
        return False

    def seek(self, document: int, section: int, byte: int) -> bool:
        """Open the piece at a position instead of the first one; False if the file no longer holds that position."""
        if not self._documents.advance(document) or self._documents.index != document:
            return False
        self._open(section)
        self._byte = byte
        distance = section * SECTION_BYTES + byte
        return self._documents.skip(distance) == distance

    def readinto(self, view: memoryview) -> int:
        """Fill the front of `view` from the open piece; 0 at its end."""
        if self._keep is not None:
            if self._peeked:
                view[:1] = self._peeked
                self._peeked = b""
                self._byte = 1
                return 1
            view = view[: self._room()]
        count = self._documents.readinto(view) if view else 0
        self._byte += count
        return count

    def close(self) -> None:
        self._documents.close()

    def _open(self, section: int) -> None:
        self._section, self._byte, self._cut = section, 0, False

    def _room(self) -> int:
        """Bytes until the piece may have to end; 0 if it ends here because the next section is not kept."""
        sections, inside = divmod(self._byte, SECTION_BYTES)
        if self._byte and not inside and not self._kept(self._section + sections):
            self._cut = True
            return 0
        return SECTION_BYTES - inside

    def _to_kept_section(self, section: int) -> bool:
        """From the start of a section of the other split to the next kept one; False if the document ends before."""
        first = memoryview(bytearray(1))
        while self._documents.skip(SECTION_BYTES) == SECTION_BYTES:
            section += 1
            if self._kept(section):
                # A section exists only if it holds a byte: a document of exactly one section has no second one.
                self._peeked = bytes(first[: self._documents.readinto(first)])
                self._open(section)
                return bool(self._peeked)
        return False

    def _kept(self, section: int) -> bool:
        return self._keep is None or self._keep(self._documents.index, section)
