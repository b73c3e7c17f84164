"""The data stream: files in, batches of bytes out.  Memory is bounded, order exact, any batch can be resumed from.

    for batch in bytemtp.stream(["corpus.tar.zst"], seq_len=512, batch_size=8, seed=0):
        batch.ids            # int64 [b, s + n]; 0-255 bytes, 256 end of text
        batch.document_ids   # int32 [b, s + n]; where they differ, attention and targets must not cross
        batch.cursor         # give it to stream(..., cursor=) to go on with the next batch

sources.py finds files, compression.py decodes them, documents.py cuts them into documents, rows.py into groups of rows.
Here the rows of each group are shuffled, dealt to ranks, gathered into batches and read ahead by a thread.

Try:  python -c "import bytemtp; print(next(bytemtp.stream('README.md', seq_len=64)).ids)"
"""

import os
import queue
import sys
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from math import ceil
from typing import get_args

import numpy as np
import torch
from jaxtyping import Int32, Int64, UInt8
from numpy.typing import NDArray
from torch import Tensor

from bytemtp.common.checks import Check, checked, choice, instance, numbers, optional, share, texts, whole
from bytemtp.common.errors import UserError
from bytemtp.common.settings import MAX_FUTURE, MAX_SWEEPS, DataFormat, check_weights
from bytemtp.common.vocab import EOT
from bytemtp.data.compression import format_of
from bytemtp.data.documents import Reading
from bytemtp.data.leave_out import LeaveOut, held_out_paths
from bytemtp.data.rows import ROWS, IdStream, Packer, Position, RowGroup, Split, permutation
from bytemtp.data.sources import STANDARD_INPUT, OnCorrupt, SkipLog, Source, find_each

SHUFFLED_GROUP_BYTES = 1 << 23
ORDERED_GROUP_BYTES = 1 << 20
STOP_SECONDS = 2.0
FILES_A_GROUP = 16
"""A row group mixes well if it has rows of so many files, each of no more than its share."""
TEXT_IN_COMPRESSED = 4
"""Bytes of text in a byte of a compressed file, roughly."""


@dataclass(frozen=True, slots=True)
class Cursor:
    """A place between two batches.  `Cursor(**json.loads(json.dumps(dataclasses.asdict(cursor))))` is the same one.

    It is the same on every rank, and holds under any batch_size, world_size and prefetch; everything else that shapes
    the rows must be as it was, which `corpus` checks.
    """

    epoch: int = 0
    file: int = 0
    """place in the epoch's order of files"""
    document: int = -1
    section: int = 0
    byte: int = 0
    """the group of rows that has the next row starts here"""
    first_row: int = 0
    """number of that group's first row, counted over the whole stream and all ranks"""
    row: int = 0
    """number of the next row"""
    corpus: str = ""
    """fingerprint of the file names and of the settings that shape the rows; empty for any"""

    def next_epoch(self) -> "Cursor":
        """The start of the epoch after this one, of whatever files there are then."""
        return Cursor(self.epoch + 1, first_row=self.row, row=self.row)

    @property
    def position(self) -> Position:
        """Where the group starts."""
        return Position(self.epoch, self.file, self.document, self.section, self.byte)


@dataclass(frozen=True, slots=True)
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
        ids.index_put_(tuple(self.eots.T), ids.new_full((), EOT))  # for `ids[...] = EOT` CUDA waits
        return ids.masked_fill_(self._padding, EOT)

    @property
    def document_ids(self) -> Int32[Tensor, "b s_n"]:
        """How many end-of-text ids the row has up to here; one belongs to the document it opens.  -1 in padding."""
        boundaries = torch.zeros(self.octets.shape, dtype=torch.int32, device=self.octets.device)
        boundaries.index_put_(tuple(self.eots.T), boundaries.new_ones(()))
        return boundaries.cumsum(dim=1, dtype=torch.int32).masked_fill_(self._padding, -1)

    def to(self, device: torch.device | str) -> "Batch":
        """The batch on a device; from pinned memory the copy overlaps with computation."""
        octets, eots, lengths = (part.to(device, non_blocking=True) for part in (self.octets, self.eots, self.lengths))
        return Batch(octets, eots, lengths, self.cursor)

    @property
    def _padding(self) -> Tensor:
        return torch.arange(self.octets.shape[1], device=self.octets.device) >= self.lengths[:, None]


CHECKS: dict[str, Check] = {
    **{name: whole(1) for name in ("seq_len", "batch_size", "world_size")},
    **{name: whole(0) for name in ("seed", "prefetch")},
    "n_future": whole(1, MAX_FUTURE),
    "epochs": optional(whole(1)),
    "split": choice(*get_args(Split)),
    "valid_fraction": share,
    "format": choice(*get_args(DataFormat)),
    "exclude": texts,
    "held_out": texts,
    "weights": numbers,
    "text_field": instance(str, "a text"),
    **{name: instance(bool, "True or False") for name in ("shuffle", "decompress", "pin_memory")},
    "on_corrupt": choice(*get_args(OnCorrupt)),
}
"""Of the arguments of `stream`, but those whose bounds depend on others."""


@checked(CHECKS)
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
    format: DataFormat = "auto",  # noqa: A002 - as the setting is called
    exclude: Sequence[str] = (),
    held_out: Sequence[str] = (),
    sweeps: int = 1,
    weights: Sequence[float] = (),
    on_corrupt: OnCorrupt = "error",
    rank: int = 0,
    world_size: int = 1,
    cursor: Cursor | None = None,
    prefetch: int = 2,
    pin_memory: bool = False,
) -> "Stream":
    """Read files as batches.

    paths: files, folders, globs, `-` for standard input, fsspec URLs; compressed files, archives and .jsonl are opened.
    seq_len, n_future: inputs a row, and how many ids beyond each it holds.
    seed: of the order.  shuffle permutes the files of each epoch, and the rows within groups of 8 MiB; without it
        rows come as the files lie.
    epochs: passes over the files; None for a stream without end.  A finite one ends with a padded row and with a batch
        that may be smaller.
    split, valid_fraction: "train" and "valid" share out the documents, by a hash of file name and document number that
        does not depend on the seed; documents above 256 KiB are shared out in sections of that size.
    decompress: False reads every file as it lies, as one document.
    text_field: of a .jsonl line, the field that holds the document.
    format: what the files are once decompressed, if their names do not say; see `DataConfig`.
    exclude, held_out: patterns, and paths, of what to leave out below paths; litter and runs always are.
    sweeps: how often an epoch goes through the files, each time for another random share of their documents; more mix
        better what lies far apart in large files, and take as much longer to read.
    weights: a number for each of the paths, the largest at least 1: how often an epoch reads its documents.  2.5 is
        twice, and then a random half of them, in the next epoch the other half.
    on_corrupt: "error" raises at a damaged input; "skip" leaves out the rest of that file, and counts it in `skipped`.
    rank, world_size: this process gets every world_size-th row, of the same order on all.  A loader with w workers a
        rank passes rank * w + worker and world_size * w.
    cursor: a batch's cursor, to go on behind that batch.
    prefetch: how many batches the reading thread may be ahead; 0 reads without a thread.
    pin_memory: batches in page-locked memory, for CUDA.

    UserError if an argument is wrong or the files are unusable.
    """
    whole(0, world_size - 1)("rank", rank)
    whole(1, None if shuffle else 1)("sweeps", sweeps)
    if pin_memory and not torch.cuda.is_available():
        raise UserError("pin_memory needs a CUDA device and there is none; leave it out")
    skip_log, reading = SkipLog(on_corrupt), Reading(text_field, decompress, format, tuple(exclude))
    leave_out = replace(reading.leave_out, held_out=held_out_paths(held_out))
    sources, of_each = _weighted(paths, weights, skip_log, leave_out)
    if not (epochs == sweeps == 1 and cursor is None and max(weights, default=1) <= 1):
        _check_not_standard_input(sources)
    ids = IdStream(sources, skip_log, epochs, seed, shuffle, split, valid_fraction, reading, sweeps, of_each)
    batcher = Batcher(ids, seq_len, n_future, batch_size, rank, world_size, pin_memory)
    return Stream(batcher.batches(cursor), ids, prefetch)


def choose_sweeps(sources: list[Source]) -> int:
    """So many sweeps an epoch that rows of the whole corpus, or of many files of it, meet in each row group.

    1 for a corpus that fits a group and for one of many small files, whose order is random anyway; at most 16, since
    each one reads all the files.
    """
    sizes = [source.size * _text_in_a_byte(source.name) for source in sources]
    all_groups = ceil(sum(sizes) / SHUFFLED_GROUP_BYTES)
    spread = ceil(max(sizes) * FILES_A_GROUP / SHUFFLED_GROUP_BYTES)
    return max(1, min(all_groups, spread, MAX_SWEEPS))


def _text_in_a_byte(name: str) -> int:
    compression, container = format_of(name)
    return TEXT_IN_COMPRESSED if compression or container == "zip" else 1


def _check_not_standard_input(sources: list[Source]) -> None:
    if any(source.name == STANDARD_INPUT for source in sources):
        raise UserError("- (standard input) can be read only once; save it to a file to read it again or to resume")


def _weighted(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    weights: Sequence[float],
    skip_log: SkipLog,
    leave_out: LeaveOut,
) -> tuple[list[Source], list[float]]:
    """The files, and the weight of each, which is that of its path; without weights none."""
    by_path = find_each([paths] if isinstance(paths, str | os.PathLike) else paths, skip_log, leave_out)
    check_weights(weights, len(by_path))
    of_each = [weight for weight, sources in zip(weights, by_path, strict=False) for _ in sources]
    return [source for sources in by_path for source in sources], of_each


class Stream(Iterator[Batch]):
    """Batches in order, once.  Close it, or leave its `with` block, to stop its thread and close its files early."""

    def __init__(self, batches: Generator[Batch, None, None], ids: IdStream, prefetch: int) -> None:
        self._batches = _read_ahead(batches, prefetch) if prefetch else batches
        self._ids = ids
        self._skip_log = ids.skip_log

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """(name, reason) of damaged inputs left out since the stream was made, the first 1000 of them."""
        return list(self._skip_log.listed)

    @property
    def skipped_count(self) -> int:
        """How many damaged inputs were left out since the stream was made; once a sweep each."""
        return self._skip_log.count

    @property
    def left_out(self) -> dict[str, int]:
        """How many files and folders were left out since they are no corpus, by name, pattern or kind.

        Members of archives count each time that they are met: in every sweep of every epoch.
        """
        return dict(self._skip_log.left_out)

    def count_epoch(self) -> int:
        """Ids in one epoch, the end-of-text ids included.

        It reads the whole corpus, apart from the batches; what is left out as damaged adds to `skipped`.
        """
        _check_not_standard_input(self._ids.sources)
        once = replace(self._ids, epochs=1)
        # The last item is no id: it marks where the next epoch would start.
        return sum(len(ids.octets) or 1 for ids in once.read(Position(), row_width=1)) - 1

    def __next__(self) -> Batch:
        return next(self._batches)

    def close(self) -> None:
        self._batches.close()

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True)
class Batcher:
    """Rows to batches: shuffle each row group, take this rank's share, gather."""

    ids: IdStream
    seq_len: int
    n_future: int
    batch_size: int
    rank: int
    world_size: int
    pin_memory: bool

    def batches(self, cursor: Cursor | None) -> Generator[Batch, None, None]:
        """All batches from a cursor on.  UserError if it belongs to another stream."""
        corpus = self.ids.fingerprint(self.seq_len, self.n_future)
        if cursor and cursor.corpus not in ("", corpus):
            raise UserError("the cursor belongs to other files or settings; resume with those of the run that made it")
        start = replace(cursor or Cursor(), corpus=corpus)
        group_bytes = SHUFFLED_GROUP_BYTES if self.ids.shuffle else ORDERED_GROUP_BYTES
        packer = Packer(self.ids, self.seq_len, self.n_future, max(1, group_bytes // self.seq_len))
        with closing(packer.groups(start.position, start.first_row)) as groups:
            yield from self._gather(groups, start)

    def _gather(self, groups: Iterator[RowGroup], start: Cursor) -> Iterator[Batch]:
        """The rows left over at a group's end wait for the next group."""
        ids: list[NDArray[np.int16]] = []
        lengths: list[NDArray[np.int64]] = []
        missing = self.batch_size
        after = start
        for group in groups:
            places, number = self._share(group, start.row)
            while len(places):
                taken, places = places[:missing], places[missing:]
                number += len(taken) * self.world_size
                missing -= len(taken)
                ids.append(group.ids[taken])
                lengths.append(group.lengths[taken])
                after = self._cursor(group, number - self.world_size, start)
                if missing == 0:
                    yield self._batch(ids, lengths, after)
                    ids, lengths, missing = [], [], self.batch_size
        if ids:
            yield self._batch(ids, lengths, after)

    def _share(self, group: RowGroup, row: int) -> tuple[NDArray[np.int64], int]:
        """The group's rows that this rank takes, dealt from number `row` on, and the number of the first."""
        count = len(group.ids)
        begin = max(group.first_row, row)
        begin += (self.rank + row - begin) % self.world_size
        order = permutation(count, self.ids.seed, ROWS, group.first_row) if self.ids.shuffle else np.arange(count)
        return order[begin - group.first_row :: self.world_size], begin

    def _cursor(self, group: RowGroup, number: int, start: Cursor) -> Cursor:
        """The cursor behind row `number` of a group: the same on all ranks, so it counts rounds of one row a rank."""
        row = number - (number - start.row) % self.world_size + self.world_size
        end = group.first_row + len(group.ids)
        if row >= end:
            return Cursor(*group.following, first_row=end, row=row, corpus=start.corpus)
        return Cursor(*group.start, first_row=group.first_row, row=row, corpus=start.corpus)

    def _batch(self, ids: list[NDArray[np.int16]], lengths: list[NDArray[np.int64]], cursor: Cursor) -> Batch:
        rows = np.concatenate(ids)
        eots = np.stack(np.divmod(np.flatnonzero(rows == EOT), rows.shape[1]), axis=1)
        octets = rows.astype(np.uint8)  # 256 becomes 0
        return Batch(self._tensor(octets), self._tensor(eots), self._tensor(np.concatenate(lengths)), cursor)

    def _tensor(self, array: NDArray[np.generic]) -> Tensor:
        tensor = torch.from_numpy(array)
        return tensor.pin_memory() if self.pin_memory else tensor


def _read_ahead(batches: Generator[Batch, None, None], depth: int) -> Generator[Batch, None, None]:
    """Run a generator in a thread, at most `depth` batches ahead."""
    # The thread must not refer to this generator, or it would never be collected and the thread never stop.
    handover: queue.SimpleQueue[Batch | BaseException | None] = queue.SimpleQueue()
    room = threading.Semaphore(depth)
    stop = threading.Event()
    thread = threading.Thread(target=_read, args=(batches, handover, room, stop), name="bytemtp-stream", daemon=True)
    thread.start()
    try:
        while isinstance(item := handover.get(), Batch):
            room.release()
            yield item
        if item is not None:
            raise item
    finally:
        # A thread blocked on standard input cannot be woken; as a daemon it dies with the program.
        if not sys.is_finalizing():
            stop.set()
            room.release()
            thread.join(STOP_SECONDS)


def _read(
    batches: Generator[Batch, None, None],
    handover: "queue.SimpleQueue[Batch | BaseException | None]",
    room: threading.Semaphore,
    stop: threading.Event,
) -> None:
    """Hand over all batches, and last the error that ended them, or None."""
    error: BaseException | None = None
    try:
        with closing(batches):
            for batch in batches:
                room.acquire()
                if stop.is_set():
                    break
                handover.put(batch)
    except BaseException as raised:  # noqa: BLE001 - whatever it is, it belongs to the thread that asks for batches
        error = raised
    handover.put(error)
