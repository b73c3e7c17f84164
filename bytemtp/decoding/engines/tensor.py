"""The model run piece by piece: `verify` appends a chunk and gives head 1's logits, `draft` asks the other heads.

    verify   trunk and head 1 on c new ids: logits for what follows each of them
    draft    heads 2..k at the last id that was accepted: what may follow beyond it

`draft` is right for every topology although their heads need different things: parallel heads own a cache that must get
the keys and values of all accepted ids; causal heads read each other; anticausal heads have already been run on the way
to head 1; deepseek modules also read ids ahead, so what they computed for the last n - 1 ids rested on drafts and is
computed again when those ids are known.

Shapes:  b rows, c ids of the chunk, d width, v vocabulary, n heads.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int
from torch import Tensor, nn

from bytemtp.decoding.engines.kv_cache import Chunk, LayerCache, step, step_at
from bytemtp.model.heads import DeepSeekModule
from bytemtp.model.layers import Block, rope_table
from bytemtp.model.model import ByteMTP

Choose = Callable[[int, Float32[np.ndarray, "b v"]], Int[np.ndarray, " b"]]
"""Draft number (from 1) and its logits -> the id drafted in each row"""


@dataclass(frozen=True)
class Branches:
    """Drafts as a tree behind the pending ids of each row; the chunk's ids stand in the order pending, drafts."""

    depth: Int[np.ndarray, "b c"]
    """position of each id, counted from the row's first pending one"""
    above: Bool[np.ndarray, "b c c"]
    """whether an id has another one of the chunk among its ancestors or is itself it"""


@runtime_checkable
class Engine(Protocol):
    """A model with its caches, for b rows of ids, run piece by piece."""

    ids: Int[np.ndarray, "b capacity_n"]
    """known ids, then drafts.  The owner writes them; `deepseek` heads read ahead in them"""

    def verify(
        self,
        start: Int[np.ndarray, " b"],
        ids: Int[np.ndarray, "b c"],
        lengths: Int[np.ndarray, " b"],
        branches: Branches | None = None,
    ) -> Float32[np.ndarray, "b c v"]:
        """Append the first `lengths` of the ids from slot `start` of each row on; logits of the id after each of them.

        Without branches the ids follow one another.  Otherwise `keep` must be called next.
        """

    def keep(self, start: Int[np.ndarray, " b"], path: Int[np.ndarray, "b a"]) -> None:
        """Of the last chunk, move the ids at these places to the front; what lies behind them is given up."""

    def draft(self, start: Int[np.ndarray, " b"], accepted: Int[np.ndarray, " b"], heads: int, choose: Choose) -> None:
        """Logits of heads 2 to `heads` at the last of the `accepted` first ids of the last chunk.

        Each is given to `choose`, which says what to draft; the id after the accepted ones must be in `ids`.  What it
        is given for rows that accepted none is of no meaning.
        """


class TensorEngine:
    """The engine made of tensor operations: for any device and dtype.

    capacity: ids that a row may come to have.
    window: an id sees the last `window` ids, itself included.
    """

    def __init__(self, model: ByteMTP, rows: int, capacity: int, window: int) -> None:
        config = model.config
        self.model, self.window = model, window
        self.ids = np.zeros((rows, capacity + config.n_future), dtype=np.int64)
        # The slot behind the last one takes what has no place: ids before a row's first.
        self.trash = capacity
        self.caches = {
            module: LayerCache(module, rows, capacity + 1) for module in model.modules() if isinstance(module, Block)
        }
        weight = model.embed.weight
        self.rope = rope_table(capacity + 1, config.head_dim, config.rope_theta, weight.device, weight.dtype)
        # Head 1's hidden states, which deepseek modules read again when the ids behind them are known.
        keeps = capacity + 1 if config.topology == "deepseek" else 0
        self.first_hidden = torch.zeros(rows, keeps, config.dim, dtype=weight.dtype, device=weight.device)
        # Of the last verified chunk: what the other heads read (by head; -1 is the trunk).
        self.passed: dict[int, Float[Tensor, "b c d"]] = {}

    @torch.inference_mode()
    def verify(
        self,
        start: Int[np.ndarray, " b"],
        ids: Int[np.ndarray, "b c"],
        lengths: Int[np.ndarray, " b"],
        branches: Branches | None = None,
    ) -> Float32[np.ndarray, "b c v"]:
        slots = self.reach(start, ids.shape[1]) if branches is None else self.trash + 1
        chunk = self.chunk(self.tensor(start), self.tensor(lengths), ids.shape[1], slots, branches)
        logits, self.passed = self.to_first_head(self.tensor(ids), chunk)
        return array(logits)

    def to_first_head(
        self, ids: Int[Tensor, "b c"], chunk: Chunk
    ) -> tuple[Float[Tensor, "b c v"], dict[int, Float[Tensor, "b c d"]]]:
        """Head 1's logits, and what the other heads read."""
        model = self.model
        with model.autocast():
            x = model.embed(ids)
            for block in model.trunk:
                x = self.run(block, x, chunk)
            passed = {-1: x}
            for i in model.path_to_first_head:
                x = passed[i] = self.run(model.links[i], x, chunk)
            return model.logits(0, x), passed

    def keep(self, start: Int[np.ndarray, " b"], path: Int[np.ndarray, "b a"]) -> None:
        self._keep(self.tensor(start), self.tensor(path))

    def _keep(self, start: Int[Tensor, " b"], path: Int[Tensor, "b a"]) -> None:
        row = torch.arange(len(start), device=start.device)[:, None]
        to = start[:, None] + torch.arange(path.shape[1], device=start.device)
        for block in [*self.model.trunk, *(self.model.links[i] for i in self.model.path_to_first_head)]:
            if isinstance(block, Block):
                self.caches[block].move(start[:, None] + path, to)
        self.passed = {i: x[row, path] for i, x in self.passed.items()}

    @torch.inference_mode()
    def draft(self, start: Int[np.ndarray, " b"], accepted: Int[np.ndarray, " b"], heads: int, choose: Choose) -> None:
        slots = self.reach(start, self.passed[-1].shape[1])
        if self.model.config.topology == "deepseek":
            with self.model.autocast():
                self._draft_deepseek(self.tensor(start), self.tensor(accepted), heads, choose, slots)
        elif heads > 1:
            for i, logits in enumerate(array(self.drafts(self.tensor(start), self.tensor(accepted), heads, slots)), 1):
                choose(i, logits)

    def drafts(
        self, start: Int[Tensor, " b"], accepted: Int[Tensor, " b"], heads: int, slots: int
    ) -> Float[Tensor, "h b v"]:
        """Logits of heads 2 to `heads` at the last accepted ids, for heads that do not read ids."""
        model, topology = self.model, self.model.config.topology
        row, last = torch.arange(len(start), device=start.device), (accepted - 1).clamp_min(0)
        chunk = self.chunk(start, accepted, self.passed[-1].shape[1], slots)
        x, logits = self.passed[0 if topology == "causal" else -1], []
        with model.autocast():
            for i in range(1, heads):
                link = model.links[i]
                if topology == "anticausal":
                    hidden = self.passed[i][row, last]
                elif topology == "causal":
                    x = self.run(link, x, chunk)
                    hidden = x[row, last]
                elif isinstance(link, Block):
                    hidden = step_at(link, x, chunk, self.caches[link], last)[:, 0]
                else:
                    hidden = link(x[row, last])
                logits.append(model.logits(i, hidden))
        return torch.stack(logits)

    def _draft_deepseek(
        self, start: Int[Tensor, " b"], accepted: Int[Tensor, " b"], heads: int, choose: Choose, slots: int
    ) -> None:
        """All modules again from the first id whose ids ahead were drafts the last time."""
        model, redo = self.model, self.model.config.n_future - 1
        length = self.passed[0].shape[1]
        new = self.chunk(start, accepted, length, slots)
        hidden = self.passed[0].to(self.first_hidden.dtype)
        self.first_hidden.scatter_(1, new.slots[..., None].expand_as(hidden), hidden)
        chunk = self.chunk(start - redo, accepted + redo, redo + length, slots)
        row, last = torch.arange(len(start), device=start.device), (redo + accepted - 1).clamp_min(0)
        x = self.first_hidden.gather(1, chunk.slots[..., None].expand(-1, -1, hidden.shape[2]))
        for i in range(1, heads):
            ids = self.tensor(self.ids)
            ahead = ids.gather(1, (chunk.slots + i).clamp_max(ids.shape[1] - 1))
            module = model.links[i]
            assert isinstance(module, DeepSeekModule)
            x = self.run(module.block, module.merged(x, model.embed(ahead)), chunk)
            chosen = choose(i, array(model.logits(i, x[row, last])))
            at = array(start + accepted + i)
            self.ids[np.arange(len(at)), at] = chosen

    def run(self, module: nn.Module, x: Float[Tensor, "b c d"], chunk: Chunk) -> Float[Tensor, "b c d"]:
        """A layer of the trunk, or a head's link, on a chunk."""
        return step(module, x, chunk, self.caches[module]) if isinstance(module, Block) else module(x)

    def tensor(self, x: Int[np.ndarray, "*b"]) -> Int[Tensor, "*b"]:
        return torch.from_numpy(x).to(self.model.device)

    def reach(self, start: Int[np.ndarray, " b"], length: int) -> int:
        """Slots of a row that `length` ids from `start` on can see."""
        return min(int(start.max()) + length, self.trash + 1)

    def chunk(
        self,
        start: Int[Tensor, " b"],
        lengths: Int[Tensor, " b"],
        length: int,
        slots: int,
        branches: Branches | None = None,
    ) -> Chunk:
        """`length` ids in consecutive slots from `start` on, the first `lengths` real, and which of the first `slots`
        slots each of them sees."""
        place = torch.arange(length, device=start.device)
        own = start[:, None] + place
        outside = (own < 0) | (place >= lengths[:, None])
        placed = own.where(~outside, self.trash)
        slot = torch.arange(slots, device=start.device)
        positions = own if branches is None else start[:, None] + self.tensor(branches.depth)
        positions = positions.where(~outside, self.trash)
        position_of_slot = slot.expand(len(start), -1)
        if branches is not None:
            position_of_slot = position_of_slot.scatter(1, placed, positions)
        distance = positions[..., None] - position_of_slot[:, None]
        seen = (distance >= 0) & (distance < self.window)
        if branches is not None:
            before = slot < start[:, None, None]
            index = placed[:, None].expand(-1, length, -1)
            seen &= before.expand_as(seen).scatter(2, index, torch.from_numpy(branches.above).to(before.device))
        # An id without a place sees some slot, so that its (unused) output is a number.
        seen |= outside[..., None] & (slot == 0)
        return Chunk((self.rope[0][positions], self.rope[1][positions]), placed, seen)


def array(x: Tensor) -> np.ndarray:
    """For the host, in float32 if it has fractions."""
    return (x.float() if x.is_floating_point() else x).cpu().numpy()
