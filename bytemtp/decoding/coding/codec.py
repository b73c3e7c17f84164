"""`compress` and `decompress`: decoding in which a stream decides each byte, in place of the likeliest one.

An arithmetic coder needs head 1's law of each byte, given those before.  Compressing, all bytes are known, and a pass
gives the laws of many.  Decompressing, they are known one by one; so the far heads draft the next bytes, or they are
copied from the text so far, a pass gives head 1's laws behind each draft, and the decoder reads on as long as its bytes
are the drafted ones.  Both are the verify loop: all that differs is what decides (laws.py) and what drafts.

Both sides must compute the same laws to the last bit:

- The native engine does, however many ids a pass has.  So the drafts are free: the file's own bytes in compressing,
  WIDE ids a pass; in decompressing those of any mode, "ar" being a byte a pass, "auto" what is fastest here.
- Tensor operations round by the shape of a pass.  So compressing repeats the passes of decompressing, with the same
  drafts by the heads, and takes as long.

Source: Deletang et al. 2023, "Language Modeling Is Compression" (arXiv 2309.10668).
Try:  python -m bytemtp.compress RUN FILE --out FILE.bmtp
Shapes:  c places, v vocabulary.
"""

import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal
from zlib import crc32

import numpy as np
import torch
from jaxtyping import Float32

from bytemtp.common.checks import checked, octets
from bytemtp.common.errors import UserError
from bytemtp.decoding.chains import CopiedChain
from bytemtp.decoding.coding.container import Block, Header, header_for, pack, unpack
from bytemtp.decoding.coding.laws import Damaged, Reading, Stream, Writing, constriction, counts_of
from bytemtp.decoding.copies import Copies
from bytemtp.decoding.engines.native.engine import NativeEngine
from bytemtp.decoding.engines.native.library import library
from bytemtp.decoding.engines.select import engine_kind
from bytemtp.decoding.generate import MODEL, EngineName, Options
from bytemtp.decoding.loop import Drafting, VerifyLoop
from bytemtp.decoding.row import Row
from bytemtp.decoding.sampling import Rule
from bytemtp.model.model import ByteMTP

WIDE = 64
"""Ids of a row in a pass of compressing."""
ChainMode = Literal["ar", "speculative", "copy", "auto"]
"""Those of `Options.mode` in which drafts stand one behind another, and are no other model's."""
Tell = Callable[[int], object]
"""Is told of so many more bytes done."""


@dataclass(frozen=True)
class Coded:
    """What was made, and in how many passes."""

    data: bytes
    passes: int
    """of all segments together"""


@checked({"model": MODEL, "data": octets})
def compress(model: ByteMTP, data: bytes) -> bytes:
    """Any bytes as fewer, from which `decompress` makes them again with the same model.

    UserError without constriction, and for a model whose logits are not finite.
    """
    return encode(model, data).data


@checked({"model": MODEL, "compressed": octets})
def decompress(model: ByteMTP, compressed: bytes) -> bytes:
    """The bytes that `compress` was given.

    UserError for what it did not make, for another model, and where this machine's arithmetic is not that of the
    machine that compressed: never other bytes.
    """
    return decode(model, compressed).data


def encode(model: ByteMTP, data: bytes, tell: Tell = lambda _: None) -> Coded:
    """See `compress`."""
    arithmetic = "native" if engine_kind("auto", model) is NativeEngine else model.device.type
    header = header_for(len(data), arithmetic, digest_of(model))
    blocks, passes, source = [], 0, io.BytesIO(data)
    for sizes in header.blocks():
        segments = [source.read(size) for size in sizes]
        streams = [Writing(segment) for segment in segments]
        if arithmetic == "native":
            loop = CodingLoop(model, streams, sizes, Drafting(copied=WIDE - 1), "native")
            for tree, segment in zip(loop.trees, segments, strict=True):
                assert isinstance(tree, CopiedChain)
                tree.copies = Known(segment)
        else:
            loop = CodingLoop(model, streams, sizes, by_heads(model), "torch")
        with repeatable(arithmetic):
            loop.code(tell)
        blocks.append(Block(crc32(b"".join(segments)), [stream.stream for stream in streams]))
        passes += loop.row_passes
        del loop  # its caches are the next one's
    return Coded(pack(header, blocks), passes)


def decode(
    model: ByteMTP,
    compressed: bytes,
    tell: Tell = lambda _: None,
    *,
    mode: ChainMode = "auto",
    name: str = "the compressed data",
) -> Coded:
    """See `decompress`.  mode: how bytes are drafted where that is free, which changes the speed alone; name: what
    errors call the data."""
    header, blocks = unpack(compressed, name)
    check_model(model, header, name)
    is_native = header.arithmetic == "native"
    if is_native:
        try:
            library()
        except UserError as error:
            reason = str(error).partition("; ")[0]
            raise UserError(f"{name} was compressed by the native engine, which does not work here: {reason}") from None
    constriction()  # if it is missing, that is said before costs are measured
    engine: EngineName = "native" if is_native else "torch"
    drafting = Options(mode=mode, engine=engine).drafting(model, header.rows) if is_native else by_heads(model)
    texts, passes = [], 0
    for sizes, block in zip(header.blocks(), blocks, strict=True):
        loop = CodingLoop(model, [Reading(stream) for stream in block.streams], sizes, drafting, engine)
        try:
            with repeatable(header.arithmetic):
                text = loop.code(tell)
        except Damaged:
            text = b""
        if crc32(text) != block.checksum or len(text) != sum(sizes):
            raise UserError(
                f"{name} does not come out as it went in: the model computes other numbers here; decompress on the "
                "kind of machine that compressed it, with the same versions of bytemtp, PyTorch, NumPy and C++ compiler"
            )
        texts.append(text)
        passes += loop.row_passes
        del loop  # its caches are the next one's
    return Coded(b"".join(texts), passes)


@contextmanager
def repeatable(arithmetic: str) -> Iterator[None]:
    """On one thread, where the order of a CPU's sums hangs on how many there are; the native engine's does not."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if arithmetic == "cpu" else threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def by_heads(model: ByteMTP) -> Drafting:
    """Drafts that follow from the text alone, whatever the machine."""
    return Options(mode="speculative").drafting(model, 1)


class CodingLoop(VerifyLoop):
    """The loop over some segments, with streams in the place of head 1's choice; each begins a document."""

    def __init__(
        self, model: ByteMTP, streams: Sequence[Stream], sizes: Sequence[int], drafting: Drafting, engine: EngineName
    ) -> None:
        rows = [Row(b"", number, size, Rule(), 0, (), False) for number, size in enumerate(sizes)]
        super().__init__(model, rows, drafting, engine=engine)
        self.streams = streams

    def code(self, tell: Tell) -> bytes:
        """All of it; returns the text."""
        done = 0
        for _ in self.passes():
            before, done = done, sum(len(row.data) for row in self.rows)
            tell(done - before)
        return b"".join(row.data for row in self.rows)

    @property
    def row_passes(self) -> int:
        return sum(row.passes for row in self.rows)

    def _decide(self, slot: int, logits: Float32[np.ndarray, "c v"]) -> list[int]:
        drafts = [draft.id for draft in self.trees[slot].drafts]
        return list(range(self._keep(slot, self.streams[slot].decide(counts_of(logits), drafts))))


class Known(Copies):
    """ "Copies" from the text that is being coded, which are always right."""

    def __init__(self, text: bytes) -> None:
        self.known, self.place = text, 0

    def extend(self, data: bytes) -> None:
        self.place += len(data)

    def continuation(self, count: int) -> tuple[int, bytes]:
        return count, self.known[self.place : self.place + count]


def check_model(model: ByteMTP, header: Header, name: str) -> None:
    """UserError unless it is the one that compressed, on the same kind of device."""
    device = "cpu" if header.arithmetic == "native" else header.arithmetic
    if model.device.type != device:
        raise UserError(f"{name} was compressed on {device}, but the model is on {model.device}; move it there")
    if digest_of(model) != header.digest:
        raise UserError(
            f"{name} was compressed with another model, or one used in another dtype; give the run, or its step "
            "folder, that compressed it"
        )


def digest_of(model: ByteMTP) -> bytes:
    """8 bytes of SHA-256 of all that laws and drafts follow from: shape, window, arithmetic and weights."""
    config = model.config
    shape = config.topology, config.n_future, config.attention_heads, config.key_value_heads, config.rope_theta
    digest = hashlib.sha256(repr((shape, model.reach, str(model.dtype))).encode())
    for name, weight in sorted(model.state_dict().items()):
        digest.update(f"{name} {weight.dtype} {list(weight.shape)}".encode())
        digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.digest()[:8]
