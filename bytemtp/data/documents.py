"""Documents: a file holds one (plain), one a member (.tar) or one a line (.jsonl).  Their split into train and valid.

A reader goes forward only: `advance` opens the next document, `read` gives its bytes and none at its end.  A document's
number, and a byte in it, name the same place in any later reading of the file.

Try:  python -c "from bytemtp.data.documents import *; d = open_documents(Source('README.md', 0), SkipLog('error'));
      print(d.advance(), d.index, d.read(60))"
"""

import io
import json
import tarfile
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

from bytemtp.data.compression import PeekableFile, decompress, format_of, sniff_compression
from bytemtp.data.sources import READ_BYTES, STANDARD_INPUT, ByteFile, Damaged, SkipLog, Source

SECTION_BYTES = 1 << 18
"""Longer documents are dealt to train and valid in sections of this size, shorter ones whole."""
MAX_LINE_BYTES = 1 << 25
"""Longest .jsonl line that is read; a line has to be held in memory whole."""
MAX_PAX_BYTES = 1 << 20

_PAX = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
"""Tar records that may give the size of the next member."""
_NOTES = (tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
"""Other tar records about the members that follow."""
_DATALESS = (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE)
"""Tar members without data, whatever size they give."""

Keep = Callable[[int, int], bool]
"""Whether (document, section) of a file belongs to the split that is read."""


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


def open_documents(source: Source, skip_log: SkipLog, text_field: str = "text", decompressed: bool = True) -> Documents:
    """Open a file by its suffix, standard input by its first bytes.  Damaged if it cannot be opened.

    decompressed: False reads every file as one document, as it lies.
    """
    raw = source.open()
    if not decompressed:
        return PlainDocument(raw)
    if source.name == STANDARD_INPUT:
        peekable = PeekableFile(raw)
        file = PeekableFile(decompress(peekable, sniff_compression(peekable.peek(6))))
        return TarDocuments(file) if _begins_as_tar(file) else PlainDocument(file)
    compression, container = format_of(source.name)
    opened = decompress(raw, compression)
    if container == "tar":
        return TarDocuments(opened)
    if container == "jsonl":
        return JsonLines(opened, text_field, skip_log)
    return PlainDocument(opened)


def sniff_suffix(path: Path) -> str:
    """The suffix that would tell `open_documents` the format of a file, from its first bytes: "", ".tar.zst" ..."""
    with closing(PeekableFile(Source(str(path), 0).open())) as file:
        compression = sniff_compression(file.peek(6))
        try:
            is_tar = _begins_as_tar(PeekableFile(decompress(file, compression)))
        except Damaged:
            is_tar = False  # the stream will meet the same damage, and follow data.on_corrupt
    return ".tar" * is_tar + (f".{compression}" if compression else "")


def _begins_as_tar(file: PeekableFile) -> bool:
    """Whether a file without a name is an archive, by the magic of its first header.  Damaged if it cannot be read."""
    return file.peek(tarfile.BLOCKSIZE)[257:262] == b"ustar"


class PlainDocument(Documents):
    """A file that is one document."""

    def advance(self, at_least: int = 0) -> bool:
        self.index += 1
        return self.index == 0 == at_least

    def skip(self, count: int) -> int:
        return self._file.skip(count)


class TarDocuments(Documents):
    """The regular files in an archive; directories, links and devices hold no bytes.

    tarfile itself ends silently at a broken or missing header; here only the archive's own end mark ends it.
    """

    def __init__(self, file: ByteFile) -> None:
        super().__init__(file)
        self._member = ""
        self._left = 0
        self._padding = 0

    def advance(self, at_least: int = 0) -> bool:
        pax_size: int | None = None
        while header := self._next_header():
            if header.type in _PAX:
                pax_size = self._pax_size(header.size)
                continue
            self._member = header.name
            size = header.size if header.type in _NOTES or pax_size is None else pax_size
            self._expect(0 if header.type in _DATALESS else size)
            pax_size = pax_size if header.type in _NOTES else None
            if header.isreg():
                self.index += 1
                if self.index >= at_least:
                    return True
        self._expect_end()
        return False

    def read(self, size: int) -> bytes:
        size = min(size, self._left)
        data = self._file.read(size) if size else b""
        if size and not data:
            raise Damaged(self.name, f"is truncated: it ends inside its member {self._member!r}")
        self._left -= len(data)
        return data

    def skip(self, count: int) -> int:
        count = min(count, self._left)
        self._pass_over(count)
        self._left -= count
        return count

    def _next_header(self) -> tarfile.TarInfo | None:
        """The header behind the open member; None at the end mark, a block of zeros."""
        self._pass_over(self._left + self._padding)
        self._expect(0)
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

    def _expect(self, size: int) -> None:
        """Stand before the data of a member."""
        self._left, self._padding = size, -size % tarfile.BLOCKSIZE

    def _pax_size(self, size: int) -> int | None:
        """Read a pax record (POSIX.1-2001); only the size that it may give to the next member is of use here."""
        if size > MAX_PAX_BYTES:
            raise self._damaged(f"is damaged: a pax header of {size} bytes")
        records = self._take(size)
        self._padding = -size % tarfile.BLOCKSIZE
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
        data = self._file.read_fully(count)
        if len(data) < count:
            raise self._damaged("is truncated: it has no end mark")
        return data

    def _pass_over(self, count: int) -> None:
        if self._file.skip(count) < count:
            raise self._damaged("is truncated")

    def _expect_end(self) -> None:
        """Read on to the end of the file, for only there a compressed file shows that it is whole."""
        while data := self._file.read(READ_BYTES):
            if data.strip(b"\0"):
                raise self._damaged("holds more after its end mark; two archives joined must be packed as one")

    def _damaged(self, reason: str) -> Damaged:
        return Damaged(self.name, f"{reason}, after its member {self._member!r}" if self._member else reason)


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
            if self.index >= at_least and line and not line.isspace():
                with self._skip_log.reporting(self.name):
                    self._text = io.BytesIO(self._parse(line))
                    return True
        return False

    def read(self, size: int) -> bytes:
        return self._text.read(size)

    def _read_lines(self) -> Iterator[bytes]:
        rest = b""
        while data := self._file.read(READ_BYTES):
            *lines, rest = (rest + data).split(b"\n")
            yield from lines
            if len(rest) > MAX_LINE_BYTES:
                self.index += 1
                raise self._damaged(f"is longer than {MAX_LINE_BYTES >> 20} MiB")
        yield rest

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
