"""Bits per byte of a model on files it has not seen, beside what zstd -19 and xz -9 need for the same bytes.

Bits per byte is the length of the shortest lossless code that the model allows, so it can be compared with a compressor
and between models of any vocabulary.  What exactly is counted:

- Every byte of every document, once: head 1 predicts the first byte of a document from the end-of-text id before it.
  Head i reaches back i - 1 bytes less far, so it leaves out the first i - 1 bytes of each document.
- Ends of documents are predicted, too, but counted apart (`bits_per_document_end`): the compressors get the documents
  joined, and are not told where they end.
- The model reads windows as long as the rows it has learned and scores the last `stride` positions of each, half by
  default.  So a byte has at least seq_len - stride bytes of context, as far as its document goes back; that is also why
  the result is a little better than the validation in training, where a window's first byte has none.  Otherwise both
  count alike.

Of several processes (torchrun) each reads everything and scores every N-th pass of windows.  Losses are added up in the
order of the windows, whoever has scored them, so that the numbers are those of one process to the last bit.

Try:  python -m bytemtp.evaluate bpb RUN PATH
"""

import lzma
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import torch
import torch.nn.functional as F
import tyro
import zstandard
from jaxtyping import Int
from torch import Tensor

from bytemtp.common.errors import UserError
from bytemtp.common.files import check_output, write_json
from bytemtp.common.runtime import byte_progress, in_a_row, log, pick_device
from bytemtp.common.settings import DataConfig
from bytemtp.common.vocab import EOT
from bytemtp.data.sources import as_text
from bytemtp.data.stream import stream
from bytemtp.model.checkpoint import load_model, settings_of
from bytemtp.model.int8 import in_int8
from bytemtp.model.model import ByteMTP
from bytemtp.training.distributed import ALONE, World
from bytemtp.training.loss import HeadLosses, evaluate
from bytemtp.training.progress import finite

T = TypeVar("T")

PADDING = -1
"""Id in a window before the corpus begins and after it ends."""
CHUNK_IDS = 1 << 16
"""Ids taken from the data stream at a time."""
IDS_A_PASS = 1 << 13
"""Positions in one forward pass of the model, at most (but always one window or text)."""


@dataclass(frozen=True)
class Command:
    """Bits per byte of a run on files, for each head, beside zstd -19 and xz -9 on the same bytes.

    An example:

        python -m bytemtp.evaluate bpb runs/demo heldout.tar.zst --json bpb.json

    Files are opened as the run's data settings say (RUN/config.toml): .zst .gz .xz .bz2 .tar and .jsonl are
    decompressed unless it was trained with data.decompress false.  Every byte counts once; ends of documents are
    counted apart.  The compressors read all documents joined; xz -9 takes up to 700 MB of memory for that.  With
    `torchrun --nproc-per-node N -m bytemtp.evaluate bpb ...` N processes share the work, and the numbers are the same.
    """

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """folder of the run, or one of its checkpoints/step-* folders"""
    paths: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="PATH [PATH ...]")]
    """what to score: files, folders, globs, - for standard input, fsspec URLs"""
    json: tyro.conf.DisallowNone[Path | None] = None
    """also write the numbers to this file"""
    stride: tyro.conf.DisallowNone[int | None] = None
    """bytes scored in each window, the rest is context: fewer is slower and a little better; half unless given"""
    text_field: str = ""
    """of a .jsonl file's lines: where the text is; as in the run's training unless given"""
    contexts: tuple[int, ...] = ()
    """also score in windows of these lengths (--contexts 64 256 512), to see what a longer context is worth"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N"""
    dtype: Literal["float32", "bfloat16", "int8"] = "float32"
    """of the matrix products (int8: those in layers).  float32 gives the same number on every processor, but for
    rounding"""

    def main(self, world: World = ALONE) -> None:
        if not self.paths:
            raise UserError("no PATH given; name the files to score, or - for standard input")
        if any(length < 1 for length in self.contexts):
            raise UserError(f"contexts is {self.contexts}; each must be at least 1")
        if self.contexts and "-" in self.paths:
            raise UserError("--contexts reads the files again, and standard input can be read only once; name a file")
        if world.size > 1 and "-" in self.paths:
            raise UserError(f"{world.size} processes cannot all read standard input; name a file")
        world.share(lambda: check_output(self.json))
        data = settings_of(self.run).data
        data = replace(data, text_field=self.text_field or data.text_field)
        device = pick_device(self.device)
        world.check_device(device.value)
        model = load_model(self.run, device.value)
        model = in_int8(model) if self.dtype == "int8" else model
        attention = model.use(dtype=torch.bfloat16 if self.dtype == "bfloat16" else torch.float32)
        log(f"device: {device}  dtype: {self.dtype}  attention: {attention}")
        seq_len = model.trained_length
        stride = max(1, seq_len // 2) if self.stride is None else self.stride
        score = bits_per_byte(model, self.paths, seq_len=seq_len, stride=stride, data=data, world=world)
        contexts = by_context(model, self.paths, self.contexts, data, world)
        if world.is_first:
            self._tell(score, contexts)

    def _tell(self, score: "Score", contexts: dict[int, float]) -> None:
        print("\n".join([str(score), *(f"context {length:<6} {bits:.4f}" for length, bits in contexts.items())]))
        if self.json is not None:
            record = score.as_dict() | {"dtype": self.dtype} | ({"bpb_by_context": contexts} if contexts else {})
            write_json(self.json, record)


@dataclass(frozen=True)
class Score:
    """What a model and the compressors need for a corpus."""

    losses: HeadLosses
    """by head; the byte counts of head 1 are all bytes of the corpus"""
    compressed: dict[str, int]
    """size of the documents, joined and compressed, by compressor"""

    @property
    def byte_count(self) -> int:
        return int(self.losses.byte_counts[0])

    def as_dict(self) -> dict[str, Any]:
        """The numbers by name; each compressor's is in bits per byte.  A head without any byte to predict has None."""
        per_head = finite(self.losses.bits_per_byte)
        return {
            "bytes": self.byte_count,
            "documents": int(self.losses.end_counts[0]),
            "bpb": per_head[0],
            "bpb_per_head": per_head,
            "accepted_per_head": finite(self.losses.acceptance),
            "bits_per_document_end": self.losses.bits_per_end[0],
            "bpb_with_ends": self.losses.bits_per_target[0],
            **{name: 8 * size / self.byte_count for name, size in self.compressed.items()},
            "compressed_bytes": self.compressed,
        }

    def __str__(self) -> str:
        record = self.as_dict()
        heads, accepted = in_a_row(record["bpb_per_head"]), in_a_row(record["accepted_per_head"])
        rows = [
            ("bytes", f"{self.byte_count:,}"),
            ("documents", f"{record['documents']:,}"),
            ("bpb", f"{record['bpb']:.4f}"),
            *((name, f"{record[name]:.4f}  ({size:,} bytes)") for name, size in self.compressed.items()),
            ("bpb_per_head", heads),
            *([("accepted", f"{accepted}, of drafts at temperature 1")] if self.losses.drafts.any() else []),
            ("document ends", f"{record['bits_per_document_end']:.2f} bits each, not part of bpb"),
            ("bpb_with_ends", f"{record['bpb_with_ends']:.4f}"),
        ]
        return "\n".join(f"{name:14} {value}" for name, value in rows)


def bits_per_byte(
    model: ByteMTP,
    paths: Sequence[str],
    *,
    seq_len: int,
    stride: int,
    data: DataConfig | None = None,
    world: World = ALONE,
) -> Score:
    """Score every byte of `paths` in windows of `seq_len`, of which the last `stride` positions count.

    The order of the documents does not matter but for the compressors: nothing is remembered from one to the next.
    world: the processes that call this together and share the windows; all get the same score.
    UserError as from `bytemtp.stream` for paths that cannot be read, for a stride outside 1 to seq_len, and for a
    model whose loss is not finite.
    """
    if not 1 <= stride <= seq_len:
        raise UserError(f"stride is {stride}; it must be from 1 to the window's length, {seq_len}")
    compressors = Compressors(world)
    ids = compressors.watch(read_ids(paths, data or DataConfig()))
    return Score(_score(model, ids, seq_len, stride, world), compressors.sizes())


def by_context(
    model: ByteMTP, paths: Sequence[str], lengths: Sequence[int], data: DataConfig, world: World = ALONE
) -> dict[int, float]:
    """Head 1's bits per byte in windows of each of `lengths`, half of a window counted: what a long context is worth.

    UserError as from `bits_per_byte`.
    """
    scores = {length: _score(model, read_ids(paths, data), length, max(1, length // 2), world) for length in lengths}
    return {length: losses.bits_per_byte[0] for length, losses in scores.items()}


def _score(model: ByteMTP, ids: Iterator[Int[Tensor, " k"]], seq_len: int, stride: int, world: World) -> HeadLosses:
    """Losses of all bytes and ends of documents.  UserError for a loss that is not finite."""
    total = none = HeadLosses.none(model.config.n_future, model.device)
    passes = batched(windows(ids, seq_len, stride, model.config.n_future), max(1, IDS_A_PASS // seq_len))
    with byte_progress("scored") as bar:
        for of_ranks in batched(passes, world.size):  # the last time there is nothing left for some
            has_rows = world.rank < len(of_ranks)
            mine = score_windows(model, torch.stack(of_ranks[world.rank]), stride) if has_rows else none
            for new in _of_each(mine, world):
                total = total + new
                bar.update(int(new.byte_counts[0]))
    if not math.isfinite(total.mean):
        raise UserError(f"the loss of the model is {total.mean}: its weights are damaged; use another checkpoint")
    return total


def _of_each(mine: HeadLosses, world: World) -> list[HeadLosses]:
    """The losses of every process, in order."""
    fields = {name: world.each(values) for name, values in vars(mine).items()}
    return [HeadLosses(**{name: values[rank] for name, values in fields.items()}) for rank in range(world.size)]


def read_ids(paths: Sequence[str], data: DataConfig) -> Iterator[Int[Tensor, " k"]]:
    """The id stream of a corpus, in chunks: bytes, and after each document an end-of-text id."""
    overlap = 1
    with stream(
        paths,
        seq_len=CHUNK_IDS,
        batch_size=1,
        n_future=overlap,
        shuffle=False,
        **data.reading(),
    ) as rows:
        seen = 0
        for batch in rows:
            yield batch.ids[0, seen : batch.lengths[0]]
            seen = overlap  # each later row begins with the ids that the one before it ended with
        for name, reason in rows.skipped:
            log(f"left out: {name}: {reason}")
        if rows.left_out:
            log(f"left out: {as_text(rows.left_out)}")


def beginnings(paths: Sequence[str], count: int, size: int, data: DataConfig) -> list[bytes]:
    """The first `size` bytes of the first `count` documents.  UserError if there is no document."""
    found: list[bytes] = []
    document = bytearray()
    for chunk in read_ids(paths, data):
        for id_ in chunk.tolist():
            if id_ == EOT:
                found.append(bytes(document))
                document.clear()
            elif len(document) < size:
                document.append(id_)
            if len(found) + (len(document) == size) == count:
                return [*found, bytes(document)][:count]
    if not found:
        raise UserError(f"{', '.join(paths)}: no document to continue")
    return found


def windows(chunks: Iterator[Int[Tensor, " k"]], seq_len: int, stride: int, n: int) -> Iterator[Int[Tensor, " s_n"]]:
    """Cut an id stream, led by an end-of-text id, into windows of seq_len + n ids that advance by `stride`.

    The last `stride` of a window's seq_len inputs are new.  The first window is filled up in front, the last ones
    behind, with PADDING, so that all windows are alike.
    """
    context = seq_len - stride
    ids = torch.cat([torch.full((context,), PADDING), torch.tensor([EOT])])
    for chunk in chunks:
        ids = torch.cat([ids, chunk])
        while len(ids) >= seq_len + n:
            yield ids[: seq_len + n]
            ids = ids[stride:]
    while len(ids) > context + 1:  # the first new input has a target
        ids_here = ids[: seq_len + n]
        yield F.pad(ids_here, (0, seq_len + n - len(ids_here)), value=PADDING)
        ids = ids[stride:]


def score_windows(model: ByteMTP, rows: Int[Tensor, "b s_n"], stride: int) -> HeadLosses:
    """Losses of the last `stride` inputs of each window."""
    return evaluate(model, *unpadded(rows.to(model.device)), last=stride)


def unpadded(rows: Int[Tensor, "b s_n"]) -> tuple[Int[Tensor, "b s_n"], Int[Tensor, "b s_n"]]:
    """Ids and document ids of windows; EOT stands in for padding."""
    ids = rows.masked_fill(rows == PADDING, EOT)
    return ids, (ids == EOT).cumsum(1).masked_fill(rows == PADDING, PADDING)


COMPRESSORS: dict[str, Callable[[], Any]] = {
    "zstd-19": lambda: zstandard.ZstdCompressor(level=19).compressobj(),
    "xz-9": lambda: lzma.LZMACompressor(preset=9),
}


class Compressors:
    """Sizes of what passes by, compressed; nothing is kept but the sizes.  Several processes share the compressors."""

    def __init__(self, world: World = ALONE) -> None:
        dealt = enumerate(COMPRESSORS.items())
        self._world = world
        self._compressors = {name: make() for i, (name, make) in dealt if i % world.size == world.rank}
        self._sizes = dict.fromkeys(COMPRESSORS, 0)

    def watch(self, chunks: Iterator[Int[Tensor, " k"]]) -> Iterator[Int[Tensor, " k"]]:
        """The same chunks, their bytes counted in."""
        for chunk in chunks:
            octets = chunk[chunk != EOT].to(torch.uint8).numpy().tobytes()
            for name, compressor in self._compressors.items():
                self._sizes[name] += len(compressor.compress(octets))
            yield chunk

    def sizes(self) -> dict[str, int]:
        """To be called once, at the end."""
        for name, compressor in self._compressors.items():
            self._sizes[name] += len(compressor.flush())
        return {name: int(self._world.sum(torch.tensor(size))) for name, size in self._sizes.items()}


def batched(items: Iterator[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items; the last one may be shorter."""
    while batch := list(islice(items, size)):
        yield batch
