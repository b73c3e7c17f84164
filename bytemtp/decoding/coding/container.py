"""What a compressed file holds beside the streams, and how it is known from damaged ones.

    header       FIXED: magic, version, arithmetic, rows, digest of the model, bytes of a segment, bytes of the text
    blocks       CRC-32 of the block's text; then of each segment its stream's words of 32 bits, counted and given
    checksum     CRC-32 of all before

The text is cut into segments of the same length, but for the last.  A block is `rows` segments in a row, fewer at the
end; they are coded side by side, each with a stream of its own.  All numbers have the low byte first.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from struct import Struct
from zlib import crc32

from bytemtp.common.errors import UserError

FIXED = Struct("<4sBBB8sIQ")
NUMBER = Struct("<I")
MAGIC, VERSION = b"bMTP", 1
ARITHMETIC = ("native", "cpu", "cuda")
"""Who computed the logits: the native engine, or tensor operations on such a device."""
WORD = 4
LEAST, MOST, ROWS = 1 << 14, 1 << 18, 16
"""A text has a segment for each LEAST bytes, up to ROWS; of more than ROWS * MOST bytes it has several blocks.

A segment begins without context, and its size and its end take some eight bytes; three more segments made 128 KiB of
Python 16 bytes longer in all.  A block bounds the memory."""


@dataclass(frozen=True)
class Header:
    """What is known before the first stream."""

    arithmetic: str
    """of ARITHMETIC"""
    rows: int
    """segments of a block"""
    digest: bytes
    """of the model: 8 bytes"""
    segment: int
    """bytes of a segment"""
    length: int
    """bytes of the text"""

    def blocks(self) -> Iterator[list[int]]:
        """The sizes of each block's segments."""
        for begin in range(0, self.length, self.rows * self.segment):
            end = min(self.length, begin + self.rows * self.segment)
            yield [min(self.segment, end - place) for place in range(begin, end, self.segment)]

    def pack(self) -> bytes:
        kind = ARITHMETIC.index(self.arithmetic)
        return FIXED.pack(MAGIC, VERSION, kind, self.rows, self.digest, self.segment, self.length)


def header_for(length: int, arithmetic: str, digest: bytes) -> Header:
    """How a text of so many bytes is cut."""
    rows = min(ROWS, max(1, -(-length // LEAST)))
    return Header(arithmetic, rows, digest, min(MOST, max(1, -(-length // rows))), length)


@dataclass(frozen=True)
class Block:
    """Segments that are coded side by side."""

    checksum: int
    """of their bytes"""
    streams: list[bytes]

    def pack(self) -> bytes:
        parts = [NUMBER.pack(len(stream) // WORD) + stream for stream in self.streams]
        return NUMBER.pack(self.checksum) + b"".join(parts)


def pack(header: Header, blocks: list[Block]) -> bytes:
    """The file."""
    return sealed(header.pack() + b"".join(block.pack() for block in blocks))


def sealed(content: bytes) -> bytes:
    return content + NUMBER.pack(crc32(content))


def unpack(data: bytes, name: str) -> tuple[Header, list[Block]]:
    """What `pack` put together.  UserError that says `name` if it did not, or if a byte has changed since."""
    if not data.startswith(MAGIC):
        raise UserError(f"{name} is no compressed file of bytemtp: it does not begin with {MAGIC.decode()}")
    damaged = UserError(f"{name} is damaged or cut off: its checksum is wrong; get it again from where it is whole")
    content = data[: -NUMBER.size]
    if len(content) < FIXED.size or sealed(content) != data:
        raise damaged
    _, version, kind, rows, digest, segment, length = FIXED.unpack_from(content)
    if version != VERSION:
        raise UserError(f"{name} has version {version}, and this bytemtp reads version {VERSION}; use a newer bytemtp")
    if not (kind < len(ARITHMETIC) and 0 < rows <= ROWS and 0 < segment <= MOST):
        raise damaged
    header, reader = Header(ARITHMETIC[kind], rows, digest, segment, length), Reader(content, FIXED.size)
    try:
        blocks = [Block(reader.number(), [reader.stream() for _ in sizes]) for sizes in header.blocks()]
    except ValueError:
        raise damaged from None
    if reader.place != len(content):
        raise damaged
    return header, blocks


class Reader:
    """Reads a file from a place on.  ValueError where it ends too soon."""

    def __init__(self, content: bytes, place: int) -> None:
        self.content, self.place = content, place

    def take(self, size: int) -> bytes:
        self.place += size
        if self.place > len(self.content):
            raise ValueError
        return self.content[self.place - size : self.place]

    def number(self) -> int:
        number: int = NUMBER.unpack(self.take(NUMBER.size))[0]
        return number

    def stream(self) -> bytes:
        return self.take(WORD * self.number())
