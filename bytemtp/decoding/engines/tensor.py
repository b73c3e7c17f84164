"""`TensorEngine`: the engine made of tensor operations, for any device and dtype; the reference for the others.

The heads of each topology need something else when they draft.  Parallel heads own a cache that must get the keys and
values of all accepted ids.  Causal heads read each other.  Anticausal heads have already been run on the way to head 1.
Deepseek modules also read ids ahead, so what they computed for the last n - 1 ids rested on drafts and is computed
again when those ids are known.

Try:  bytemtp.generate(model, b"def ", 100, engine="torch")
Shapes:  b rows, c ids of the chunk, a accepted ids, d width, v vocabulary, h drafting heads, n length of the id buffer.
"""

import copy
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int, Num
from torch import Tensor, nn

from bytemtp.decoding.engines.engine import Branches
from bytemtp.decoding.engines.kv_cache import Chunk, LayerCache, step, step_at
from bytemtp.decoding.engines.ring import moves, slots_for
from bytemtp.model.heads import DeepSeekModule
from bytemtp.model.int8 import in_int8
from bytemtp.model.layers import Block, rope_at
from bytemtp.model.model import ByteMTP, cached_by_weights


class TensorEngine:
    """See `Engine`.

    window: an id sees the last `window` ids, itself included; back: ids beyond STEP_BACK that can be given up.
    """

    def __init__(self, model: ByteMTP, rows: int, window: int, back: int = 0) -> None:
        config = model.config
        self.model = NARROW[model.dtype](model) if model.dtype in NARROW else model
        self.window, self.back, self.slots = window, back, 0
        self.caches = {module: LayerCache(module, rows) for module in self.model.modules() if isinstance(module, Block)}
        # Ids that deepseek modules read once more; the native engine spares the first, which is never needed.
        self.redo = config.n_future - 1 if config.topology == "deepseek" else 0
        # Head 1's hidden states, which they read; like a cache it has a slot more for what has no place.
        weight = model.embed.weight
        self.first_hidden = torch.zeros(rows, 1, config.dim, dtype=weight.dtype, device=weight.device)
        # Of the last verified chunk: what the other heads read (by head; -1 is the trunk).
        self.hidden_by_head: dict[int, Float[Tensor, "b c d"]] = {}

    @torch.inference_mode()
    def verify(
        self,
        start: Int[np.ndarray, " b"],
        ids: Int[np.ndarray, "b c"],
        lengths: Int[np.ndarray, " b"],
        branches: Branches | None = None,
    ) -> Float32[np.ndarray, "b c v"]:
        self.make_room(start, ids.shape[1])
        slots = self.visible_slots(start, ids.shape[1])
        chunk = self.chunk(self.tensor(start), self.tensor(lengths), ids.shape[1], slots, branches)
        logits, self.hidden_by_head = self.run_to_first_head(self.tensor(ids), chunk)
        return array(logits)

    def run_to_first_head(
        self, ids: Int[Tensor, "b c"], chunk: Chunk
    ) -> tuple[Float[Tensor, "b c v"], dict[int, Float[Tensor, "b c d"]]]:
        """Head 1's logits, and what the other heads read."""
        model = self.model
        with model.autocast():
            x = model.embed(ids)
            for block in model.trunk:
                x = self.run(block, x, chunk)
            hidden = {-1: x}
            for i in model.path_to_first_head:
                x = hidden[i] = self.run(model.links[i], x, chunk)
            return model.logits(0, x), hidden

    def keep_path(self, start: Int[np.ndarray, " b"], path: Int[np.ndarray, "b a"]) -> None:
        begins, places = self.tensor(start), self.tensor(path)
        row = torch.arange(len(begins), device=begins.device)[:, None]
        to = begins[:, None] + torch.arange(places.shape[1], device=begins.device)
        for block in self.model.first_blocks():
            self.caches[block].move((begins[:, None] + places) % self.slots, to % self.slots)
        self.hidden_by_head = {i: x[row, places] for i, x in self.hidden_by_head.items()}

    @torch.inference_mode()
    def copy_row(self, source: int, to: int) -> None:
        for x in (self.first_hidden, *(x for cache in self.caches.values() for x in (cache.k, cache.v))):
            x[to] = x[source]

    def drafts(
        self, start: Int[np.ndarray, " b"], accepted: Int[np.ndarray, " b"], heads: int, ids: Int[np.ndarray, "b n"]
    ) -> Iterator[Float32[np.ndarray, "b v"]]:
        if heads < 2:
            return
        slots = self.visible_slots(start, self.hidden_by_head[-1].shape[1])
        if self.model.config.topology == "deepseek":
            yield from self._deepseek_drafts(start, self.tensor(accepted), heads, ids, slots)
        else:
            with torch.inference_mode():  # not around a yield: between two logits the caller's code runs
                logits = array(self.head_logits(self.tensor(start), self.tensor(accepted), heads, slots))
            yield from logits

    def head_logits(
        self, start: Int[Tensor, " b"], accepted: Int[Tensor, " b"], heads: int, slots: int
    ) -> Float[Tensor, "h b v"]:
        """Logits of heads 2 to `heads` at the last accepted ids, for heads that do not read ids."""
        model, topology = self.model, self.model.config.topology
        row, last = torch.arange(len(start), device=start.device), (accepted - 1).clamp_min(0)
        chunk = self.chunk(start, accepted, self.hidden_by_head[-1].shape[1], slots)
        x, logits = self.hidden_by_head[0 if topology == "causal" else -1], []
        with model.autocast():
            for i in range(1, heads):
                link = model.links[i]
                if topology == "anticausal":
                    hidden = self.hidden_by_head[i][row, last]
                elif topology == "causal":
                    x = self.run(link, x, chunk)
                    hidden = x[row, last]
                elif isinstance(link, Block):
                    hidden = step_at(link, x, chunk, self.caches[link], last)[:, 0]
                elif topology != "branched":  # whose heads behind the second read what that one did
                    hidden = link(x[row, last])
                logits.append(model.logits(i, hidden))
        return torch.stack(logits)

    def _deepseek_drafts(
        self,
        start: Int[np.ndarray, " b"],
        accepted: Int[Tensor, " b"],
        heads: int,
        ids: Int[np.ndarray, "b n"],
        slots: int,
    ) -> Iterator[Float32[np.ndarray, "b v"]]:
        """All modules again from the first id whose ids ahead were drafts the last time."""
        model, redo = self.model, self.redo
        length = self.hidden_by_head[0].shape[1]
        new = self.chunk(self.tensor(start), accepted, length, slots)
        hidden = self.hidden_by_head[0].to(self.first_hidden.dtype)
        chunk = self.chunk(self.tensor(start - redo), accepted + redo, redo + length, slots)
        row, last = torch.arange(len(start), device=accepted.device), (redo + accepted - 1).clamp_min(0)
        with torch.inference_mode():
            self.first_hidden.scatter_(1, new.slots[..., None].expand_as(hidden), hidden)
            x = self.first_hidden.gather(1, chunk.slots[..., None].expand(-1, -1, hidden.shape[2]))
        for i in range(1, heads):
            places = start[:, None] - redo + np.arange(redo + length) + i
            ahead = self.tensor(np.take_along_axis(ids, places.clip(0, ids.shape[1] - 1), 1))
            module = model.links[i]
            assert isinstance(module, DeepSeekModule)
            with torch.inference_mode(), model.autocast():
                x = self.run(module.block, module.merged(x, model.embed(ahead)), chunk)
                logits = model.logits(i, x[row, last])
            yield array(logits)

    def run(self, module: nn.Module, x: Float[Tensor, "b c d"], chunk: Chunk) -> Float[Tensor, "b c d"]:
        """A layer of the trunk, or a head's link, on a chunk."""
        return step(module, x, chunk, self.caches[module]) if isinstance(module, Block) else module(x)

    def tensor(self, x: Num[np.ndarray, "*b"]) -> Num[Tensor, "*b"]:
        return torch.from_numpy(x).to(self.model.device)

    @torch.inference_mode(False)  # what is made inside that mode could not be written to outside it
    @torch.no_grad()
    def make_room(self, start: Int[np.ndarray, " b"], length: int) -> None:
        """For `length` ids from `start` on."""
        slots = slots_for(self.slots, int(start.max()) + length, self.window + self.redo + length + self.back)
        if slots == self.slots:
            return
        source, to = map(self.tensor, moves(start, self.slots, slots))
        for cache in self.caches.values():
            cache.grow(slots, source, to)
        if self.redo:
            row = torch.arange(len(start), device=source.device)[:, None]
            old = self.first_hidden
            self.first_hidden = old.new_zeros(len(old), slots + 1, old.shape[2])
            self.first_hidden[row, to] = old[row, source]
        self.slots = slots

    def visible_slots(self, start: Int[np.ndarray, " b"], length: int) -> int:
        """Slots of a row that `length` ids from `start` on can see."""
        return min(int(start.max()) + length, self.slots)

    def chunk(
        self,
        start: Int[Tensor, " b"],
        lengths: Int[Tensor, " b"],
        length: int,
        slots: int,
        branches: Branches | None = None,
    ) -> Chunk:
        """`length` ids from `start` on, the first `lengths` real, and which of the first `slots` slots each sees."""
        place, slot = (torch.arange(size, device=start.device) for size in (length, slots))
        depth, above = place.expand(len(start), -1), place[:, None] >= place
        if branches is not None:
            depth, above = self.tensor(branches.depth), torch.from_numpy(branches.ancestors).to(start.device)
        own = start[:, None] + place
        outside = (own < 0) | (place >= lengths[:, None])
        own_slots = (own % self.slots).where(~outside, self.slots)
        positions = (start[:, None] + depth).where(~outside, 0)
        # Of decided ids, a slot holds the last one that falls into it; below 0 there is none.
        last = start[:, None] - 1
        decided = last - (last - slot) % self.slots
        mask = (decided >= 0)[:, None] & (positions[..., None] - decided[:, None] < self.window)
        own_mask = above & (depth[..., None] - depth[:, None] < self.window)
        columns = own_slots.clamp_max(slots)[:, None].expand(-1, length, -1)
        mask = F.pad(mask, (0, 1)).scatter(2, columns, own_mask)[..., :slots]
        # An id without a place, or beyond the end of a text, sees some slot, so that its (unused) output is a number.
        mask[..., 0] |= ~mask.any(-1)
        config = self.model.config
        rope = rope_at(positions, config.head_dim, config.rope_theta, self.model.embed.weight.dtype)
        return Chunk(rope, own_slots, mask)


@cached_by_weights
@torch.no_grad()
def in_bfloat16(model: ByteMTP) -> ByteMTP:
    """The model with matrices in bfloat16, which autocast would cast anew in every pass; all else is shared."""
    matrices = {module.weight for module in model.modules() if isinstance(module, nn.Linear)}
    cast = {w: nn.Parameter(w.bfloat16(), requires_grad=False) for w in matrices}
    return copy.deepcopy(model, {id(w): cast.get(w, w) for w in model.parameters()})


NARROW = {torch.bfloat16: in_bfloat16, torch.int8: in_int8}
"""A model as it is run in other arithmetic than its own."""


def array(x: Tensor) -> np.ndarray:
    """For the host, in float32 if it has fractions."""
    return (x.float() if x.is_floating_point() else x).cpu().numpy()
