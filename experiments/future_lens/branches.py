"""Many continuations of one beginning, layer by layer: the beginning is read once, and any state can be replaced.

    states, shared = begin(model, model.embed(ids))                     # ids [w s]
    branches = Branches(model, shared, visible, positions)              # visible [e s]: what each branch continues
    written, later = branches.write(states[-1][:, ends], 8)

The layers are those on the way to head 1; layer 0 is the embedding and layer l what the l-th of them gives.  Its slow
twin in the tests is the model's own forward pass over each text.

Shapes:  w beginning, s position in it, e branch, n step of a branch, d width, h query heads, g key heads, k head width.
"""

from collections.abc import Mapping, Sequence

import torch
from einops import einsum
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bytemtp import ByteMTP
from bytemtp.model.layers import Rope, rope_at

KeysValues = tuple[Float[Tensor, "w x g k"], Float[Tensor, "w x g k"]]
"""x: positions of a beginning, or branches at one step"""
NOTHING: Mapping[int, Tensor] = {}


def rope_of(model: ByteMTP, positions: Int[Tensor, " s"]) -> Rope:
    return rope_at(positions, model.config.head_dim, model.config.rope_theta, model.embed.weight.dtype)


def begin(model: ByteMTP, x: Float[Tensor, "w s d"]) -> tuple[list[Float[Tensor, "w s d"]], list[KeysValues]]:
    """States of embedded ids at all layers, the embedding first; keys and values of each."""
    positions = torch.arange(x.shape[1], device=x.device)
    rope, causal = rope_of(model, positions), positions <= positions[:, None]
    states: list[Tensor] = [x]
    shared: list[KeysValues] = []
    for block in model.first_blocks():
        q, k, v = block.project(states[-1], *rope)
        states.append(block.finish(states[-1], attend(q, (k, v), causal, [])))
        shared.append((k, v))
    return states, shared


class Branches:
    """Texts that go on from beginnings, e from each of w; `step` appends an id to all of them."""

    def __init__(
        self, model: ByteMTP, shared: list[KeysValues], visible: Bool[Tensor, "e s"], positions: Int[Tensor, " e"]
    ) -> None:
        self.model, self.shared, self.visible = model, shared, visible
        self.positions = positions
        """of the next step"""
        self.own: list[list[KeysValues]] = [[] for _ in shared]
        """by layer, what each step has left"""

    def step(self, x: Float[Tensor, "w e d"], transplant: Mapping[int, Tensor] = NOTHING) -> Float[Tensor, "w e d"]:
        """The last layer's state of one more id a branch, which is embedded as x.

        transplant: by layer, states [w e d] to go on with in place of those that the layer gave.
        """
        rope = rope_of(self.model, self.positions)
        for i, block in enumerate(self.model.first_blocks()):
            x = transplant.get(i, x)
            q, k, v = block.project(x, *rope)
            self.own[i].append((k, v))
            x = block.finish(x, attend(q, self.shared[i], self.visible, self.own[i]))
        self.positions = self.positions + 1
        return transplant.get(len(self.own), x)

    def write(self, x: Float[Tensor, "w e d"], count: int) -> tuple[Int[Tensor, "n w e"], Float[Tensor, "n w e d"]]:
        """What is written greedily from the last states x, and the state that each of these ids was read from."""
        states, written = [x], [self.greedy(x)]
        while len(written) < count:
            states.append(self.step(self.model.embed(written[-1])))
            written.append(self.greedy(states[-1]))
        return torch.stack(written), torch.stack(states)

    def greedy(self, x: Float[Tensor, "w e d"]) -> Int[Tensor, "w e"]:
        return self.model.logits(0, x).argmax(-1)


def attend(
    q: Float[Tensor, "w e h k"], shared: KeysValues, visible: Bool[Tensor, "e s"], own: Sequence[KeysValues]
) -> Float[Tensor, "w e h k"]:
    """Attention to those positions of the beginning that a branch continues, and to all of its own."""
    group = q.shape[2] // shared[0].shape[2]
    keys, values = ([part.repeat_interleave(group, 2) for part in parts] for parts in zip(shared, *own, strict=True))
    scores = einsum(q, keys[0], "w e h k, w s h k -> w e h s").masked_fill(~visible[:, None], -torch.inf)
    scores = torch.cat([scores, *((q * key).sum(-1, keepdim=True) for key in keys[1:])], -1)
    weights = (scores * q.shape[-1] ** -0.5).softmax(-1)
    from_shared, *from_own = weights.split([visible.shape[-1], *[1] * len(own)], -1)
    result = einsum(from_shared, values[0], "w e h s, w s h k -> w e h k")
    return sum((weight * value for weight, value in zip(from_own, values[1:], strict=True)), result)
