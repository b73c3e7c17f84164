"""The files inside .tar and .zip archives, one after the other.

Both readers are files themselves: `advance` goes on to the next member, and `read` gives the bytes of that one.
"""

import io
import stat
import tarfile
import zipfile
import zlib
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from lzma import LZMAError
from typing import IO

from bytemtp.data.compression import CELL_BYTES, Cells
from bytemtp.data.sources import READ_BYTES, ByteFile, Damaged, RawFile, reading_of

MAX_NOTE_BYTES = 1 << 20

_PAX = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
"""Tar records that may give the name and the size of the next member."""
_OTHER_NOTES = (tarfile.XGLTYPE, tarfile.GNUTYPE_LONGLINK)
"""Tar records of no use here."""
_DATALESS = (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE)
"""Tar members without data, whatever size they give."""
_ZIP_READ_BYTES = 1 << 14
"""zipfile decodes .bz2 and .lzma members without a bound but this."""


class Members(ByteFile):
    """The regular files in an archive; directories, links and devices hold no bytes."""

    member: str
    """name of the open one"""

    @abstractmethod
    def advance(self) -> bool:
        """Go on to the next member; False after the last.  Damaged, here and in `read`, if the archive is."""


class Member(ByteFile):
    """The open member of an archive, under a name that says so."""

    def __init__(self, members: Members) -> None:
        self.name = f"{members.name}: {members.member}"
        self._members = members

    def read(self, size: int) -> bytes:
        return self._members.read(size)

    def skip(self, count: int) -> int:
        return self._members.skip(count)

    def close(self) -> None:
        """The archive stays open."""


class TarMembers(Members):
    """tarfile itself ends silently at a broken or missing header; here only the archive's own end mark ends it."""

    def __init__(self, file: ByteFile) -> None:
        self.name = file.name
        self.member = ""
        self._file = file
        self._left = 0
        self._padding = 0

    def advance(self) -> bool:
        notes: dict[bytes, bytes] = {}  # about the member that follows
        while header := self._next_header():
            if header.type in _PAX:
                notes |= self._pax_records(header.size)
            elif header.type == tarfile.GNUTYPE_LONGNAME:
                notes[b"path"] = self._note(header.size).rstrip(b"\0")
            elif header.type in _OTHER_NOTES:
                self._expect(header.size)
            else:
                self.member = notes.get(b"path", b"").decode("utf-8", "surrogateescape") or header.name
                self._expect(0 if header.type in _DATALESS else int(notes.get(b"size", header.size)))
                if header.isreg():
                    return True
                notes = {}
        self._expect_end()
        return False

    def read(self, size: int) -> bytes:
        size = min(size, self._left)
        data = self._file.read(size) if size else b""
        if size and not data:
            raise Damaged(self.name, f"is truncated: it ends inside its member {self.member!r}")
        self._left -= len(data)
        return data

    def skip(self, count: int) -> int:
        count = min(count, self._left)
        self._pass_over(count)
        self._left -= count
        return count

    def close(self) -> None:
        self._file.close()

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

    def _pax_records(self, size: int) -> dict[bytes, bytes]:
        """Name and size that a pax record (POSIX.1-2001) may give to the next member."""
        records, found = self._note(size), {}
        while records:
            length = records.partition(b" ")[0]
            if not length.isdigit() or int(length) <= len(length):
                raise self._damaged("is damaged: a broken pax header")
            key, _, value = records[len(length) + 1 : int(length)].partition(b"=")
            if key.startswith(b"GNU.sparse."):
                raise self._damaged("holds a sparse file; pack it again without --sparse")
            if key == b"path" or (key == b"size" and value.strip().isdigit() and len(value) < 24):
                found[key] = value.removesuffix(b"\n")
            records = records[int(length) :]
        return found

    def _note(self, size: int) -> bytes:
        if size > MAX_NOTE_BYTES:
            raise self._damaged(f"is damaged: a note of {size} bytes about a member")
        note = self._take(size)
        self._padding = -size % tarfile.BLOCKSIZE
        return note

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
        return Damaged(self.name, f"{reason}, after its member {self.member!r}" if self.member else reason)


class ZipMembers(Cells, Members):
    """Members are listed at the end of a .zip, and read from there in its order; the list is held in memory."""

    _info: zipfile.ZipInfo

    def __init__(self, file: RawFile) -> None:
        """Damaged if the list cannot be read."""
        super().__init__()
        self.name = file.name
        self._file = file
        try:
            seekable = file.seekable()
            with _decoding(file.name):
                self._zip = zipfile.ZipFile(seekable)
        except Damaged:
            file.close()
            raise
        self._infos = iter(self._zip.infolist())
        self._open: IO[bytes] | None = None

    def advance(self) -> bool:
        for info in self._infos:
            if not info.is_dir() and not stat.S_ISLNK(info.external_attr >> 16):
                self._info, self.member = info, info.filename
                self._open, self._cell = None, io.BytesIO()
                return True
        return False

    def close(self) -> None:
        self._zip.close()
        self._file.close()

    def _decode(self) -> bytes:
        """The next cell of the member, from its start on: as with `Decompressed`, one that breaks is left out whole."""
        cell = bytearray()
        with _decoding(f"{self.name}: {self.member}"):
            self._open = self._open or self._zip.open(self._info)
            while len(cell) < CELL_BYTES and (data := self._open.read(_ZIP_READ_BYTES)):
                cell += data
        return bytes(cell)


@contextmanager
def _decoding(name: str) -> Iterator[None]:
    """What zipfile raises for a damaged file is Damaged, as are errors of reading a URL."""
    with reading_of(name):
        try:
            yield
        except _ZIP_ERRORS as error:
            raise Damaged(name, f"is damaged: {error}") from error


_ZIP_ERRORS = (
    zipfile.BadZipFile, zlib.error, LZMAError, EOFError, OSError, ValueError,
    NotImplementedError, RuntimeError,  # a method that zipfile lacks, a password
)  # fmt: skip
