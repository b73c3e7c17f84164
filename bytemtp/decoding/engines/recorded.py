"""`RecordedEngine`: passes of fixed shapes, recorded once and run as a whole: CUDA graphs, or torch.compile on a CPU.

A decoding step of tensor operations launches hundreds of small kernels, and on a GPU the launches take longer than the
kernels.  A recorded pass is one launch.  It always has the same number of ids, rows with fewer are padded, and it sees
one of few numbers of slots of the cache, so that there are few different passes to record.  Trees and long pieces of a
prompt run unrecorded.  A model keeps caches with the passes recorded over them for the next text.

`decide` goes further: a pass that also decides and drafts, so that the next one needs nothing of the host.

Try:  bytemtp.generate(model, b"def ", 100, mode="speculative", engine="recorded")
Shapes:  b rows, c ids of the chunk, d width, v vocabulary, h drafting heads, n length of the id buffer; of passes that
decide h heads in use, h1 = h - 1, h2 = h + 2.
"""

import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from threading import RLock
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Float64, Int
from torch import Tensor

from bytemtp.common.vocab import VOCAB_SIZE
from bytemtp.decoding.engines import ring
from bytemtp.decoding.engines.device_draws import draw, law, uniforms, verify_chains
from bytemtp.decoding.engines.engine import Branches
from bytemtp.decoding.engines.kv_cache import LayerCache
from bytemtp.decoding.engines.tensor import TensorEngine, array
from bytemtp.model.layers import Block
from bytemtp.model.model import ByteMTP, cached_by_weights

KEEPING = ("cuda",)
"""Kinds of devices whose recorded passes hold no engine, so that another one can run them."""
KEPT = 4
"""Most caches that a model keeps."""
LOCK = RLock()
"""Also for engines that are given up inside, by the garbage collector."""


Contents = tuple[dict[Block, LayerCache], Float[Tensor, "b s d"], int, "dict[tuple[int, int], RecordedPass]"]
"""Caches, head 1's hidden states, slots, and what was recorded over them."""


@dataclass(frozen=True, eq=False)
class Room:
    """What outlives an engine."""

    key: tuple[Any, ...]
    """of the engines that can use it"""
    contents: Contents


@cached_by_weights
def idle_rooms(model: ByteMTP) -> list[Room]:
    """That no engine is using."""
    return []


def taken(model: ByteMTP, key: tuple[Any, ...]) -> Room | None:
    """An idle room, which from now on is not."""
    rooms = idle_rooms(model)
    with LOCK:
        room = next((room for room in rooms if room.key == key), None)
        if room is not None:
            rooms.remove(room)
    return room


def give_back(room: Room, rooms: list[Room]) -> None:
    """The last ones are kept."""
    with LOCK:
        rooms.append(room)
        del rooms[:-KEPT]


class RecordedEngine(TensorEngine):
    """`TensorEngine` whose passes over one id, and over up to `width` ids, are recorded.

    capacity: ids that a row may come to have.  The caches are made for them at once: CUDA graphs hold their addresses,
    so if they do grow, all is recorded again.
    """

    def __init__(self, model: ByteMTP, rows: int, window: int, width: int, back: int = 0, capacity: int = 0) -> None:
        super().__init__(model, rows, window, back)
        self.width = width
        self.passes: dict[tuple[int, int], RecordedPass] = {}
        self.last: RecordedPass | None = None
        """the pass that the next drafts continue, if it was a recorded one"""
        self.returning: weakref.finalize[..., RecordedEngine] | None = None
        if capacity:  # and passes may be under way when a text has ended
            self._enter_room(model, rows, doubled(capacity + 2 * width))

    def _enter_room(self, model: ByteMTP, rows: int, size: int) -> None:
        """One for texts of so many ids: an idle one, or a new one; given back with the last reference to this engine.

        The ring's size hangs on the arguments alone: a text that goes round in another ring rounds otherwise.
        """
        longest = min(size, max(self.width, ring.PIECE))
        slots = ring.slots_for(0, size, self.window + self.redo + longest + self.back)
        key = rows, self.window, self.back, slots, self.width, model.dtype
        room = taken(model, key)
        if room is None:
            self.make_room(np.full(rows, size - longest), longest)
        else:
            self.caches, self.first_hidden, self.slots, self.passes = room.contents
        if model.device.type in KEEPING:
            room = Room(key, (self.caches, self.first_hidden, self.slots, self.passes))
            self.returning = weakref.finalize(self, give_back, room, idle_rooms(model))

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
            if self.returning is not None:
                self.returning.detach()  # whoever came after would have graphs of the old caches

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
    def decide(self, going: "Going", reach: int, margin: float) -> tuple["Going", Int[Tensor, "b h2"]]:
        """A pass of the loop without the host: where the next pass goes on, and what was decided.

        reach: places that the pass may come to.  What was decided are, for each row, how many drafts stay, how many
        places are certain (drawn from a law without nan, or the best logit leads the second by `margin` times the
        largest at least), and an id for each place, of which those up to the first that is no draft count.  All is
        overwritten by the next call.  For topologies whose heads do not read ids.
        """
        self.last = self._pass(going.ids.shape[1], min(reach, self.slots))
        inputs = [x for x in vars(going).values() if x is not None]

        def run(*inputs: Tensor) -> tuple[Tensor, ...]:
            return self._greedy(*inputs, margin=margin) if going.q is None else self._drawn(*inputs)

        *new, decided = self.last.run("greedy" if going.q is None else "drawn", run, *inputs)
        return Going(*new, *inputs[len(new) :]), decided

    def _greedy(
        self, start: Int[Tensor, " b"], ids: Int[Tensor, "b h"], *, margin: float
    ) -> tuple[Int[Tensor, " b"], Int[Tensor, "b h"], Int[Tensor, "b h2"]]:
        logits = self._logits(start, ids)[..., :VOCAB_SIZE]
        best, (first, second) = logits.argmax(-1), logits.topk(2).values.unbind(-1)
        certain = first - second >= margin * logits.abs().amax(-1)
        stay = (ids[:, 1:] == best[:, :-1]).cumprod(1).sum(1)
        decided = torch.cat([stay[:, None], certain.cumprod(1).sum(1, keepdim=True), best], 1)
        new = [best.gather(1, stay[:, None])[:, 0]]
        for logits in self._by_head(start, stay, new, ids.shape[1]):
            new.append(logits.argmax(-1))
        return start + stay + 1, torch.stack(new, 1), decided

    def _drawn(
        self,
        start: Int[Tensor, " b"],
        ids: Int[Tensor, "b h"],
        q: Float64[Tensor, "b h1 v"],
        keys: Int[Tensor, " b"],
        temperature: Float64[Tensor, ""],
    ) -> tuple[Int[Tensor, " b"], Int[Tensor, "b h"], Float64[Tensor, "b h1 v"], Int[Tensor, "b h2"]]:
        heads = ids.shape[1]
        uniform = uniforms(keys, start, heads + 1)
        p = law(self._logits(start, ids), temperature)
        stay, id_ = verify_chains(p, ids[:, 1:], q, uniform[:, :2])
        line = F.pad(ids[:, 1:], (0, 1)).scatter(1, stay[:, None], id_[:, None])
        are_finite = p.isfinite().all(-1) & F.pad(q.isfinite().all(-1), (0, 1), value=True)
        certain = are_finite.cumprod(1).sum(1, keepdim=True)
        decided = torch.cat([stay[:, None], certain, line], 1)
        new, laws = [id_], list[Tensor]()
        for i, logits in enumerate(self._by_head(start, stay, new, heads)):
            laws.append(law(logits, temperature))
            new.append(draw(laws[-1], uniform[:, 2 + i]))
        return start + stay + 1, torch.stack(new, 1), torch.stack(laws, 1) if laws else q, decided

    def _logits(self, start: Int[Tensor, " b"], ids: Int[Tensor, "b h"]) -> Float32[Tensor, "b h v"]:
        """Head 1's behind all of these ids, which are real."""
        logits, self.hidden_by_head = self._verify(start, ids, torch.full_like(start, ids.shape[1]))
        return logits.float()

    def _by_head(
        self, start: Int[Tensor, " b"], stay: Int[Tensor, " b"], new: list[Tensor], heads: int
    ) -> Iterator[Float32[Tensor, "b v"]]:
        """Logits of heads 2 to `heads`; the caller adds the id of each to `new`.  As `HeadDrafter.drafts`."""
        if heads < 2:
            return
        assert self.last is not None
        transitions = self.model.transitions
        for i, logits in enumerate(self.head_logits(start, stay + 1, heads, self.last.slots).float()):
            yield logits if transitions is None else logits + transitions[i, new[-1]].float()


@dataclass(frozen=True)
class Going:
    """Where passes that decide by themselves go on."""

    start: Int[Tensor, " b"]
    ids: Int[Tensor, "b h"]
    """the last decided id, and the drafts of heads 2 to h behind it"""
    q: Float64[Tensor, "b h1 v"] | None = None
    """what each draft was drawn from; None where decoding is greedy, and then there are no others"""
    keys: Int[Tensor, " b"] | None = None
    """of each row's random numbers"""
    temperature: Float64[Tensor, ""] | None = None


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
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(held[0].device):  # streams and graphs are those of the current one
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # libraries set themselves up in a first call, which cannot be recorded
            function(*held)
        torch.cuda.current_stream().wait_stream(side)
        with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):  # others may load data meanwhile
            results = function(*held)

    def replay(*values: Tensor) -> Any:
        for place, value in zip(held, values, strict=True):
            place.copy_(value)
        graph.replay()
        return results

    return replay
