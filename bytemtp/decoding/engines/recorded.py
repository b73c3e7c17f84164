"""`RecordedEngine`: passes of fixed shapes, recorded once and run as a whole: CUDA graphs, or torch.compile on a CPU.

A decoding step of tensor operations launches hundreds of small kernels, and on a GPU the launches take longer than the
kernels.  A recorded pass is one launch.  It always has the same number of ids, rows with fewer are padded, and it sees
a multiple of `ring.SLOTS` slots of the cache, so that there are few different passes to record.  Trees and long pieces
of a prompt run unrecorded.

Try:  bytemtp.generate(model, b"def ", 100, mode="speculative", engine="recorded")
Shapes:  b rows, c ids of the chunk, d width, v vocabulary, h drafting heads, n length of the id buffer.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor

from bytemtp.decoding.engines import ring
from bytemtp.decoding.engines.engine import Branches
from bytemtp.decoding.engines.tensor import TensorEngine, array
from bytemtp.model.model import ByteMTP


class RecordedEngine(TensorEngine):
    """`TensorEngine` whose passes over one id, and over up to `width` ids, are recorded.

    CUDA graphs are kept until the caches grow, since they hold the caches' addresses.
    """

    def __init__(self, model: ByteMTP, rows: int, window: int, width: int, back: int = 0) -> None:
        super().__init__(model, rows, window, back)
        self.width = width
        self.passes: dict[tuple[int, int], RecordedPass] = {}
        self.last: RecordedPass | None = None
        """the pass that the next drafts continue, if it was a recorded one"""

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
        slots = ring.round_up(self.visible_slots(start, width), ring.SLOTS)
        padded = np.zeros((len(ids), width), dtype=np.int64)
        padded[:, :count] = ids
        if (width, slots) not in self.passes:
            self.passes[width, slots] = RecordedPass(slots, {})
        self.last = self.passes[width, slots]
        run = self.last.run("verify", self._verify, start, padded, lengths, device=self.model.device)
        logits, self.hidden_by_head = run
        return array(logits)[:, :count]

    def make_room(self, start: Int[np.ndarray, " b"], length: int) -> None:
        before = self.slots
        super().make_room(start, length)
        if self.slots != before:
            self.passes.clear()

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
            logits = last.run(f"drafts of {heads} heads", run, start, accepted, device=self.model.device)
        yield from array(logits)


@dataclass(frozen=True)
class RecordedPass:
    """What is recorded for one number of ids and of slots: the pass itself, and the drafts after it."""

    slots: int
    steps: dict[str, Callable[..., Any]]

    def run(
        self, name: str, function: Callable[..., Any], *inputs: Int[np.ndarray, "..."], device: torch.device
    ) -> Any:
        """`function` of the inputs, recorded the first time."""
        tensors = [torch.from_numpy(np.ascontiguousarray(x)).to(device) for x in inputs]
        if name not in self.steps:
            self.steps[name] = record_pass(function, tensors)
        return self.steps[name](*tensors)


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
