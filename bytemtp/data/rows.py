"""From documents to rows: the corpus as one stream of ids, cut into groups of rows that overlap by n_future ids.

The stream is `doc0 256 doc1 256 ...` over all files of an epoch, then of the next epoch.  Row i holds the ids from
i * seq_len on, seq_len + n_future of them, so that each head predicts every id once.  A row group (Parquet's term) is
as many rows as fit a buffer of bounded size: memory stays flat, and rows can be shuffled inside it.  To shuffle beyond
it, an epoch can be read in several sweeps: each goes through all files and keeps another random share of the documents.
A file may have a weight: an epoch then reads it so often, and of its documents a share for the part below one.

Try:  python -c "from bytemtp.data.rows import *; from bytemtp.data.sources import *; log = SkipLog('error');
      print(next(IdStream(find(['README.md'], log), log).read(Position(), 1)))"
"""

import hashlib
import json
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Int16, Int64
from numpy.typing import NDArray

from bytemtp.common.errors import UserError
from bytemtp.common.vocab import EOT
from bytemtp.data.documents import AS_NAMED, Keep, Reading, SplitReader, open_documents
from bytemtp.data.sources import Damaged, SkipLog, Source

Split = Literal["all", "train", "valid"]

MAX_GROUP_ENDS = 1 << 20
"""A row group with so many documents is ended early.  It shapes the order of rows, and so what a cursor means."""
FILES, ROWS, SHARES = 0, 1, 2
"""What a permutation is of."""


class EmptySplit(UserError):
    """No byte of the corpus belongs to the split: it has too few documents for so small a share."""


class Position(NamedTuple):
    """A place in the id stream: the next id is this byte, or the end-of-text id if the piece has no more bytes."""

    epoch: int = 0
    file: int = 0
    """place in the epoch's order of files, counted over all of its sweeps"""
    document: int = -1
    """-1: before the first piece of the file"""
    section: int = 0
    byte: int = 0


class Turn(NamedTuple):
    """One of the times that an epoch reads a file."""

    source: Source
    number: int
    """of the times before it"""
    fraction: float
    """of the documents that it takes; those of the next epoch follow them"""


class Ids(NamedTuple):
    """Some ids of the stream: bytes of one document, or the end-of-text id behind it."""

    position: Position
    octets: bytes
    """empty for the end-of-text id"""


@dataclass(frozen=True)
class IdStream:
    """The id stream of a corpus: its files with everything that shapes their order and contents."""

    sources: list[Source]
    skip_log: SkipLog
    epochs: int | None = 1
    """None for a stream without end"""
    seed: int = 0
    shuffle: bool = True
    split: Split = "all"
    valid_fraction: float = 0.0
    reading: Reading = AS_NAMED
    sweeps: int = 1
    """how often an epoch goes through the files"""
    weights: Sequence[float] = ()
    """how often an epoch takes the documents of each source, once unless given"""

    @cached_property
    def _turns(self) -> Int64[np.ndarray, " t"]:
        """Numbers of the sources that an epoch reads; in another order, if shuffled."""
        times = np.ceil(self.weights).astype(int) if self.weights else 1
        return np.arange(len(self.sources)).repeat(times)

    def _turn(self, place: int) -> Turn:
        """By its place among `_turns`."""
        source = int(self._turns[place])
        number = place - int(np.searchsorted(self._turns, source))
        weight = self.weights[source] if self.weights else 1.0
        return Turn(self.sources[source], number, min(1.0, weight - number))

    def fingerprint(self, *row_shape: int) -> str:
        """16 hexadecimal digits of the file names and of the settings that shape the rows."""
        reading = self.reading
        options: list[Any] = [self.seed, self.shuffle, self.split, self.valid_fraction]
        options += [reading.decompress, reading.text_field]
        # Only where it matters, so that cursors of older versions still hold.
        options += [self.sweeps] * (self.sweeps > 1) + [*reading.exclude]
        if set(self.weights) - {1.0}:
            options += [f"weight {weight:g}" for weight in self.weights]
        if any(reading.is_later(source.name) for source in self.sources):
            options.append(f"format {reading.format}")
        digest = hashlib.blake2b(json.dumps([*row_shape, *options]).encode(), digest_size=8)
        for source in self.sources:
            digest.update(b"\0" + os.fsencode(source.key))
        return digest.hexdigest()

    def read(self, start: Position, row_width: int) -> Generator[Ids, None, None]:
        """All ids from a position on; then, without octets, the start of the epoch after the last one.

        UserError if the files no longer have the position, or hold no byte, or are endless and shorter than a row.
        """
        epoch = start.epoch
        while self.epochs is None or epoch < self.epochs:
            byte_count = id_count = 0
            for ids in self._read_epoch(start if epoch == start.epoch else Position(epoch)):
                byte_count += len(ids.octets)
                id_count += len(ids.octets) or 1
                yield ids
            if start == Position(start.epoch) or epoch > start.epoch:
                self._check_epoch(byte_count, id_count, row_width)
            epoch += 1
        yield Ids(Position(epoch), b"")

    def _read_epoch(self, start: Position) -> Iterator[Ids]:
        for file, turn, share in self._plan(start):
            seeking = file == start.file and start.document >= 0
            try:
                for *place, octets in self._read_file(turn, share, start, seeking=seeking):
                    seeking = False
                    yield Ids(Position(start.epoch, file, *place), octets)
            except Damaged as damage:
                if seeking:
                    raise  # to leave this out would not be to go on where the cursor is
                self.skip_log.report(damage)

    def _plan(self, start: Position) -> Iterator[tuple[int, Turn, int]]:
        """The files of an epoch from a position on: place, file, and the share of its documents that is wanted.

        A document of a file that is read several times has its turns in different sweeps.
        """
        count = len(self._turns)
        shares = permutation(self.sweeps, self.seed, SHARES, start.epoch)
        for sweep in range(start.file // count, self.sweeps):
            number = start.epoch * self.sweeps + sweep
            order = permutation(count, self.seed, FILES, number) if self.shuffle else np.arange(count)
            for file in range(max(start.file - sweep * count, 0), count):
                turn = self._turn(int(order[file]))
                yield sweep * count + file, turn, (int(shares[sweep]) + turn.number) % self.sweeps

    def _read_file(
        self, turn: Turn, share: int, start: Position, *, seeking: bool
    ) -> Iterator[tuple[int, int, int, bytes]]:
        source = turn.source
        with closing(open_documents(source, self.skip_log, self.reading)) as documents:
            reader = SplitReader(documents, self._keep(turn, share, start.epoch))
            if seeking and not reader.seek(start.document, start.section, start.byte):
                raise UserError(f"{source.name}: holds less than when the cursor was made; restore it or start anew")
            yield from reader.read()

    def _keep(self, turn: Turn, share: int, epoch: int) -> Keep:
        """Which documents and sections of a file are wanted now: those of the split that fall to share and fraction."""
        tests = [self._in_split(turn.source.key)]
        if self.sweeps > 1:
            of_share = self._bits(turn.source.key, b"share")
            tests.append(lambda document, section: of_share(document, section) % self.sweeps == share)
        if turn.fraction < 1:
            place = self._bits(turn.source.key, b"weight")
            begin, width = epoch * turn.fraction % 1, turn.fraction
            tests.append(lambda document, section: (place(document, section) / 2**64 - begin) % 1 < width)
        if len(tests) == 1:
            return tests[0]
        return lambda document, section: all(is_wanted(document, section) for is_wanted in tests)

    def _bits(self, key: str, purpose: bytes) -> Callable[[int, int], int]:
        """64 random bits for each document and section of a file."""
        return partial(random_bits, os.fsencode(key), purpose, b"%d " % self.seed)

    def _in_split(self, key: str) -> Keep:
        """Which documents and sections of a file belong to the split; the same under every seed."""
        if self.split == "all":
            return lambda document, section: True
        bits = partial(random_bits, os.fsencode(key), b"", b"")
        bound, wants_valid = self.valid_fraction * 2**64, self.split == "valid"
        return lambda document, section: (bits(document, section) < bound) == wants_valid

    def _check_epoch(self, byte_count: int, id_count: int, row_width: int) -> None:
        damaged = ""
        if self.skip_log.count:
            name, reason = self.skip_log.listed[0]
            damaged = f" ({self.skip_log.count} damaged inputs are left out, the first {name}: {reason})"
        if byte_count == 0 and self.split == "all":
            raise UserError(f"the corpus holds no byte{damaged}; give it files that do")
        if byte_count == 0:
            raise EmptySplit(
                f"no document of the corpus fell into the split {self.split!r} with valid_fraction "
                f"{self.valid_fraction}{damaged}; give more documents or another fraction, such as 0"
            )
        if self.epochs is None and id_count < row_width:
            raise UserError(
                f"the corpus has {id_count} ids, less than one row of {row_width} (seq_len + n_future); "
                "add data or lower seq_len"
            )


@dataclass(frozen=True)
class RowGroup:
    """Consecutive rows of the stream, valid until the next group is asked for."""

    ids: Int16[np.ndarray, "r s_n"]
    """a view in which rows overlap; 256 is end of text, and padding is 0"""
    lengths: Int64[np.ndarray, " r"]
    """ids in each row; the rest of it is padding"""
    start: Position
    following: Position
    """where the next group starts"""
    first_row: int
    """number of the first row in the stream"""


class Packer:
    """Cuts an id stream into row groups.

    A group ends when it has `group_rows` rows or with the row that crosses the end of an epoch: a corpus smaller than a
    group is then seen whole before any of it is seen again.
    """

    def __init__(self, stream: IdStream, seq_len: int, n_future: int, group_rows: int) -> None:
        self._stream = stream
        self._seq_len = seq_len
        self._overlap = n_future
        self._capacity = group_rows * seq_len
        self._ids = np.empty(self._capacity + n_future, np.int16)
        self._filled = 0
        self._ends = 0
        self._epoch_end = 0

    def groups(self, start: Position, first_row: int) -> Generator[RowGroup, None, None]:
        """All groups from a position on, `first_row` being the number of the row that starts there."""
        with closing(self._stream.read(start, self._seq_len + self._overlap)) as chunks:
            self._chunks = chunks
            self._next = next(chunks)
            start = self._next.position
            while True:
                stride_end = self._fill_rows()
                following = self._next.position
                self._fill(stride_end + self._overlap)
                group = self._group(stride_end, start, following, first_row)
                if len(group.ids) == 0:
                    return
                yield group
                self._carry(stride_end)
                first_row += len(group.ids)
                start = following

    @property
    def _done(self) -> bool:
        """Whether the last epoch has ended."""
        return self._next.position.epoch == self._stream.epochs

    def _fill_rows(self) -> int:
        """Fill up to the group's last row, without its overlap; returns where that is."""
        # The overlap is there already, except in the first group after a start.  What ends a group lies behind it, so
        # that a group ends where it did whether its reading began with it or long before.
        self._fill(self._overlap)
        while (
            self._filled < self._capacity
            and self._ends < MAX_GROUP_ENDS
            and self._epoch_end < self._overlap
            and not self._done
        ):
            self._take(self._capacity)
        end = self._filled + -self._filled % self._seq_len
        self._fill(end)
        return end

    def _fill(self, until: int) -> None:
        while self._filled < until and not self._done:
            self._take(until)

    def _take(self, until: int) -> None:
        """Write the bytes or the end-of-text id that comes next, no further than `until`."""
        position, octets = self._next
        count = min(len(octets), until - self._filled) or 1
        self._ids[self._filled : self._filled + count] = np.frombuffer(octets, np.uint8, count) if octets else EOT
        self._filled += count
        self._ends += not octets
        if count < len(octets):
            self._next = Ids(position._replace(byte=position.byte + count), octets[count:])
        else:
            self._next = next(self._chunks)
            if self._next.position.epoch > position.epoch:
                self._epoch_end = self._filled

    def _group(self, stride_end: int, start: Position, following: Position, first_row: int) -> RowGroup:
        # A row needs one id beyond its first: the stream's very last id is a target only.
        count = max(0, min(stride_end // self._seq_len, -(-(self._filled - 1) // self._seq_len)))
        width = self._seq_len + self._overlap
        self._ids[self._filled : max(count, 1) * self._seq_len + self._overlap] = 0
        rows = np.lib.stride_tricks.sliding_window_view(self._ids, width)[:: self._seq_len][:count]
        lengths = np.minimum(self._filled - np.arange(count) * self._seq_len, width)
        return RowGroup(rows, lengths, start, following, first_row)

    def _carry(self, stride_end: int) -> None:
        """Move the overlap to the front of the buffer, as the first ids of the next group."""
        kept = max(self._filled - stride_end, 0)
        self._ids[:kept] = self._ids[stride_end : self._filled]
        self._ends = int(np.count_nonzero(self._ids[:kept] == EOT))
        self._epoch_end -= stride_end
        self._filled = kept


def random_bits(file: bytes, purpose: bytes, seed: bytes, document: int, section: int) -> int:
    """64 bits of a hash.  It shapes splits and orders: it must never change."""
    place = seed + b"%d %d " % (document, section)
    return int.from_bytes(hashlib.blake2b(place + file, digest_size=8, person=purpose).digest(), "big")


def permutation(count: int, seed: int, purpose: int, number: int) -> NDArray[np.int64]:
    """A random order.  Only such parts of numpy are used as keep their output from version to version (NEP 19).

    Sorting 16-bit keys is 8 times as fast as sorting 64-bit ones; the few that are equal keep their order.
    """
    bits = np.random.PCG64(np.random.SeedSequence([seed, purpose, number])).random_raw(-(-count // 4))
    return np.argsort(bits.astype("<u8").view("<u2")[:count], kind="stable")
