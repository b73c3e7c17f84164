"""An index of a corpus: what followed the longest end of a text that stands in the corpus.

It is a suffix array (Manber & Myers 1993), so the match is the longest there is, found in some 20 comparisons.  A match
is read backwards from the end of the text, so the corpus is kept back to front:

    corpus      abc|xbc|            two documents, each with a separator behind it
    text        |cbx|cba            the same reversed; what stood before a byte now stands behind it
    places      all places of the text, in the order of the MAX_MATCH bytes from there on

Looking up the end of a text, reversed, among the places leads to those where the most bytes agree.  What followed
stands before the place, again reversed.  No match and no continuation crosses a separator, which is the byte that is
rarest in the corpus: text has none of it, and where binary files do, it separates there, too.

The file: HEADER (see there), places as uint32, the text, then MAX_MATCH - 1 separators, so that each place has
MAX_MATCH bytes and no match reaches past the end; all little-endian.

Try:  python -m bytemtp.index README.md --out /tmp/readme.index
"""

import mmap
import struct
from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from bytemtp.common.errors import UserError
from bytemtp.common.files import write_output

MAX_MATCH = 32
"""No match counts as longer: what follows so many equal bytes is as sure as it gets."""
VOTERS = 4
"""Places on each side that are asked for the next byte: 1 % more bytes a pass than asking the nearest alone."""
MAX_BYTES = 1 << 30
"""Of a corpus.  With a separator behind each document it has twice as many at most: places stay below 2^32, and two
of them fit into 64 bits."""
RUN_INDEX = "train.index"
"""In a run folder: of the files that the run was trained on."""
MAGIC = b"bytemtp index 1\n"
"""With the version of the format."""
HEADER = struct.Struct("<16sQQB31x")
"""MAGIC, bytes of the text, documents, separator."""
PADDING = MAX_MATCH - 1
"""Separators behind the text."""


class CorpusIndex:
    """An index file, of which only what is looked at is read.

    A bit that has changed in it can only make worse drafts: every draft is verified.

    UserError if the file cannot be read, is no index, is one of another version, or is cut short.
    """

    def __init__(self, path: Path) -> None:
        try:
            with path.open("rb") as file:
                self._file = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # of an empty file
            raise UserError(f"cannot read the index {path}: {getattr(error, 'strerror', None) or error}") from None
        magic, size, self.documents, separator = HEADER.unpack(self._file[: HEADER.size].ljust(HEADER.size))
        if magic != MAGIC:
            raise UserError(f"{path} is no index of this version; make it with python -m bytemtp.index")
        self._text = HEADER.size + 4 * size
        if not size or len(self._file) != self._text + size + PADDING:
            raise UserError(
                f"{path} is damaged: it has {len(self._file):,} bytes; make it with python -m bytemtp.index"
            )
        self._separator = bytes([separator])
        self._places = np.frombuffer(self._file, "<u4", size, HEADER.size)

    def __len__(self) -> int:
        """Bytes of the corpus, with a separator for each document."""
        return len(self._places)

    def continuation(self, text: bytes | bytearray, count: int) -> tuple[int, bytes]:
        """How many bytes at the end of `text` stand in the corpus, and up to `count` bytes that followed them there.

        As many as possible, MAX_MATCH at most, but none before a separator.  0 if not even the last byte does.  Where
        they stand in several places, those next to where the text belongs vote for the next byte, VOTERS on each side.
        """
        tail = bytes(text[-MAX_MATCH:]).rpartition(self._separator)[2][::-1]
        rank = bisect_left(self._places, tail, key=self._run)
        length = max(same(tail, self._run(place)) for place in self._places[max(rank - 1, 0) : rank + 1])
        if not length:
            return 0, b""
        near = self._places[max(rank - VOTERS, 0) : rank + VOTERS]
        votes = [self._following(place, count) for place in near if self._run(place).startswith(tail[:length])]
        bytes_ = [vote[:1] for vote in votes]
        return length, votes[bytes_.index(max(bytes_, key=bytes_.count))]

    def parts(self) -> tuple[int, int, int, int]:
        """Where the places and the text lie in memory, bytes of the text, and the separator: for choices.cpp."""
        places = self._places.ctypes.data
        return places, places + self._places.nbytes, len(self._places), self._separator[0]

    def _run(self, place: np.uint32) -> bytes:
        begin = self._text + int(place)
        return self._file[begin : begin + MAX_MATCH]

    def _following(self, place: np.uint32, count: int) -> bytes:
        begin = self._text + int(place)
        return self._file[max(begin - count, self._text) : begin][::-1].partition(self._separator)[0]


def same(one: Sequence[int], other: Sequence[int]) -> int:
    """How many bytes they begin with are the same."""
    for count, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return count
    return min(len(one), len(other))


def write_index(path: Path, documents: Sequence[bytes]) -> None:
    """Write the index of one document or more, MAX_BYTES at most: the same file on any machine.

    Takes some 70 bytes of memory for each byte.  UserError if the file cannot be written.
    """
    counts = np.bincount(np.frombuffer(b"".join(documents), np.uint8), minlength=256)
    separator = bytes([counts.argmin()])
    text = b"".join(separator + document[::-1] for document in reversed(documents)) + PADDING * separator
    places = sorted_places(text)
    header = HEADER.pack(MAGIC, len(places), len(documents), separator[0])
    write_output(path, b"".join([header, places.astype("<u4").tobytes(), text]))


def sorted_places(text: bytes) -> Int64[np.ndarray, " n"]:
    """The places of a text that MAX_MATCH bytes begin at, in the order of these; equal ones in their own order.

    By doubling: the order of the first 8 bytes gives that of 16, this that of 32.
    """
    octets = np.frombuffer(text, np.uint8)
    runs = np.ascontiguousarray(np.lib.stride_tricks.sliding_window_view(octets, 8)).view(">u8")[:, 0]
    ranks, width = ranked(runs.astype(np.uint64)), 8
    while width < MAX_MATCH:
        ranks = ranked(ranks[:-width] * len(ranks) + ranks[width:])
        width *= 2
    return np.sort(ranks * len(ranks) + np.arange(len(ranks))) % len(ranks)


def ranked(keys: np.ndarray) -> Int64[np.ndarray, " n"]:
    """For each key, how many smaller ones there are, equal ones counted once."""
    order = np.argsort(keys)
    ordered = keys[order]
    ranks = np.empty(len(keys), np.int64)
    ranks[order] = np.append(0, np.cumsum(ordered[1:] != ordered[:-1]))
    return ranks
