"""Compressed files read as the bytes they hold, with every kind of damage noticed.

.zst, .gz, .xz and .bz2 files are one or more compressed streams, one after the other.  The libraries decode one stream;
here the next one is started, and the file must end where a stream ends.  A broken file always yields the same bytes
before its error, however they are asked for: decoding goes in cells of 256 KiB from the start of the file.  A cell in
which the data is broken is left out whole; a truncated file gives all that can be decoded of it.

Try:  python -c "from bytemtp.data.compression import format_of; print(format_of('books.jsonl.zst'))"
"""

import bz2
import io
import lzma
import re
import sys
import zlib
from abc import abstractmethod
from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

from bytemtp.data.sources import ByteFile, Damaged

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

CELL_BYTES = 1 << 18
COMPRESSED_READ_BYTES = 1 << 17


class Format(NamedTuple):
    """How a file is read."""

    compression: str | None
    """"zst", "gz", "xz", "bz2", or None"""
    container: str | None
    """"tar", "zip", "jsonl", "json" (perhaps JSON lines, its first line tells), or None for one document a file"""


def format_of(name: str, *, earlier: bool = False) -> Format:
    """The format that a file's suffixes say.

    earlier: only those that were known before there was data.format.

    >>> format_of("a/b.tar.zst")
    Format(compression='zst', container='tar')
    """
    rest, last = _suffix(name.lower(), earlier)
    if last in _SHORT_SUFFIXES:
        return _SHORT_SUFFIXES[last]
    compression = _COMPRESSIONS.get(last)
    if compression:
        _, last = _suffix(rest, earlier)
    return Format(compression, _CONTAINERS.get(last))


def _suffix(name: str, earlier: bool) -> tuple[str, str]:
    """A name in front of its last dot, and a known suffix behind that, or nothing."""
    rest, dot, last = name.rpartition(".")
    return rest, last if dot and not (earlier and last in _LATER) else ""


def decompress(raw: ByteFile, compression: str | None) -> ByteFile:
    """The bytes that a file holds."""
    return Decompressed(raw, compression) if compression else raw


class Cells(ByteFile):
    """Bytes that are decoded cell by cell."""

    def __init__(self) -> None:
        self._cell = io.BytesIO()

    def read(self, size: int) -> bytes:
        data = self._cell.read(size)
        if not data:
            self._cell = io.BytesIO(self._decode())
            data = self._cell.read(size)
        return data

    @abstractmethod
    def _decode(self) -> bytes:
        """The next cell; empty at the end."""


class Decompressed(Cells):
    """The bytes inside a compressed file, decoded cell by cell."""

    def __init__(self, raw: ByteFile, compression: str) -> None:
        super().__init__()
        self.name = raw.name
        self._raw = raw
        self._new_decoder = _DECODERS[compression]
        self._padded = compression in _PADDED
        self._decoder: _Decoder | None = None  # None between streams
        self._streams = 0
        self._input = b""

    def close(self) -> None:
        self._raw.close()

    def _decode(self) -> bytes:
        """The next cell, shorter only where the file ends."""
        cell = bytearray()
        while len(cell) < CELL_BYTES:
            at_end = not self._fetch()
            if at_end and self._decoder is None:
                break
            data = self._step(CELL_BYTES - len(cell))
            cell += data
            if at_end and not data:
                break  # only now, since a decoder may hold back output for which there was no room
        if not cell and (self._decoder or not self._streams):
            raise Damaged(self.name, "is truncated: it ends inside its compressed data")
        return bytes(cell)

    def _fetch(self) -> bool:
        """Read if there is nothing left to decode; False if the file has no more."""
        while not self._input and (self._decoder is None or self._decoder.needs_input):
            self._input = self._raw.read(COMPRESSED_READ_BYTES)
            if not self._input:
                return False
            self._strip_padding()
        return True

    def _step(self, room: int) -> bytes:
        """At most `room` decoded bytes, perhaps none yet."""
        decoder = self._decoder = self._decoder or self._new_decoder()
        try:
            data = decoder.decompress(self._input, room)
        except (zstd.ZstdError, zlib.error, lzma.LZMAError, OSError, ValueError) as error:
            raise Damaged(self.name, f"is damaged: {error}") from error
        self._input = b""
        if decoder.eof:
            self._input = decoder.unused_data
            self._decoder = None
            self._streams += 1
            self._strip_padding()
        return data

    def _strip_padding(self) -> None:
        """Pass over zeros after a stream, where the format allows them."""
        if self._decoder is None and self._streams and self._padded:
            self._input = self._input.lstrip(b"\0")


@runtime_checkable
class _Decoder(Protocol):
    """What the decoders of bz2, lzma and zstd have in common: they decode one stream."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _Inflate:
    """zlib as such a decoder."""

    def __init__(self) -> None:
        self._inflate = zlib.decompressobj(wbits=31)

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._inflate.decompress(self._inflate.unconsumed_tail + data, max_length)

    @property
    def eof(self) -> bool:
        return self._inflate.eof

    @property
    def needs_input(self) -> bool:
        return not self._inflate.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._inflate.unused_data


def _zstd_decoder() -> _Decoder:
    """It takes any window, as `zstd --long=31` needs.  A frame takes as much memory as its window, 8 MiB as a rule."""
    window_log = zstd.DecompressionParameter.window_log_max
    return zstd.ZstdDecompressor(options={window_log: window_log.bounds()[1]})


_DECODERS: dict[str, Callable[[], _Decoder]] = {
    "zst": _zstd_decoder,
    "gz": _Inflate,
    "xz": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ),
    "bz2": bz2.BZ2Decompressor,
}
_PADDED = ("gz", "xz")
_COMPRESSIONS = {"zst": "zst", "zstd": "zst", "gz": "gz", "gzip": "gz", "xz": "xz", "bz2": "bz2", "bzip2": "bz2"}
_CONTAINERS = {"tar": "tar", "zip": "zip", "jsonl": "jsonl", "ndjson": "jsonl", "jsonlines": "jsonl", "json": "json"}
_SHORT_SUFFIXES = {
    "tgz": Format("gz", "tar"),
    "tbz2": Format("bz2", "tar"),
    "tbz": Format("bz2", "tar"),
    "txz": Format("xz", "tar"),
    "tzst": Format("zst", "tar"),
}
_LATER = {"zstd", "gzip", "bzip2", "zip", "ndjson", "jsonlines", "json", "tbz"}
LATER_NAMES = re.compile(rf"\.({'|'.join(sorted(_LATER))})(\.[a-z0-9]+)?$", re.IGNORECASE)
"""Names of files that older versions read in another way."""
