"""Compressed files read as the bytes they hold, with every kind of damage noticed.

Two things are done here that the libraries leave undone.  zstandard ends silently on a truncated file, and bz2 and xz
ignore a broken second stream; here a file must end exactly at the end of a frame.  And a broken file always yields the
same bytes before its error, however they are asked for: decoding goes in cells of 256 KiB from the start of the file,
and a cell that cannot be decoded whole is left out whole.

Try:  python -c "from bytemtp.data.compression import format_of; print(format_of('books.jsonl.zst'))"
"""

import bz2
import lzma
import zlib
from collections.abc import Callable, Generator
from typing import IO, NamedTuple, Protocol, cast, runtime_checkable

import zstandard

from bytemtp.data.sources import Damaged, skip_by_reading

CELL_BYTES = 1 << 18
COMPRESSED_READ_BYTES = 1 << 17
MAX_ZSTD_WINDOW = 1 << 31
"""The format's own limit (`zstd --ultra --long=31`).  A frame needs as much memory as its window, 8 MiB as a rule."""

_SUFFIXES: dict[str, tuple[str, ...]] = {
    ".tgz": (".tar", ".gz"),
    ".tbz2": (".tar", ".bz2"),
    ".txz": (".tar", ".xz"),
    ".tzst": (".tar", ".zst"),
}


class Format(NamedTuple):
    """How a file is read."""

    compression: str | None
    """"zst", "gz", "xz", "bz2", or None"""
    container: str | None
    """"tar", "jsonl", or None for one document a file"""


def format_of(name: str) -> Format:
    """The format that a file's suffixes say.

    >>> format_of("a/b.tar.zst")
    Format(compression='zst', container='tar')
    """
    base = name.lower()
    for short, (container, compression) in _SUFFIXES.items():
        if base.endswith(short):
            base = base.removesuffix(short) + container + compression
    compressions = [kind for kind in _DECODERS if base.endswith(f".{kind}")]
    base = base.removesuffix(f".{compressions[0]}") if compressions else base
    containers = [kind for kind in ("tar", "jsonl") if base.endswith(f".{kind}")]
    return Format(compressions[0] if compressions else None, containers[0] if containers else None)


@runtime_checkable
class ByteFile(Protocol):
    """A file that is read forward: raw, decompressed or peeked at."""

    name: str

    def readinto(self, view: memoryview) -> int: ...
    def skip(self, count: int) -> int: ...
    def close(self) -> None: ...


@runtime_checkable
class CompressedFile(ByteFile, Protocol):
    """A file whose bytes a decoder takes: raw or peeked at."""

    def read(self, size: int) -> bytes: ...


def decompress(raw: CompressedFile, compression: str | None) -> ByteFile:
    """The bytes that a file holds."""
    return raw if compression is None else Decompressed(raw, _DECODERS[compression](raw))


def sniff_compression(head: bytes) -> str | None:
    """The compression that the first 6 bytes of a file say."""
    if len(head) >= 4 and head[1:4] == b"\x2a\x4d\x18" and head[0] >> 4 == 5:
        return "zst"  # begins with a skippable frame
    return next((kind for kind, magic in _MAGICS.items() if head.startswith(magic)), None)


class Peeked:
    """A file whose first bytes can be looked at before they are read."""

    def __init__(self, file: ByteFile) -> None:
        self.name = file.name
        self._file = file
        self._head = memoryview(b"")

    def peek(self, count: int) -> bytes:
        """The first `count` bytes, fewer if there are no more.  Call it before anything is read, once."""
        head = memoryview(bytearray(count))
        got = 0
        while got < count and (more := self._file.readinto(head[got:])):
            got += more
        self._head = head[:got]
        return bytes(self._head)

    def readinto(self, view: memoryview) -> int:
        if not self._head:
            return self._file.readinto(view)
        count = min(len(view), len(self._head))
        view[:count] = self._head[:count]
        self._head = self._head[count:]
        return count

    def read(self, size: int) -> bytes:
        view = memoryview(bytearray(size))
        return bytes(view[: self.readinto(view)])

    def skip(self, count: int) -> int:
        return skip_by_reading(self, count)

    def close(self) -> None:
        self._file.close()


class Decompressed:
    """The bytes inside a compressed file, decoded cell by cell."""

    def __init__(self, raw: CompressedFile, decoder: "Decoder") -> None:
        self.name = raw.name
        self._raw = raw
        self._decoder = decoder
        self._scratch = memoryview(bytearray(CELL_BYTES))
        self._rest = self._scratch[:0]

    def readinto(self, view: memoryview) -> int:
        """Fill the front of `view`, at most to the end of the cell; 0 at the end.  Damaged if the file is."""
        if not self._rest:
            if len(view) >= CELL_BYTES:
                return self._decode(view[:CELL_BYTES])
            self._rest = self._scratch[: self._decode(self._scratch)]
        count = min(len(view), len(self._rest))
        view[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    def skip(self, count: int) -> int:
        return skip_by_reading(self, count)

    def close(self) -> None:
        self._raw.close()

    def _decode(self, cell: memoryview) -> int:
        try:
            count = self._decoder.fill(cell)
        except Damaged:
            raise
        except (zstandard.ZstdError, zlib.error, lzma.LZMAError, OSError, ValueError) as error:
            raise Damaged(self.name, f"is damaged: {error}") from error
        if count == 0 and not self._decoder.complete:
            raise Damaged(self.name, "is truncated: it ends inside its compressed data")
        return count


@runtime_checkable
class Decoder(Protocol):
    """One compression format."""

    @property
    def complete(self) -> bool:
        """Whether all that was read so far ends where a compressed file may end."""

    def fill(self, cell: memoryview) -> int:
        """Decode until the cell is full or the file ends; returns how many bytes.  The library's error if damaged."""


class _Zstd:
    def __init__(self, raw: CompressedFile) -> None:
        self._frames = _ZstdFrames(raw)
        decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_ZSTD_WINDOW)
        self._reader = decompressor.stream_reader(
            cast(IO[bytes], self._frames), read_size=COMPRESSED_READ_BYTES, read_across_frames=True, closefd=False
        )

    @property
    def complete(self) -> bool:
        return self._frames.complete

    def fill(self, cell: memoryview) -> int:
        filled = 0
        while filled < len(cell) and (count := self._reader.readinto(cell[filled:])):
            filled += count
        return filled


class _ZstdFrames:
    """A source for the zstd library that follows the frame structure of what passes through it (RFC 8878, section 3.1).

    It reads only headers, one of 3 bytes for each block of up to 128 KiB, and so costs nothing that can be measured.
    """

    def __init__(self, raw: CompressedFile) -> None:
        self._raw = raw
        self._frames = 0
        self._held = b""
        self._walk = self._structure()
        self._wanted = next(self._walk)

    @property
    def complete(self) -> bool:
        return self._between_frames and not self._held and self._frames > 0

    def read(self, size: int) -> bytes:
        chunk = self._raw.read(size)
        at = 0
        while at < len(chunk):
            if self._wanted <= 0:
                step = min(-self._wanted, len(chunk) - at)
                self._wanted += step
            else:
                step = min(self._wanted - len(self._held), len(chunk) - at)
                self._held += chunk[at : at + step]
            at += step
            self._follow()
        return chunk

    def _follow(self) -> None:
        while self._wanted == 0 or self._wanted == len(self._held):
            held, self._held = self._held, b""
            self._wanted = self._walk.send(held)

    def _structure(self) -> Generator[int, bytes, None]:
        """Yields n > 0 to be sent the next n bytes, -n to have n bytes pass unseen."""
        while True:
            self._between_frames = True
            magic = yield 4
            self._between_frames = False
            if sniff_compression(magic) != "zst":
                yield -(1 << 62)  # not a frame: the library refuses it when it comes so far
            elif magic != _MAGICS["zst"]:
                yield -int.from_bytes((yield 4), "little")  # a skippable frame
            else:
                yield from self._frame()
            self._frames += 1

    def _frame(self) -> Generator[int, bytes, None]:
        descriptor = (yield 1)[0]
        single_segment = descriptor >> 5 & 1
        window_descriptor = 1 - single_segment
        yield -(window_descriptor + (0, 1, 2, 4)[descriptor & 3] + (single_segment, 2, 4, 8)[descriptor >> 6])
        last = 0
        while not last:
            header = int.from_bytes((yield 3), "little")
            last = header & 1
            run_length_encoded = header >> 1 & 3 == 1
            yield -(1 if run_length_encoded else header >> 3)
        if descriptor >> 2 & 1:
            yield -4  # checksum


class _Inflate:
    """zlib with the interface of the bz2 and lzma decompressors."""

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


class _Streams:
    """gz, xz and bz2: compressed streams one after the other, with zeros after each where the format allows padding."""

    def __init__(self, raw: CompressedFile, start: Callable[[], "_StreamDecoder"], padded: bool) -> None:
        self._raw = raw
        self._start = start
        self._padded = padded
        self._stream: _StreamDecoder | None = None
        self._input = b""
        self._streams = 0

    @property
    def complete(self) -> bool:
        return self._stream is None and self._streams > 0

    def fill(self, cell: memoryview) -> int:
        filled = 0
        while filled < len(cell):
            stream = self._stream or self._next_stream()
            if stream is None or (data := self._decode(stream, len(cell) - filled)) is None:
                break
            cell[filled : filled + len(data)] = data
            filled += len(data)
        return filled

    def _next_stream(self) -> "_StreamDecoder | None":
        """Start at the next stream; None if the file ends before one."""
        while not self._input:
            self._input = self._raw.read(COMPRESSED_READ_BYTES)
            if not self._input:
                return None
            if self._padded and self._streams:
                self._input = self._input.lstrip(b"\0")
        self._stream = self._start()
        return self._stream

    def _decode(self, stream: "_StreamDecoder", room: int) -> bytes | None:
        """Some decoded bytes, perhaps none yet; None where the file ends inside a stream."""
        ended = False
        if stream.needs_input and not self._input:
            self._input = self._raw.read(COMPRESSED_READ_BYTES)
            ended = not self._input
        data = stream.decompress(self._input, room)
        self._input = b""
        if stream.eof:
            self._input = stream.unused_data.lstrip(b"\0") if self._padded else stream.unused_data
            self._stream = None
            self._streams += 1
        elif ended and not data:
            return None
        return data


@runtime_checkable
class _StreamDecoder(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


_MAGICS = {"zst": b"\x28\xb5\x2f\xfd", "gz": b"\x1f\x8b", "xz": b"\xfd7zXZ\0", "bz2": b"BZh"}

_DECODERS: dict[str, Callable[[CompressedFile], Decoder]] = {
    "zst": _Zstd,
    "gz": lambda raw: _Streams(raw, _Inflate, padded=True),
    "xz": lambda raw: _Streams(raw, lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ), padded=True),
    "bz2": lambda raw: _Streams(raw, bz2.BZ2Decompressor, padded=False),
}
