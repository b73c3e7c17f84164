"""From documents to rows: the corpus as one stream of ids, cut into blocks of rows that overlap by n_future ids.

The stream is `doc0 256 doc1 256 ...` over all files of an epoch, then of the next epoch.  Row i holds the ids from
i * seq_len on, seq_len + n_future of them, so that each head predicts every id once.  A block is as many rows as fit a
buffer of bounded size; end-of-text ids are kept beside it as a list of their positions, so an id takes one byte.
"""

from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32, Int64, UInt8
from numpy.typing import NDArray

from bytemtp.common.errors import UserError
from bytemtp.data.documents import Pieces
from bytemtp.data.sources import Damaged, Damages, Source

MAX_BLOCK_ENDS = 1 << 20
"""A block with so many documents is ended early, so that the list of their ends stays small."""


@dataclass(frozen=True, slots=True)
class Position:
    """A place in the id stream: the next id is this byte, or the end-of-text id if the piece has no more bytes."""

    epoch: int = 0
    file: int = 0
    """place in the epoch's order of files"""
    document: int = -1
    """-1: before the first piece of the file"""
    section: int = 0
    byte: int = 0


class Tape:
    """The id stream of a corpus, read forward once it has been started at a position.

    order: the files of an epoch, as numbers into `sources`.
    epochs: None for a stream without end.
    check_epoch: called with the bytes and the ids of each whole epoch; raises if they are too few.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        open_pieces: Callable[[Source], Pieces],
        order: Callable[[int], NDArray[np.int64]],
        damages: Damages,
        epochs: int | None,
        check_epoch: Callable[[int, int], None],
    ) -> None:
        self.epoch = 0
        self._file = 0
        self._sources = sources
        self._open_pieces = open_pieces
        self._order_of = order
        self._order = order(0)
        self._damages = damages
        self._epochs = epochs
        self._check_epoch = check_epoch
        self._pieces: Pieces | None = None
        self._file_ended = False
        self._whole_epoch = True
        self._bytes = self._documents = 0

    def start(self, position: Position) -> None:
        """Stand at a position.  UserError if the files no longer have it."""
        self.epoch, self._file = position.epoch, position.file
        self._order = self._order_of(self.epoch)
        self._whole_epoch = position == Position(epoch=self.epoch)
        if position.document < 0:
            self.advance()
            return
        self._pieces = self._open_pieces(self._source)
        if not self._pieces.seek(position.document, position.section, position.byte):
            raise UserError(f"{self._source.name}: holds less than when the cursor was made; restore it or start anew")

    @property
    def done(self) -> bool:
        """Whether the last epoch has ended."""
        return self._epochs is not None and self.epoch >= self._epochs

    @property
    def position(self) -> Position:
        if self._pieces is None:
            return Position(self.epoch, self._file)
        return Position(self.epoch, self._file, *self._pieces.position)

    def readinto(self, view: memoryview) -> int:
        """Fill the front of `view` with bytes of the open piece; 0 at its end, where an end-of-text id belongs."""
        if self._file_ended or self._pieces is None:
            return 0
        try:
            count = self._pieces.readinto(view)
        except Damaged as damage:
            self._damages.report(damage)
            self._file_ended = True
            return 0
        self._bytes += count
        return count

    def advance(self) -> None:
        """Open the next piece: of this file, of a later one, of a later epoch."""
        while not self.done and not self._advance_in_file():
            self._next_file()
        self._documents += 1

    def close(self) -> None:
        if self._pieces is not None:
            self._pieces.close()
            self._pieces = None

    def _advance_in_file(self) -> bool:
        if self._file_ended:
            return False
        try:
            if self._pieces is None:
                self._pieces = self._open_pieces(self._source)
            return self._pieces.advance()
        except Damaged as damage:
            self._damages.report(damage)
            return False

    def _next_file(self) -> None:
        self.close()
        self._file_ended = False
        self._file += 1
        if self._file == len(self._sources):
            self._next_epoch()

    def _next_epoch(self) -> None:
        if self._whole_epoch:
            self._check_epoch(self._bytes, self._bytes + self._documents)
        self._bytes = self._documents = 0
        self._whole_epoch = True
        self.epoch += 1
        self._file = 0
        self._order = self._order_of(self.epoch)

    @property
    def _source(self) -> Source:
        return self._sources[int(self._order[self._file])]


class Block:
    """Consecutive rows of the stream, valid until the next block is asked for.

    octets: one byte an id, 0 at end-of-text ids and behind the `filled` ids.
    ends: places of the end-of-text ids, ascending.
    first_row: number of the first row in the stream.
    start, following: where this block and the next one start.
    """

    def __init__(
        self,
        octets: UInt8[np.ndarray, " i"],
        ends: Int32[np.ndarray, " e"],
        filled: int,
        shape: tuple[int, int, int],
        start: Position,
        following: Position,
        first_row: int,
    ) -> None:
        self._count, self._seq_len, n_future = shape
        self._width = self._seq_len + n_future
        self._filled = filled
        # Rows overlap in the buffer.  As one item each they are copied half as fast again as they are byte by byte.
        self._rows = np.ndarray((self._count,), np.dtype((np.void, self._width)), octets, strides=(self._seq_len,))
        self._ends = ends
        # Row r has the end-of-text ids number low[r] to high[r].
        self._low = np.zeros(self._count + 1, np.int64)
        np.cumsum(np.bincount(ends // self._seq_len, minlength=self._count)[: self._count], out=self._low[1:])
        last_row = np.maximum(ends - n_future, 0) // self._seq_len
        self._high = np.cumsum(np.bincount(last_row, minlength=self._count)[: self._count])
        self.start = start
        self.following = following
        self.first_row = first_row

    def __len__(self) -> int:
        return self._count

    def octets(self, places: Int64[np.ndarray, " b"]) -> UInt8[np.ndarray, "b s_n"]:
        """Copies of the rows at `places`: one byte an id, 0 at end-of-text ids and in padding."""
        return self._rows[places].view(np.uint8).reshape(len(places), self._width)

    def eots(self, places: Int64[np.ndarray, " b"]) -> Int64[np.ndarray, "e 2"]:
        """Row (counted along `places`) and column of each end-of-text id in the rows at `places`, ascending."""
        low = self._low[places]
        counts = self._high[places] - low
        row = np.repeat(np.arange(len(places)), counts)
        # The k-th end-of-text id of all these rows is number low + k - (those in the rows before).
        number = np.arange(len(row)) + np.repeat(low - (np.cumsum(counts) - counts), counts)
        return np.stack([row, self._ends[number] - places[row] * self._seq_len], axis=1)

    def lengths(self, places: Int64[np.ndarray, " b"]) -> Int64[np.ndarray, " b"]:
        """Ids in each of the rows at `places`; the rest of a row is padding."""
        return np.minimum(self._filled - places * self._seq_len, self._width)


class Packer:
    """Cuts a tape into blocks.

    A block ends when it has `block_rows` rows or with the row that crosses the end of an epoch: a corpus smaller than a
    block is then seen whole before any of it is seen again.
    """

    def __init__(self, tape: Tape, seq_len: int, n_future: int, block_rows: int) -> None:
        self._tape = tape
        self._seq_len = seq_len
        self._overlap = n_future
        self._capacity = block_rows * seq_len
        self._ids = np.empty(self._capacity + n_future, np.uint8)
        self._view = self._ids.data
        self._filled = 0
        self._ends = array("i")
        self._epoch_end = 0

    def blocks(self, first_row: int) -> Iterator[Block]:
        """All blocks from where the tape stands, `first_row` being the number of the row that starts there."""
        start = self._tape.position
        while True:
            stride_end = self._fill_rows()
            following = self._tape.position
            self._fill(stride_end + self._overlap)
            block = self._block(stride_end, start, following, first_row)
            if len(block) == 0:
                return
            yield block
            self._carry(stride_end)
            first_row += len(block)
            start = following

    def _fill_rows(self) -> int:
        """Fill up to the block's last row, without its overlap; returns where that is."""
        # The overlap is there already, except in the first block after a start.  What ends a block lies behind it, so
        # that a block ends where it did whether its reading began with it or long before.
        self._fill(self._overlap)
        while (
            self._filled < self._capacity
            and len(self._ends) < MAX_BLOCK_ENDS
            and self._epoch_end < self._overlap
            and not self._tape.done
        ):
            self._fill_step(self._capacity)
        end = self._filled + -self._filled % self._seq_len
        self._fill(end)
        return end

    def _fill(self, until: int) -> None:
        while self._filled < until and not self._tape.done:
            self._fill_step(until)

    def _fill_step(self, until: int) -> None:
        """Read some bytes, or write an end-of-text id and open the next piece."""
        count = self._tape.readinto(self._view[self._filled : until])
        self._filled += count
        if count == 0:
            self._ids[self._filled] = 0
            self._ends.append(self._filled)
            self._filled += 1
            epoch = self._tape.epoch
            self._tape.advance()
            if self._tape.epoch > epoch:
                self._epoch_end = self._filled

    def _block(self, stride_end: int, start: Position, following: Position, first_row: int) -> Block:
        # A row needs one id beyond its first: the stream's very last id is a target only.
        count = min(stride_end // self._seq_len, -(-(self._filled - 1) // self._seq_len))
        self._ids[self._filled : max(count, 1) * self._seq_len + self._overlap] = 0
        shape = (max(count, 0), self._seq_len, self._overlap)
        return Block(self._ids, np.array(self._ends, np.int32), self._filled, shape, start, following, first_row)

    def _carry(self, stride_end: int) -> None:
        """Move the overlap to the front of the buffer, as the first ids of the next block."""
        kept = self._filled - stride_end
        self._ids[: max(kept, 0)] = self._ids[stride_end : self._filled]
        carried = self._ends[bisect_left(self._ends, stride_end) :]
        self._ends = array("i", [end - stride_end for end in carried])
        self._epoch_end -= stride_end
        self._filled = max(kept, 0)
