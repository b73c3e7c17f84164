"""`RecordedEngine`: passes of fixed shapes, recorded once and run as a whole: CUDA graphs, or torch.compile on a CPU.

A decoding step of tensor operations launches hundreds of small kernels, and on a GPU the launches take longer than the
kernels.  A recorded pass is one launch.  It always has the same number of ids, rows with fewer are padded, and it sees
one of few numbers of slots of the cache, so that there are few different passes to record.  Trees and long pieces of a
prompt run unrecorded.  A model keeps caches with the passes recorded over them for the next text.

`greedy` goes further: a pass that also decides and drafts, so that the next one needs nothing of the host.

Try:  bytemtp.generate(model, b"def ", 100, mode="speculative", engine="recorded")
Shapes:  b rows, c ids of the chunk, d width, v vocabulary, h drafting heads, n length of the id buffer.
"""

import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor

from bytemtp.common.vocab import VOCAB_SIZE
from bytemtp.decoding.engines import ring
from bytemtp.decoding.engines.engine import Branches
from bytemtp.decoding.engines.kv_cache import LayerCache
from bytemtp.decoding.engines.tensor import TensorEngine, array
from bytemtp.model.layers import Block
from bytemtp.model.model import ByteMTP, cached_by_weights

KEEPING = ("cuda",)
"""Kinds of devices whose recorded passes hold no engine, so that another one can run them."""
KEPT = 4
"""Most caches that a model keeps."""


@dataclass(frozen=True)
class Room:
    """What outlives an engine: caches, and what was recorded over them."""

    key: tuple[Any, ...]
    """of the engines that can use it"""
    caches: dict[Block, LayerCache]
    first_hidden: Float[Tensor, "b s d"]
    slots: int
    passes: "dict[tuple[int, int], RecordedPass]"


@cached_by_weights
def idle_rooms(model: ByteMTP) -> list[Room]:
    """That no engine is using."""
    return []


class RecordedEngine(TensorEngine):
    """`TensorEngine` whose passes over one id, and over up to `width` ids, are recorded.

    capacity: ids that a row may come to have; then the caches never grow.  If they do, all is recorded again, since
    CUDA graphs hold the caches' addresses.
    """

    def __init__(self, model: ByteMTP, rows: int, window: int, width: int, back: int = 0, capacity: int = 0) -> None:
        super().__init__(model, rows, window, back)
        self.width = width
        self.passes: dict[tuple[int, int], RecordedPass] = {}
        self.last: RecordedPass | None = None
        """the pass that the next drafts continue, if it was a recorded one"""
        if capacity:
            self._enter_room(model, rows, capacity)

    def _enter_room(self, model: ByteMTP, rows: int, capacity: int) -> None:
        """One that is idle, or a new one; given back with the last reference to this engine.

        Its size hangs on the key alone: a text that goes round in another ring rounds otherwise.
        """
        size = doubled(capacity + 2 * self.width)  # passes may be under way when a text has ended
        key = rows, self.window, self.back, size, self.width, model.dtype
        rooms = idle_rooms(model)
        room = next((room for room in rooms if room.key == key), None)
        if room is None:
            self.make_room(np.full(rows, size - self.width), self.width)
            room = Room(key, self.caches, self.first_hidden, self.slots, self.passes)
        else:
            rooms.remove(room)
            self.caches, self.first_hidden, self.slots, self.passes = (
                room.caches, room.first_hidden, room.slots, room.passes,
            )  # fmt: skip
        if model.device.type in KEEPING:
            weakref.finalize(self, give_back, room, rooms)

    @torch.inference_mode()
    def verify(
        self,
        start: Int[np.ndarray, " b"],
        ids: Int[np.ndarray, "b c"],
        lengths: Int[np.ndarray, " b"],
        branches: Branches | None = None,
    ) -> Float32[np.ndarray, "b c v"]:
        count = ids.shape[1]
        if branches is not None or count > self.width:
            self.last = None
            return super().verify(start, ids, lengths, branches)
        width = 1 if count == 1 else self.width
        self.make_room(start, width)
        padded = np.zeros((len(ids), width), dtype=np.int64)
        padded[:, :count] = ids
        inputs = [self.tensor(x) for x in (start, padded, lengths)]
        self.last = self._pass(width, self.visible_slots(start, width))
        logits, self.hidden_by_head = self.last.run("verify", self._verify, *inputs)
        return array(logits)[:, :count]

    def _pass(self, width: int, visible: int) -> "RecordedPass":
        slots = min(doubled(visible), self.slots)
        return self.passes.setdefault((width, slots), RecordedPass(slots, {}))

    def make_room(self, start: Int[np.ndarray, " b"], length: int) -> None:
        before = self.slots
        super().make_room(start, length)
        if self.slots != before:
            self.passes = {}

    def _verify(
        self, start: Int[Tensor, " b"], ids: Int[Tensor, "b c"], lengths: Int[Tensor, " b"]
    ) -> tuple[Float[Tensor, "b c v"], dict[int, Float[Tensor, "b c d"]]]:
        assert self.last is not None
        return self.run_to_first_head(ids, self.chunk(start, lengths, ids.shape[1], self.last.slots))

    def drafts(
        self, start: Int[np.ndarray, " b"], accepted: Int[np.ndarray, " b"], heads: int, ids: Int[np.ndarray, "b n"]
    ) -> Iterator[Float32[np.ndarray, "b v"]]:
        last = self.last
        if last is None or self.model.config.topology == "deepseek" or heads < 2:
            yield from super().drafts(start, accepted, heads, ids)
            return

        def run(start: Int[Tensor, " b"], accepted: Int[Tensor, " b"]) -> Float[Tensor, "h b v"]:
            return self.head_logits(start, accepted, heads, last.slots)

        with torch.inference_mode():
            logits = last.run(f"drafts of {heads} heads", run, self.tensor(start), self.tensor(accepted))
        yield from array(logits)

    @torch.inference_mode()
    def greedy(
        self, start: Int[Tensor, " b"], ids: Int[Tensor, "b h"], reach: int, margin: float
    ) -> tuple[Int[Tensor, " b"], Int[Tensor, "b h"], Int[Tensor, "b h2"]]:
        """A pass of the loop without the host: the next pass's `start` and `ids`, and what was decided.

        ids: the last decided id, and the drafts of heads 2 to h behind it; reach: places that the pass may come to.
        What was decided are, for each row, how many drafts stay, how many places are certain (the best logit leads the
        second by `margin` times the largest at least), and the likeliest id behind each of the ids.  All overwritten
        by the next call.  Topologies whose heads do not read ids.
        """
        self.last = self._pass(ids.shape[1], min(reach, self.slots))

        def run(start: Int[Tensor, " b"], ids: Int[Tensor, "b h"]) -> tuple[Tensor, ...]:
            return self._greedy(start, ids, margin)

        return self.last.run("greedy", run, start, ids)

    def _greedy(
        self, start: Int[Tensor, " b"], ids: Int[Tensor, "b h"], margin: float
    ) -> tuple[Int[Tensor, " b"], Int[Tensor, "b h"], Int[Tensor, "b h2"]]:
        heads = ids.shape[1]
        logits, self.hidden_by_head = self._verify(start, ids, torch.full_like(start, heads))
        real = logits.float()[..., :VOCAB_SIZE]
        best, (first, second) = real.argmax(-1), real.topk(2).values.unbind(-1)
        certain = first - second >= margin * real.abs().amax(-1)
        stay = (ids[:, 1:] == best[:, :-1]).cumprod(1).sum(1)
        decided = torch.cat([stay[:, None], certain.cumprod(1).sum(1, keepdim=True), best], 1)
        new = [best.gather(1, stay[:, None])[:, 0]]
        if heads > 1:
            assert self.last is not None
            by_head = self.head_logits(start, stay + 1, heads, self.last.slots).float()
            transitions = self.model.transitions
            for i, logits in enumerate(by_head):  # as in `HeadDrafter.drafts`
                after = logits if transitions is None else logits + transitions[i, new[-1]].float()
                new.append(after.argmax(-1))
        return start + stay + 1, torch.stack(new, 1), decided


def give_back(room: Room, rooms: list[Room]) -> None:
    """The last ones are kept."""
    rooms.append(room)
    del rooms[:-KEPT]


def doubled(size: int) -> int:
    """The next power of two times `ring.SLOTS`."""
    return ring.SLOTS << (-(-size // ring.SLOTS) - 1).bit_length()


@dataclass(frozen=True)
class RecordedPass:
    """What is recorded for one number of ids and of slots: the pass itself, and the drafts after it."""

    slots: int
    steps: dict[str, Callable[..., Any]]

    def run(self, name: str, function: Callable[..., Any], *inputs: Tensor) -> Any:
        """`function` of the inputs, recorded the first time."""
        if name not in self.steps:
            self.steps[name] = record_pass(function, list(inputs))
        return self.steps[name](*inputs)


def record_pass(function: Callable[..., Any], inputs: list[Tensor]) -> Callable[..., Any]:
    """A function that does the same for other values of its inputs.

    All other tensors that it works on have to stay where they are.  On CUDA the next call overwrites its results.
    """
    if inputs[0].device.type != "cuda":
        return torch.compile(function, dynamic=False)
    held = [x.clone() for x in inputs]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # libraries set themselves up in a first call, which cannot be recorded
        function(*held)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = function(*held)

    def replay(*values: Tensor) -> Any:
        for place, value in zip(held, values, strict=True):
            place.copy_(value)
        graph.replay()
        return results

    return replay
