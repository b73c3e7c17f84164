"""Linear maps of one state, fitted on contexts of the training files, and the bigrams that they have to beat.

Each function says, for contexts that were not fitted on, which byte it expects at each distance, by layer.

Shapes:  r context, l layer, n bytes ahead, d width, f features, c bytes that occur, m outputs.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from bytemtp import ByteMTP
from bytemtp.common.vocab import VOCAB_SIZE
from experiments.future_lens.contexts import SEED, Contexts

EPOCHS, BATCH, RATE = 10, 500, 0.02
"""Of the maps to bytes: Adam, whose rate falls to zero in a line."""
RIDGE = 1e-6
"""Of the maps to states, as a share of the features' mean square: the embedding has fewer values than width."""


def bigram(training: Contexts, test: Contexts) -> Int[Tensor, "r 1 n"]:
    """The byte that the model wrote most often at that distance from the same last byte."""
    counts = torch.zeros(VOCAB_SIZE, training.written.shape[1], VOCAB_SIZE, device=training.written.device)
    distances = torch.arange(counts.shape[1], device=counts.device)
    places = torch.broadcast_tensors(training.last[:, None], distances, training.written)
    counts.index_put_(tuple(places), torch.ones((), device=counts.device), accumulate=True)
    return counts.argmax(-1)[test.last][:, None]


@torch.no_grad()
def to_bytes(training: Contexts, test: Contexts) -> Int[Tensor, "r l n"]:
    """Linear maps from each layer to the logits of the bytes at each distance; bytes never written have none."""
    classes = training.written.unique()
    weights = fit(features(training.states), torch.searchsorted(classes, training.written), len(classes))
    logits = torch.einsum("lrf,lfnc->rlnc", features(test.states), weights)
    return classes[logits.argmax(-1)]


def features(states: Float[Tensor, "r l d"]) -> Float[Tensor, "l r f"]:
    """The states, each divided by its root mean square as the model's norm does, and a one."""
    scaled = F.rms_norm(states, states.shape[-1:])
    return F.pad(scaled, (0, 1), value=1.0).transpose(0, 1).contiguous()


@torch.enable_grad()
def fit(x: Float[Tensor, "l r f"], labels: Int[Tensor, "r n"], classes: int) -> Float[Tensor, "l f n c"]:
    """Softmax regression, all layers and distances side by side."""
    (layers, count, width), distances = x.shape, labels.shape[1]
    weights = torch.zeros(layers, width, distances * classes, dtype=x.dtype, device=x.device, requires_grad=True)
    optimizer = torch.optim.Adam([weights], RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, EPOCHS * -(-count // BATCH))
    order = torch.Generator().manual_seed(SEED)
    for _ in range(EPOCHS):
        for rows in torch.randperm(count, generator=order).to(x.device).split(BATCH):
            logits = (x[:, rows] @ weights).reshape(-1, classes)
            loss = F.cross_entropy(logits, labels[rows].expand(layers, -1, -1).flatten(), reduction="sum")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return weights.detach().unflatten(-1, (distances, classes))


@torch.no_grad()
def to_states(model: ByteMTP, training: Contexts, test: Contexts) -> Int[Tensor, "r l n"]:
    """Linear maps from each layer to the model's own last state at each distance, which its head 1 then reads."""
    shape = training.later.shape[1:]
    expected = [
        model.logits(0, linear(training.states[:, layer], training.later.flatten(1), at).unflatten(1, shape)).argmax(-1)
        for layer, at in enumerate(test.states.unbind(1))
    ]
    return torch.stack(expected, 1)


def linear(x: Float[Tensor, "r d"], y: Float[Tensor, "r m"], at: Float[Tensor, "q d"]) -> Float[Tensor, "q m"]:
    """The least squares of y on x and a one, in closed form, at other x."""
    x, at = (F.pad(part.double(), (0, 1), value=1.0) for part in (x, at))
    gram = x.T @ x
    gram.diagonal().add_(RIDGE * gram.trace() / len(gram))
    return (at @ torch.linalg.solve(gram, x.T @ y.double())).to(y.dtype)
