"""The data stream: files in, batches of bytes out.  Memory is bounded, order exact, any batch can be resumed from.

    for batch in bytemtp.stream(["corpus.tar.zst"], seq_len=512, batch_size=8, seed=0):
        batch.ids            # int64 [b, s + n]; 0-255 bytes, 256 end of text
        batch.document_ids   # int32 [b, s + n]; where they differ, attention and targets must not cross
        batch.cursor         # give it to stream(..., cursor=) to go on with the next batch

sources.py finds files, compression.py decodes them, documents.py cuts them into documents, packing.py into blocks of
rows.  Here the rows of each block are shuffled, dealt to ranks, gathered into batches and read ahead by a thread.
"""

import hashlib
import json
import os
import queue
import threading
import time
import weakref
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from math import inf
from types import TracebackType
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Int32, Int64, UInt8
from numpy.typing import NDArray
from torch import Tensor

from bytemtp.common.errors import UserError
from bytemtp.common.settings import MAX_FUTURE
from bytemtp.common.vocab import EOT
from bytemtp.data.documents import Keep, Pieces, open_documents
from bytemtp.data.rows import Block, Packer, Position, Tape
from bytemtp.data.sources import STANDARD_INPUT, Damages, OnCorrupt, Source, find

Split = Literal["all", "train", "valid"]

SHUFFLED_BLOCK_BYTES = 1 << 23
ORDERED_BLOCK_BYTES = 1 << 20
GATHER_BYTES = 1 << 20
"""Small batches are gathered this many bytes at a time, so that handing them to the trainer costs little."""
STOP_SECONDS = 2.0


class EmptySplit(UserError):
    """No byte of the corpus belongs to the split: it has too few documents for so small a share."""


# Neither a cursor nor a batch is frozen, which would cost a microsecond a batch.
@dataclass(slots=True)
class Cursor:
    """A place between two batches.  `Cursor(**json.loads(json.dumps(dataclasses.asdict(cursor))))` is the same one.

    It is the same on every rank, and holds under any batch_size, world_size and prefetch; everything else that shapes
    the rows must be as it was, which `corpus` checks.
    """

    epoch: int
    file: int
    """place in the epoch's order of files"""
    document: int
    section: int
    byte: int
    """the block of rows that has the next row starts here"""
    first_row: int
    """number of that block's first row, counted over the whole stream and all ranks"""
    row: int
    """number of the next row"""
    corpus: str
    """fingerprint of the file names and of the settings that shape the rows"""


@dataclass(slots=True)
class Batch:
    """Rows of s + n ids: s inputs and, for each, the n ids that follow it.

    The target of head i (0 = next byte) at input position p is position q = p + 1 + i.  It is valid if the byte before
    it belongs to the input's document, `document_ids[q - 1] == document_ids[p]`, and neither is padding,
    `document_ids[q] >= 0` and `document_ids[p] >= 0`: the end-of-text id itself is the last target of its document.
    """

    octets: UInt8[Tensor, "b s_n"]
    """the bytes; 0 at end-of-text ids and in padding"""
    eots: Int64[Tensor, "e 2"]
    """row and column of each end-of-text id"""
    lengths: Int64[Tensor, " b"]
    """ids in each row, the rest of it is padding; less than s + n only at the end of a finite stream"""
    cursor: Cursor
    """the place after this batch"""

    @property
    def ids(self) -> Int64[Tensor, "b s_n"]:
        """The ids, built on the batch's device; padding is 256."""
        ids = self.octets.long()
        ids[self.eots[:, 0], self.eots[:, 1]] = EOT
        return ids.masked_fill_(self._padding, EOT)

    @property
    def document_ids(self) -> Int32[Tensor, "b s_n"]:
        """How many end-of-text ids the row has up to here; one belongs to the document it opens.  -1 in padding."""
        boundaries = torch.zeros(self.octets.shape, dtype=torch.int32, device=self.octets.device)
        boundaries[self.eots[:, 0], self.eots[:, 1]] = 1
        return boundaries.cumsum(dim=1, dtype=torch.int32).masked_fill_(self._padding, -1)

    def to(self, device: torch.device | str) -> "Batch":
        """The batch on a device; from pinned memory the copy overlaps with computation."""
        octets, eots, lengths = (part.to(device, non_blocking=True) for part in (self.octets, self.eots, self.lengths))
        return Batch(octets, eots, lengths, self.cursor)

    @property
    def _padding(self) -> Tensor:
        return torch.arange(self.octets.shape[1], device=self.octets.device) >= self.lengths[:, None]


def stream(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    seq_len: int = 512,
    batch_size: int = 8,
    seed: int = 0,
    *,
    n_future: int = 8,
    epochs: int | None = 1,
    shuffle: bool = True,
    split: Split = "all",
    valid_fraction: float = 0.0,
    decompress: bool = True,
    text_field: str = "text",
    on_corrupt: OnCorrupt = "error",
    rank: int = 0,
    world_size: int = 1,
    cursor: Cursor | None = None,
    prefetch: int = 2,
    pin_memory: bool = False,
) -> "Stream":
    """Read files as batches.

    paths: files, folders, globs, `-` for standard input, fsspec URLs; .zst .gz .xz .bz2, .tar and .jsonl are opened.
    seq_len, n_future: inputs a row, and how many ids beyond each it holds.
    seed: of the order.  shuffle permutes the files of each epoch, and the rows within blocks of 8 MiB; without it
        rows come as the files lie.
    epochs: passes over the files; None for a stream without end.  A finite one ends with a padded row and with a batch
        that may be smaller.
    split, valid_fraction: "train" and "valid" share out the documents, by a hash of file name and document number that
        does not depend on the seed; documents above 256 KiB are shared out in sections of that size.
    decompress: False reads every file as it lies, as one document.
    on_corrupt: "error" raises at a damaged input; "skip" leaves out the rest of that file, and counts it in `skipped`.
    rank, world_size: this process gets every world_size-th row, of the same order on all.  A loader with w workers a
        rank passes rank * w + worker and world_size * w.
    cursor: a batch's cursor, to go on behind that batch.
    prefetch: how many times the reading thread may be ahead, 1 MiB or one batch each; 0 reads without a thread.
    pin_memory: batches in page-locked memory, for CUDA.

    UserError if an argument is wrong or the files are unusable.
    """
    _check_choices(split=(split, get_args(Split)), on_corrupt=(on_corrupt, get_args(OnCorrupt)))
    _check_range("seq_len", seq_len, 1)
    _check_range("batch_size", batch_size, 1)
    _check_range("n_future", n_future, 1, MAX_FUTURE)
    _check_range("epochs", 1 if epochs is None else epochs, 1)
    _check_range("prefetch", prefetch, 0)
    _check_range("world_size", world_size, 1)
    _check_range("rank", rank, 0, world_size - 1)
    _check_range("valid_fraction", valid_fraction, 0, 1)
    if pin_memory and not torch.cuda.is_available():
        raise UserError("pin_memory needs a CUDA device and there is none; leave it out")
    damages = Damages(on_corrupt)
    sources = find([paths] if isinstance(paths, str | os.PathLike) else paths, damages)
    if (epochs != 1 or cursor is not None) and any(source.name == STANDARD_INPUT for source in sources):
        raise UserError("- (standard input) can be read only once; save it to a file to read more epochs or to resume")
    corpus = _Corpus(sources, damages, seed, shuffle, split, valid_fraction, decompress, text_field)
    dealer = _Dealer(
        seq_len, n_future, batch_size, seed if shuffle else None, rank, world_size, pin_memory,
        corpus.fingerprint(seq_len, n_future),
    )  # fmt: skip
    return Stream(dealer.groups(corpus, epochs, cursor), damages, prefetch)


class Stream(Iterator[Batch]):
    """Batches in order, once.  Close it, or leave its `with` block, to stop its thread and close its files early."""

    def __init__(self, groups: Generator[list[Batch], None, None], damages: Damages, prefetch: int) -> None:
        self._groups = _ReadAhead(groups, prefetch) if prefetch else groups
        self._batches = chain.from_iterable(self._groups)
        self._damages = damages

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """(name, reason) of damaged inputs left out since the stream was made, the first 1000 of them."""
        return list(self._damages.listed)

    @property
    def skipped_count(self) -> int:
        """How many damaged inputs were left out since the stream was made; once an epoch each."""
        return self._damages.count

    def __next__(self) -> Batch:
        return next(self._batches)

    def close(self) -> None:
        self._groups.close()
        self._batches = chain()

    def __enter__(self) -> "Stream":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True)
class _Corpus:
    """The files with everything that shapes their id stream."""

    sources: list[Source]
    damages: Damages
    seed: int
    shuffle: bool
    split: Split
    valid_fraction: float
    decompress: bool
    text_field: str

    def fingerprint(self, *row_shape: int) -> str:
        options = [self.seed, self.shuffle, self.split, self.valid_fraction, self.decompress, self.text_field]
        digest = hashlib.blake2b(json.dumps([*row_shape, *options]).encode(), digest_size=8)
        for source in self.sources:
            digest.update(b"\0" + os.fsencode(source.key))
        return digest.hexdigest()

    def tape(self, epochs: int | None, row_width: int) -> Tape:
        """The id stream; an endless one has to be at least a row long."""

        def check_epoch(byte_count: int, id_count: int) -> None:
            if byte_count == 0:
                raise self._emptiness()
            if epochs is None and id_count < row_width:
                raise UserError(
                    f"the corpus has {id_count} ids, less than one row of {row_width} (seq_len + n_future); "
                    "add data or lower seq_len"
                )

        return Tape(self.sources, self._open_pieces, self._order, self.damages, epochs, check_epoch)

    def _open_pieces(self, source: Source) -> Pieces:
        return Pieces(open_documents(source, self.damages, self.text_field, self.decompress), self._keep(source.key))

    def _order(self, epoch: int) -> NDArray[np.int64]:
        count = len(self.sources)
        return _permutation(count, self.seed, _FILES, epoch) if self.shuffle else np.arange(count)

    def _keep(self, key: str) -> Keep | None:
        """Which documents and sections of a file belong to the split; the same under every seed."""
        if self.split == "all":
            return None
        name = os.fsencode(key)
        bound = self.valid_fraction * 2**64
        wants_valid = self.split == "valid"

        def keep(document: int, section: int) -> bool:
            digest = hashlib.blake2b(b"%d %d " % (document, section) + name, digest_size=8).digest()
            return (int.from_bytes(digest, "big") < bound) == wants_valid

        return keep

    def _emptiness(self) -> UserError:
        if self.split == "all":
            skipped = f" once {self.damages.count} damaged inputs are left out" if self.damages.count else ""
            return UserError(f"the corpus holds no byte{skipped}; give it files that do")
        return EmptySplit(
            f"no document of the corpus fell into the split {self.split!r} with valid_fraction {self.valid_fraction}; "
            "give more documents or another fraction"
        )


@dataclass(frozen=True)
class _Dealer:
    """Rows to batches: shuffle each block, take this rank's share, gather."""

    seq_len: int
    n_future: int
    batch_size: int
    shuffle_seed: int | None
    rank: int
    world_size: int
    pin_memory: bool
    corpus: str

    def groups(self, corpus: _Corpus, epochs: int | None, cursor: Cursor | None) -> Generator[list[Batch], None, None]:
        """All batches, some at a time."""
        start, first_row, row = self._resume(cursor)
        tape = corpus.tape(epochs, self.seq_len + self.n_future)
        try:
            tape.start(start)
            yield from self._deal(Packer(tape, self.seq_len, self.n_future, self._block_rows).blocks(first_row), row)
        finally:
            tape.close()

    @property
    def _block_rows(self) -> int:
        size = ORDERED_BLOCK_BYTES if self.shuffle_seed is None else SHUFFLED_BLOCK_BYTES
        return max(1, size // self.seq_len)

    def _resume(self, cursor: Cursor | None) -> tuple[Position, int, int]:
        """Where reading starts, the number of the row there, and the number of the first row wanted."""
        if cursor is None:
            return Position(), 0, 0
        if cursor.corpus != self.corpus:
            raise UserError("the cursor belongs to other files or settings; resume with those of the run that made it")
        start = Position(cursor.epoch, cursor.file, cursor.document, cursor.section, cursor.byte)
        return start, cursor.first_row, cursor.row

    def _deal(self, blocks: Iterator[Block], row: int) -> Generator[list[Batch], None, None]:
        """Full batches block by block; the rows left over at a block's end wait for the next block."""
        size = self.batch_size
        waiting = _Rows.none(self.seq_len + self.n_future)
        cursor: Cursor | None = None
        for block in blocks:
            places, number = self._share(block, row)
            if len(places) == 0:
                continue
            missing = -len(waiting) % size
            waiting = waiting.followed_by(block, places[:missing])
            if len(waiting) == size:
                yield [self._batch(waiting, self._cursor(block, number + (missing - 1) * self.world_size))]
                waiting = _Rows.none(self.seq_len + self.n_future)
            full = missing + max(0, len(places) - missing) // size * size
            if full > missing:
                yield from self._full_batches(block, places[missing:full], number + missing * self.world_size)
            waiting = waiting.followed_by(block, places[full:])
            cursor = self._cursor(block, number + (len(places) - 1) * self.world_size)
        if len(waiting) and cursor:
            yield [self._batch(waiting, cursor)]

    def _full_batches(self, block: Block, places: NDArray[np.int64], number: int) -> Generator[list[Batch], None, None]:
        """Batches of the rows at `places`, the first of which has that number; some at a time, which is cheaper."""
        size = self.batch_size
        count = len(places) // size
        eots = block.eots(places)
        eot_counts = np.bincount(eots[:, 0] // size, minlength=count)
        eots[:, 0] %= size
        eot_parts = self._tensor(eots).split_with_sizes(eot_counts.tolist())
        length_parts = self._tensor(block.lengths(places)).split_with_sizes([size] * count)
        at_once = max(1, GATHER_BYTES // (size * (self.seq_len + self.n_future)))
        for start in range(0, count, at_once):
            group = range(start, min(start + at_once, count))
            octets = self._tensor(block.octets(places[start * size : group.stop * size]))
            cursors = (self._cursor(block, number + ((place + 1) * size - 1) * self.world_size) for place in group)
            parts = octets.split_with_sizes([size] * len(group)), eot_parts[start:], length_parts[start:], cursors
            yield list(map(Batch, *parts))

    def _share(self, block: Block, row: int) -> tuple[NDArray[np.int64], int]:
        """The block's rows that this rank takes, from row number `row` on, and the number of the first of them."""
        begin = max(block.first_row, row)
        begin += (self.rank - begin) % self.world_size
        order = np.arange(len(block))
        if self.shuffle_seed is not None:
            order = _permutation(len(block), self.shuffle_seed, _ROWS, block.first_row)
        return order[begin - block.first_row :: self.world_size], begin

    def _batch(self, rows: "_Rows", cursor: Cursor) -> Batch:
        return Batch(self._tensor(rows.octets), self._tensor(rows.eots), self._tensor(rows.lengths), cursor)

    def _cursor(self, block: Block, number: int) -> Cursor:
        """The cursor behind row `number` of a block: the same on all ranks, so it counts rounds of one row a rank."""
        row = number - number % self.world_size + self.world_size
        start, first_row = block.start, block.first_row
        if row >= first_row + len(block):
            start, first_row = block.following, first_row + len(block)
        return Cursor(start.epoch, start.file, start.document, start.section, start.byte, first_row, row, self.corpus)

    def _tensor(self, array: NDArray[np.generic]) -> Tensor:
        tensor = torch.from_numpy(array)
        return tensor.pin_memory() if self.pin_memory else tensor


@dataclass(frozen=True)
class _Rows:
    """Rows copied out of blocks, as the fields of a batch."""

    octets: NDArray[np.uint8]
    eots: NDArray[np.int64]
    lengths: NDArray[np.int64]

    @classmethod
    def none(cls, width: int) -> "_Rows":
        return cls(np.empty((0, width), np.uint8), np.empty((0, 2), np.int64), np.empty(0, np.int64))

    def __len__(self) -> int:
        return len(self.lengths)

    def followed_by(self, block: Block, places: NDArray[np.int64]) -> "_Rows":
        if len(places) == 0:
            return self
        return _Rows(
            np.concatenate([self.octets, block.octets(places)]),
            np.concatenate([self.eots, block.eots(places) + np.array([len(self), 0])]),
            np.concatenate([self.lengths, block.lengths(places)]),
        )


_FILES, _ROWS = 0, 1


def _permutation(count: int, seed: int, purpose: int, number: int) -> NDArray[np.int64]:
    """A random order.  Only such parts of numpy are used as keep their output from version to version (NEP 19).

    Sorting 16-bit keys is 8 times as fast as sorting 64-bit ones; the few that are equal keep their order.
    """
    bits = np.random.PCG64(np.random.SeedSequence([seed, purpose, number])).random_raw(-(-count // 4))
    return np.argsort(bits.astype("<u8").view("<u2")[:count], kind="stable")


@dataclass(frozen=True, slots=True)
class _End:
    """The last thing that the reading thread hands over."""

    error: BaseException | None


class _ReadAhead:
    """Runs a generator in a thread, at most `depth` items ahead."""

    def __init__(self, items: Generator[list[Batch], None, None], depth: int) -> None:
        self._queue: _Handover = queue.Queue(depth)
        self._ended = False
        stop = threading.Event()
        # The thread must not refer to this object, or it would never be collected and the thread never stop.
        thread = threading.Thread(target=_read, args=(items, self._queue, stop), name="bytemtp-stream", daemon=True)
        self.close = weakref.finalize(self, _stop, thread, self._queue, stop)
        thread.start()

    def __iter__(self) -> "_ReadAhead":
        return self

    def __next__(self) -> list[Batch]:
        if self._ended or not self.close.alive:
            raise StopIteration
        item = self._queue.get()
        if isinstance(item, _End):
            self._ended = True
            raise item.error or StopIteration
        return item


_Handover = queue.Queue[list[Batch] | _End]


def _read(items: Generator[list[Batch], None, None], handover: _Handover, stop: threading.Event) -> None:
    error: BaseException | None = None
    try:
        for item in items:
            handover.put(item)
            if stop.is_set():
                break
        items.close()
    except BaseException as raised:  # noqa: BLE001 - whatever it is, it belongs to the thread that asks for batches
        error = raised
    handover.put(_End(error))


def _stop(thread: threading.Thread, handover: _Handover, stop: threading.Event) -> None:
    """End the reading thread.  One blocked on standard input cannot be woken; as a daemon it dies with the program."""
    stop.set()
    deadline = time.monotonic() + STOP_SECONDS
    while thread.is_alive() and time.monotonic() < deadline:
        while not handover.empty():
            handover.get_nowait()
        thread.join(0.01)


def _check_choices(**choices: tuple[str, tuple[str, ...]]) -> None:
    for name, (value, allowed) in choices.items():
        if value not in allowed:
            raise UserError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}")


def _check_range(name: str, value: int | float, least: int, most: int | float = inf) -> None:
    if not least <= value <= most:
        raise UserError(f"{name} is {value}; it must be at least {least}" + (f", at most {most}" if most < inf else ""))
