"""What a file is by its first bytes, where it has no name that says so, or one that says nothing.

Try:  python -c "from bytemtp.data.first_bytes import *; print(unopened_kind(open('book.txt', 'rb').read(512)))"
"""

import json
import re
from codecs import BOM_UTF8
from typing import Literal

from bytemtp.data.long_lines import LongLine
from bytemtp.data.sources import ByteFile, Damaged

HEAD_BYTES = 512
"""Enough to know a compression or an archive by."""
JSON_HEAD_BYTES = 1 << 20
"""Enough for the first line of nearly any file of JSON lines."""


class PeekableFile(ByteFile):
    """A file whose first bytes can be looked at before they are read."""

    def __init__(self, file: ByteFile) -> None:
        self.name = file.name
        self._file = file
        self._head = b""
        self._damage: Damaged | None = None

    def peek(self, count: int) -> bytes:
        """The first `count` bytes, fewer if no more can be read.  Call it before anything is read."""
        try:
            while not self._damage and len(self._head) < count and (more := self._file.read(count - len(self._head))):
                self._head += more
        except Damaged as damage:
            self._damage = damage  # to be told when the bytes before it have been read
        return self._head[:count]

    def read(self, size: int) -> bytes:
        if self._head:
            data, self._head = self._head[:size], self._head[size:]
            return data
        if self._damage:
            raise self._damage
        return self._file.read(size)

    def skip(self, count: int) -> int:
        if self._damage:
            return super().skip(count)
        passed = min(count, len(self._head))
        self._head = self._head[passed:]
        return passed + (self._file.skip(count - passed) if passed < count else 0)

    def close(self) -> None:
        self._file.close()


def sniff_compression(head: bytes) -> str | None:
    """The compression that the first bytes of a file say."""
    if len(head) >= 4 and head[1:4] == b"\x2a\x4d\x18" and head[0] >> 4 == 5:
        return "zst"  # begins with a skippable frame
    if re.match(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)", head):
        return "bz2"
    return next((kind for kind, magic in _COMPRESSIONS.items() if head.startswith(magic)), None)


def sniff_container(head: bytes) -> Literal["tar", "zip"] | None:
    """The archive that the first bytes of a file say."""
    if head[257:262] == b"ustar":
        return "tar"
    return "zip" if head.startswith((b"PK\3\4", b"PK\5\6", b"PK\7\x08PK\3\4")) else None


def unopened_kind(head: bytes) -> str | None:
    """What a file that is about to be read as it lies is, if it is packed in a way that its first bytes tell."""
    if head[257:262] != b"ustar" and not _PACKED.match(head):
        return None
    if known := sniff_compression(head) or sniff_container(head):
        return f"a .{known} by its first bytes"
    found = (kind for magic, kind in _OTHERS.items() if head.startswith(magic))
    return next((f"{kind} by its first bytes" for kind in found), "a Python pickle" if _PICKLE.match(head) else None)


def sniff_json_lines(head: bytes, text_field: str) -> Literal["yes", "without the field"] | None:
    """Whether the first JSON_HEAD_BYTES of a file begin with a line that is a JSON object, and has the text field."""
    first, newline, rest = head.removeprefix(BOM_UTF8).lstrip().partition(b"\n")
    if not newline and len(head) >= JSON_HEAD_BYTES:
        field = re.escape(json.dumps(text_field).encode())
        line = LongLine(text_field, len(first))  # has 0 for all other values, also for those that hold such a field
        line.add(first)
        outer = line.line() or b""
        return "yes" if re.match(rb"\{", outer) and re.search(rb"[{,]\s*" + field + rb'\s*:\s*"', outer) else None
    try:
        record = json.loads(first)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict):
        return None
    if isinstance(record.get(text_field), str):
        return "yes"
    return "without the field" if rest.lstrip().startswith(b"{") else None


_COMPRESSIONS = {"zst": b"\x28\xb5\x2f\xfd", "gz": b"\x1f\x8b\x08", "xz": b"\xfd7zXZ\0"}
_OTHERS = {
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!\x1a\x07": "a RAR archive",
    b"\x04\x22\x4d\x18": "LZ4",
    b"\x02\x21\x4c\x18": "LZ4 (legacy)",
    b"\x89LZO\0\r\n\x1a\n": "LZO",
    b"LZIP\1": "lzip",
    b"\x5d\0\0": "LZMA (.lzma)",
    b"\x1f\x9d": "compress (.Z)",
    b"\x1f\xa0": "compress (.z)",
    b"\xff\6\0\0sNaPpY": "Snappy",
    b"MSCF\0\0\0\0": "a cabinet (.cab)",
    b"!<arch>\n": "an ar archive",
    b"070701": "a cpio archive",
    b"070707": "a cpio archive",
    b"xar!": "a xar archive",
    b"hsqs": "a SquashFS image",
    b"PAR1": "Parquet",
    b"ARROW1\0\0": "Arrow (Feather)",
    b"FEA1": "Feather",
    b"Obj\1": "Avro",
    b"\x89HDF\r\n\x1a\n": "HDF5",
    b"\x93NUMPY": "a NumPy array",
    b"SQLite format 3\0": "an SQLite database",
}
"""Magic bytes of what is not opened here."""
_PICKLE = re.compile(rb"\x80([\2\3][\]})(}cXKMUq]|[\4\5]\x95)")
_PACKED = re.compile(
    b"|".join(map(re.escape, [*_COMPRESSIONS.values(), *_OTHERS])) + rb"|BZh|PK|.\x2a\x4d\x18|" + _PICKLE.pattern,
    re.DOTALL,
)
"""All of these begin so: one look rules out nearly every file."""
