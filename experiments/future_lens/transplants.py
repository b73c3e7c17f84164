"""A state in the place of another one: what does a model write that finds it at the end of an unrelated prompt?

The state at layer l of a context's last byte replaces the one at layer l of the prompt's last byte.  Layers above go on
from it; for all later bytes too it is what stands there.  The prompt is a fixed text, or as many vectors in the place
of its embeddings, learnt for each layer while the model stays as it is.

Shapes:  p position in the prompt, r context, l layer, n bytes ahead, d width.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from bytemtp import ByteMTP
from bytemtp.common.vocab import VOCAB_SIZE
from experiments.future_lens.branches import Branches, begin
from experiments.future_lens.contexts import AHEAD, SEED, Contexts

PROMPT = b"# this is "
STEPS, BATCH, RATE = 400, 64, 0.2
"""Of learning a prompt: Adam, whose rate falls to zero in a line."""


def fixed(model: ByteMTP, test: Contexts) -> Int[Tensor, "r l n"]:
    prompt = embedded(model)
    return torch.stack([written(model, prompt, states, i) for i, states in enumerate(test.states.unbind(1))], 1)


def learnt(model: ByteMTP, training: Contexts, test: Contexts) -> Int[Tensor, "r l n"]:
    states = enumerate(test.states.unbind(1))
    return torch.stack([written(model, learn(model, training, i), each, i) for i, each in states], 1)


def embedded(model: ByteMTP) -> Float[Tensor, "p d"]:
    return model.embed(torch.tensor(list(PROMPT), device=model.device)).detach()


@torch.no_grad()
def written(
    model: ByteMTP, prompt: Float[Tensor, "p d"], states: Float[Tensor, "r d"], layer: int
) -> Int[Tensor, "r n"]:
    """What the model writes greedily, every byte read by it in turn."""
    branches, x = transplanted(model, prompt, states, layer)
    return branches.write(x, AHEAD)[0][:, 0].T


def transplanted(
    model: ByteMTP, prompt: Float[Tensor, "p d"], states: Float[Tensor, "r d"], layer: int
) -> tuple[Branches, Float[Tensor, "1 r d"]]:
    """A copy of the prompt for each state, and the last layer's states behind them."""
    shared = begin(model, prompt[None, :-1])[1]
    place = torch.full((len(states),), len(prompt) - 1, device=states.device)
    visible = torch.ones(len(states), len(prompt) - 1, dtype=torch.bool, device=states.device)
    branches = Branches(model, shared, visible, place)
    return branches, branches.step(prompt[-1].expand(1, len(states), -1), {layer: states[None]})


def learn(model: ByteMTP, training: Contexts, layer: int) -> Float[Tensor, "p d"]:
    """The prompt after which transplanted states best give what the model expects one byte further ahead (n = 1)."""
    prompt = embedded(model).requires_grad_()
    optimizer = torch.optim.Adam([prompt], RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, STEPS)
    order = torch.Generator().manual_seed(SEED)
    for _ in range(STEPS):
        rows = torch.randint(len(training.last), (BATCH,), generator=order).to(model.device)
        optimizer.zero_grad()
        prompt_loss(model, prompt, training, rows, layer).backward()
        optimizer.step()
        schedule.step()
    return prompt.detach()


def prompt_loss(
    model: ByteMTP, prompt: Float[Tensor, "p d"], training: Contexts, rows: Int[Tensor, " b"], layer: int
) -> Float[Tensor, ""]:
    """Cross-entropy of the byte at n = 1 with what the model itself expects there; the byte at n = 0 is given."""
    branches, _ = transplanted(model, prompt, training.states[rows, layer], layer)
    x = branches.step(model.embed(training.written[rows, 0])[None])[0]
    said, expected = (model.logits(0, state)[:, :VOCAB_SIZE] for state in (x, training.later[rows, 1]))
    return F.cross_entropy(said, expected.softmax(-1))
