"""`NativeEngine`: what `TensorEngine` does, on CPU cores, one compiled call for all layers of a pass.

In float32, or with the matrices in bfloat16 or int8: then each number that is multiplied with one is rounded, too, and
all else, caches included, is float32.

Only real ids are computed: rows of a batch may have different numbers of them, or none.  step.cpp says what is compiled
and why no bit of its results depends on what else is computed in the same pass.

Try:  bytemtp.generate(model, b"def ", 100, mode="speculative", engine="native")
Shapes:  b rows, c ids of the chunk, t ids of all rows one after another, q last ids of the rows, d width, v vocabulary,
h drafting heads, n length of the id buffer.
"""

import math
import weakref
from collections.abc import Iterator
from ctypes import POINTER, Array, addressof, byref, cast, pointer, sizeof
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

import numpy as np
import torch
from jaxtyping import Float32, Int, UInt8

from bytemtp.common.vocab import PADDED_VOCAB_SIZE, VOCAB_SIZE
from bytemtp.decoding.engines.engine import Branches
from bytemtp.decoding.engines.native.library import (
    Chunk,
    Layer,
    Loop,
    LoopRow,
    Pass,
    Shape,
    Tokens,
    address,
    library,
    team,
)
from bytemtp.decoding.engines.native.memory import CacheShape
from bytemtp.decoding.engines.native.weights import PACKED, Packed, packed
from bytemtp.decoding.engines.ring import moves, round_up, slots_for
from bytemtp.model.heads import DeepSeekModule
from bytemtp.model.layers import Block, rope_at
from bytemtp.model.model import ByteMTP

STRETCH = 1024
"""Positions whose angles are made at a time."""


def supports(model: ByteMTP) -> bool:
    """Whether it can run the model: float32 weights on the CPU, used in float32, bfloat16 or int8, a width that is a
    multiple of 16, whatever the processor."""
    plain = model.embed.weight.dtype == torch.float32 and model.dtype in PACKED
    return plain and model.device.type == "cpu" and model.config.dim % 16 == 0


@lru_cache(maxsize=16)
def stretch_of_angles(number: int, head_dim: int, theta: float) -> Float32[np.ndarray, "s 2 k"]:
    """Cosines and sines of so many positions.

    Kept, because torch's threads, which make them, go on turning for milliseconds and would be in the way of ours.
    """
    positions = torch.arange(STRETCH * number, STRETCH * (number + 1))
    return torch.cat(rope_at(positions, head_dim, theta, torch.float32), 1).numpy()


@lru_cache(maxsize=2)
def angles(first: int, last: int, head_dim: int, theta: float) -> tuple[Float32[np.ndarray, "n 2 k"], int]:
    """Cosines and sines of all positions from one stretch to another; and the address where those of position 0 lie, or
    would lie."""
    stretches = [stretch_of_angles(number, head_dim, theta) for number in range(first, last + 1)]
    table = stretches[0] if first == last else np.concatenate(stretches)
    return table, table.ctypes.data - first * STRETCH * table.strides[0]


@dataclass(frozen=True)
class FlatBatch:
    """The ids of all rows, one after another, as step.cpp takes them."""

    row: Int[np.ndarray, " t"]
    place: Int[np.ndarray, " t"]
    """in its row's chunk"""
    slot: Int[np.ndarray, " t"]
    """counted from the text's start"""
    index: Int[np.ndarray, " t"]
    """0, 1, 2, ..."""
    last: Int[np.ndarray, " q"]
    """of each row that has ids, the last"""
    structure: Tokens
    arrays: tuple[object, ...]
    """what `structure` points to, kept alive"""


def scattered(
    x: Float32[np.ndarray, "q *k"], shape: tuple[int, ...], *places: Int[np.ndarray, " q"]
) -> Float32[np.ndarray, "..."]:
    """x at its places, which are in order, in an array of zeros."""
    if len(x) == math.prod(shape):
        return x.reshape(*shape, *x.shape[1:])
    out = np.zeros((*shape, *x.shape[1:]), np.float32)
    out[places] = x
    return out


def without_padding(logits: Float32[np.ndarray, "*b v"]) -> Float32[np.ndarray, "*b v"]:
    logits[..., VOCAB_SIZE:] = -np.inf
    return logits


class NativeEngine:
    """One model with its caches, for b rows; see `TensorEngine`."""

    def __init__(self, model: ByteMTP, rows: int, window: int, back: int = 0) -> None:
        config = model.config
        self.model, self.window, self.back = model, min(window, 2**30), back  # positions are numbers of 32 bits
        self.weights, lib = packed(model), library()
        self.functions, self.lanes = lib.functions, lib.lanes
        width, ffn = round_up(config.head_dim, lib.lanes), round_up(config.ffn_dim, lib.lanes)
        sizes = config.dim, config.attention_heads, config.key_value_heads, width, ffn, config.head_dim
        self.shape, self.rows = Shape(*sizes, 0, model.dtype == torch.bfloat16, model.dtype == torch.int8), rows
        blocks = list(self.weights.blocks)
        self.memory = self.weights.memory(CacheShape(len(blocks), rows, config.key_value_heads, width, lib.lanes))
        weakref.finalize(self, self.weights.give_back, self.memory)
        self.number = {block: number for number, block in enumerate(blocks)}
        links = [link.block if isinstance(link, DeepSeekModule) else link for link in model.links]
        self.link_blocks = [link for link in links if isinstance(link, Block)]
        # Layers of a verifying pass: those of the trunk, then the links on the way to head 1, if links are layers.
        self.path = model.path_to_first_head if self.link_blocks else []
        self.verified = model.first_blocks()
        self.threads = torch.get_num_threads()
        self.team = team(self.threads)
        self.dim, self.slots = config.dim, 0
        self.chunk = Chunk(
            pointer(self.shape), None, len(self.verified), len(self.path), self.threads, self.window, PADDED_VOCAB_SIZE,
            VOCAB_SIZE, self.weights.embed.ctypes.data, self.weights.unembed.ctypes.data,
        )  # fmt: skip
        # Ids that deepseek modules read once more, since the ids ahead of them were drafts (of the first module none
        # ever is), and head 1's hidden states, which they read.
        self.redo = max(0, config.n_future - 2) if config.topology == "deepseek" else 0
        self.first_hidden = np.zeros((rows, 0, config.dim), np.float32)
        # Of the last verified chunk: what the other heads read (by head; -1 is the trunk).
        self.hidden_by_head: dict[int, Float32[np.ndarray, "b c d"]] = {}

    def _make_room(self, start: Int[np.ndarray, " b"], length: int, end: int = 0) -> None:
        """For passes over `length` ids, from `start` on and up to `end`, or for one of them."""
        end = end or max(start.tolist()) + length
        slots = slots_for(self.memory.slots, end, self.window + self.redo + length + self.back)
        if slots > self.memory.slots:
            self.memory.grow(slots, start)
        if self.shape.slots != slots:
            self.shape.slots = self.slots = slots
            self.links, self.verify_layers = self._layers(self.link_blocks), self._layers(self.verified)
            self.chunk.layers = self.verify_layers
            if self.redo:
                old, self.first_hidden = self.first_hidden, np.zeros((self.rows, slots, self.shape.dim), np.float32)
                row, (source, to) = np.arange(self.rows)[:, None], moves(start, old.shape[1], slots)
                self.first_hidden[row, to] = old[row, source]

    def _layers(self, blocks: list[Block]) -> "Array[Layer]":
        """Structures that lie one behind another in memory."""
        array = (Layer * len(blocks))()
        for i, block in enumerate(blocks):
            number = self.number[block]
            caches, norms = (self.memory.k[number], self.memory.v[number]), self.weights.head_norms[block]
            array[i] = Layer(*(address(part) for part in (*self.weights.blocks[block], *caches, *norms)))
        return array

    def verify(
        self,
        start: Int[np.ndarray, " b"],
        ids: Int[np.ndarray, "b c"],
        lengths: Int[np.ndarray, " b"],
        branches: Branches | None = None,
    ) -> Float32[np.ndarray, "b c v"]:
        """As step.cpp's `verify_chains` does it all at once; trees, which are rare, call by call."""
        begins, shape = start.tolist(), ids.shape
        if max(begins) + shape[1] > self.slots:
            self._make_room(start, shape[1])
        if branches is not None:
            return self._verify_tree(start, ids, lengths, branches)
        chunk = self.chunk
        hidden = np.empty((1 + len(self.path), *shape, self.dim), np.float32)
        logits = np.empty((*shape, PADDED_VOCAB_SIZE), np.float32)
        begins = [begin for begin, count in zip(begins, lengths.tolist(), strict=True) if count] or [0]
        _kept_alive, chunk.angles = self._angles(min(begins), max(begins) + shape[1])
        chunk.rows, chunk.length = shape
        chunk.start, chunk.lengths, chunk.ids = (
            x.astype(np.int64, copy=False).tobytes() for x in (start, lengths, ids)
        )
        chunk.hidden, chunk.logits = address(hidden), address(logits)
        self.functions.verify_chains(self.team, byref(chunk))
        self.hidden_by_head = dict(zip((-1, *self.path), hidden, strict=True))
        return logits

    def run_passes(
        self,
        start: Int[np.ndarray, " b"],
        rows: "Array[LoopRow]",
        passes: int,
        most: int,
        *,
        drafting_heads: int,
        transitions: Float32[np.ndarray, "h v v"] | None,
        margin: float,
        refills: bool,
    ) -> int:
        """Up to so many passes of decoding with at most `most` drafts; returns how many there were.  See loop.cpp.

        margin: see `verdicts.MARGIN`; 0 trusts every lead.  refills: return as soon as a row has ended.
        """
        going = [row for row in rows if not row.ended]
        begins = [row.start for row in going]
        end = max(row.start + min(passes * (1 + most), row.left) for row in going)
        if end > self.slots:
            self._make_room(start, 1 + most, end)
        _kept_alive, self.chunk.angles = self._angles(min(begins), end)
        has_layer = drafting_heads > 0 and self.model.config.topology == "branched"
        loop = Loop(
            self.team, addressof(self.chunk), addressof(self.links[1]) if has_layer else None,
            address(self.weights.other_unembeds), None if transitions is None else address(transitions), rows,
            self.shape.bfloat16, len(rows), most, passes, self.dim, len(self.path), drafting_heads, PADDED_VOCAB_SIZE,
            VOCAB_SIZE, self.window, refills, margin,
        )  # fmt: skip
        return int(self.functions.run_passes(byref(loop)))

    def _angles(self, first: int, end: int) -> tuple[Float32[np.ndarray, "n 2 k"], int]:
        """See `angles`: for these positions."""
        return angles(first // STRETCH, (end - 1) // STRETCH, self.shape.true_head_dim, self.model.config.rope_theta)

    def _verify_tree(
        self,
        start: Int[np.ndarray, " b"],
        ids: Int[np.ndarray, "b c"],
        lengths: Int[np.ndarray, " b"],
        branches: Branches | None,
    ) -> Float32[np.ndarray, "b c v"]:
        """Chains, too, if there are no branches: a test compares."""
        flat = self._flat(start, lengths, branches)
        x = self.weights.embed[ids[flat.row, flat.place]]
        hidden = self._stack(self.verify_layers, 0, len(self.verify_layers), flat, x, kept=len(self.path))
        self.hidden_by_head = {
            i: scattered(y, ids.shape, flat.row, flat.place)
            for i, y in zip((-1, *self.path), (x, *hidden), strict=True)
        }
        return scattered(self._logits(hidden[-1] if self.path else x), ids.shape, flat.row, flat.place)

    def keep_path(self, start: Int[np.ndarray, " b"], path: Int[np.ndarray, "b a"]) -> None:
        place = np.arange(path.shape[1])
        row, column = np.nonzero(path != place)
        if len(row):
            slots = (start[row] + path[row, column]) % self.shape.slots, (start[row] + column) % self.shape.slots
            (source, at), (to, there) = (np.divmod(slot, self.lanes) for slot in slots)
            for number in map(self.number.__getitem__, self.verified):
                k, v = self.memory.k[number], self.memory.v[number]
                k[row, :, to, :, there] = k[row, :, source, :, at]
                v[row, :, to, there] = v[row, :, source, at]
        self.hidden_by_head = {i: x[np.arange(len(path))[:, None], path] for i, x in self.hidden_by_head.items()}

    def copy_row(self, source: int, to: int) -> None:
        for x in (*self.memory.k, *self.memory.v, self.first_hidden):
            x[to] = x[source]

    def drafts(
        self, start: Int[np.ndarray, " b"], accepted: Int[np.ndarray, " b"], heads: int, ids: Int[np.ndarray, "b n"]
    ) -> Iterator[Float32[np.ndarray, "b v"]]:
        rows = np.flatnonzero(accepted)
        if heads < 2 or not len(rows):
            return
        if self.drafts_at_once:
            yield from self.all_drafts(start, accepted, heads).transpose(1, 0, 2)
            return
        for logits in self._deepseek_logits(start, accepted, heads, ids):
            yield scattered(logits, (len(start),), rows)

    @property
    def drafts_at_once(self) -> bool:
        """Whether no head reads what others draft: then `all_drafts` may be called in place of `drafts`."""
        return self.model.config.topology != "deepseek"

    def all_drafts(
        self, start: Int[np.ndarray, " b"], accepted: Int[np.ndarray, " b"], heads: int
    ) -> Float32[np.ndarray, "b h v"]:
        """What `drafts` gives in turn, for rows of which at least one accepted an id."""
        rows = np.flatnonzero(accepted)
        logits = self._head_logits(start, accepted, rows, heads)
        return scattered(np.ascontiguousarray(logits), (len(start),), rows)

    def _head_logits(
        self, start: Int[np.ndarray, " b"], accepted: Int[np.ndarray, " b"], rows: Int[np.ndarray, " q"], heads: int
    ) -> Float32[np.ndarray, "q h v"]:
        """Logits of heads 2 to `heads` at the last accepted id of each row that has one."""
        last, topology = accepted[rows] - 1, self.model.config.topology
        if topology in ("replicated", "branched"):
            if topology == "replicated":
                x = self.hidden_by_head[-1][rows, last]
            else:  # keys and values of all ids, the shared layer's output for the last of each row
                [x] = self._parallel_heads(2, self._flat(start, accepted))
            logits = self._product(self.weights.other_unembeds, x, (heads - 1) * PADDED_VOCAB_SIZE, normed=True)
            return without_padding(logits.reshape(len(rows), heads - 1, -1))
        if topology == "linear":
            assert self.weights.linear is not None
            x = self._product(self.weights.linear, self.hidden_by_head[-1][rows, last], (heads - 1) * self.shape.dim)
            hidden = np.ascontiguousarray(x.reshape(len(rows), heads - 1, -1).transpose(1, 0, 2))
        elif topology == "anticausal":
            hidden = np.stack([self.hidden_by_head[i][rows, last] for i in range(1, heads)])
        elif topology == "causal":
            hidden = self._causal_heads(heads, self._flat(start, accepted))
        else:
            hidden = self._parallel_heads(heads, self._flat(start, accepted))
        return self._logits(hidden.reshape(-1, hidden.shape[-1])).reshape(*hidden.shape[:2], -1).transpose(1, 0, 2)

    def _causal_heads(self, heads: int, flat: FlatBatch) -> Float32[np.ndarray, "h q d"]:
        """Links of heads 2 to `heads`, each on the output of the one before."""
        x, hidden = self.hidden_by_head[0][flat.row, flat.place], []
        for i in range(1, heads):
            self._stack(self.links, i, 1, flat, x)
            hidden.append(x[flat.last])
        return np.stack(hidden)

    def _parallel_heads(self, heads: int, flat: FlatBatch) -> Float32[np.ndarray, "h q d"]:
        """The same, all on the trunk: keys and values for all ids, the output for the last of each row."""
        x = self.hidden_by_head[-1][flat.row, flat.place]
        y = np.empty((heads - 1, len(flat.last), x.shape[1]), np.float32)
        queries = flat.last.astype(np.int32)
        step = self._pass(self.links, 1, heads - 1, flat, queries, x, y, at_once=heads - 1)
        self.functions.run_side_by_side(self.team, byref(step), self.rows)
        return y

    def _deepseek_logits(
        self, start: Int[np.ndarray, " b"], accepted: Int[np.ndarray, " b"], heads: int, ids: Int[np.ndarray, "b n"]
    ) -> Iterator[Float32[np.ndarray, "q v"]]:
        """All modules again from the first id whose ids ahead were drafts the last time."""
        flat = self._flat(start, accepted)
        x = self.hidden_by_head[0][flat.row, flat.place]
        if self.redo:
            self.first_hidden[flat.row, flat.slot % self.shape.slots] = x
            redo = np.minimum(start, self.redo) * (accepted > 0)
            flat = self._flat(start - redo, accepted + redo)
            x = self.first_hidden[flat.row, flat.slot % self.shape.slots]
        for i in range(1, heads):
            ahead = self.weights.embed[ids[flat.row, np.minimum(flat.slot + i, ids.shape[1] - 1)]]
            hidden, embedded = self.weights.merges[i - 1]
            x = self._product(hidden, x, self.shape.dim, normed=True)
            self._product(embedded, ahead, self.shape.dim, normed=True, onto=x)
            self._stack(self.links, i, 1, flat, x)
            yield self._logits(x[flat.last])

    def _flat(
        self, start: Int[np.ndarray, " b"], lengths: Int[np.ndarray, " b"], branches: Branches | None = None
    ) -> FlatBatch:
        end = lengths.cumsum()
        count, begin = int(end[-1]), end - lengths
        row, index = np.arange(len(start)).repeat(lengths), np.arange(count)
        place = index - begin[row]
        # Of all ids: row, slot, position, first id of the row, oldest position seen, index.
        table = np.empty((6, count), np.int32)
        table[0], table[3], table[5] = row, begin[row], index
        table[1] = start[row] + place
        table[2] = table[1] if branches is None else start[row] + branches.depth[row, place]
        np.maximum(table[2] - (self.window - 1), 0, out=table[4])
        chunk = int(lengths.max(initial=0))
        ancestors = None if branches is None else self._ancestors(branches, row, place, chunk)
        rope, angles_at = self._angles(int(table[2].min(initial=0)), int(table[2].max(initial=0)) + 1)
        first, size = table.ctypes.data, count * table.itemsize
        structure = Tokens(
            count, chunk, *(first + i * size for i in range(5)),
            None if ancestors is None else ancestors.ctypes.data, angles_at,
        )  # fmt: skip
        last = (begin + lengths - 1)[lengths > 0]
        return FlatBatch(row, place, table[1], table[5], last, structure, (table, ancestors, rope))

    def _ancestors(
        self, branches: Branches, row: Int[np.ndarray, " t"], place: Int[np.ndarray, " t"], chunk: int
    ) -> UInt8[np.ndarray, "t c"]:
        """Which ids of its row each id sees."""
        distance = branches.depth[row, place][:, None] - branches.depth[row, :chunk]
        return (branches.ancestors[row, place, :chunk] & (distance < self.window)).astype(np.uint8)

    def _stack(
        self,
        layers: "Array[Layer]",
        first: int,
        count: int,
        flat: FlatBatch,
        x: Float32[np.ndarray, "t d"],
        kept: int = 0,
    ) -> Float32[np.ndarray, "kept t d"]:
        """`count` layers, each on the output of the one before.  x becomes the output of the last that is not kept; the
        outputs of the last `kept` are returned."""
        y = np.empty((kept, *x.shape), np.float32)
        if count and len(x):
            step = self._pass(layers, first, count, flat, flat.index, x, y, at_once=1)
            self.functions.run_stack(self.team, byref(step), self.rows, kept)
        return y

    def _pass(
        self,
        layers: "Array[Layer]",
        first: int,
        count: int,
        flat: FlatBatch,
        queries: Int[np.ndarray, " q"],
        x: Float32[np.ndarray, "t d"],
        y: Float32[np.ndarray, "*h d"],
        *,
        at_once: int,
    ) -> Pass:
        """The arrays are only pointed to: they have to live as long as the call."""
        shape = self.shape
        sizes = [
            at_once * len(x) * (shape.heads + 2 * shape.kv_heads) * shape.head_dim,
            at_once * len(queries) * shape.heads * shape.head_dim,
            at_once * len(queries) * shape.ffn,
            self.threads * self.functions.score_floats(shape.slots),
        ]
        *starts, total = accumulate(sizes, initial=0)
        scratch = self.memory.scratch(total)
        places = [scratch + 4 * start for start in starts]
        chosen = cast(byref(layers, first * sizeof(Layer)), POINTER(Layer))
        parts = queries.ctypes.data, x.ctypes.data, y.ctypes.data, *places
        return Pass(pointer(shape), chosen, count, pointer(flat.structure), len(queries), *parts)

    def _product(
        self,
        weight: Packed,
        x: Float32[np.ndarray, "t in"],
        out: int,
        *,
        normed: bool = False,
        onto: Float32[np.ndarray, "t out"] | None = None,
    ) -> Float32[np.ndarray, "t out"]:
        """x, or x / rms(x), times the first `out` outputs of a matrix; added to `onto`, if that is given."""
        y = np.empty((len(x), out), np.float32) if onto is None else onto
        self.functions.run_product(
            self.team,
            address(weight),
            self.shape.bfloat16,
            x.shape[1],
            out,
            len(x),
            normed,
            onto is not None,
            address(x),
            address(y),
        )
        return y

    def _logits(self, x: Float32[np.ndarray, "t d"]) -> Float32[np.ndarray, "t v"]:
        return without_padding(self._product(self.weights.unembed, x, PADDED_VOCAB_SIZE, normed=True))
