"""AdamW or Muon with decay groups, gradient clipping, and the learning rate over the run.

AdamW (Loshchilov & Hutter 2019) with the betas, decay and cosine of Gloeckle et al. 2024, table S13.  Muon (Jordan et
al. 2024) for the matrices of the transformer layers, at the root mean square of AdamW's updates, so that learning rate
and decay mean the same (Liu et al. 2025, section 2.2); everything else stays with AdamW.

Try:  python -c "from bytemtp.common.settings import TrainConfig; from bytemtp.training.optimizer import learning_rate
      print([round(learning_rate(TrainConfig(steps=40, warmup=4), step, 0), 6) for step in range(10)])"
"""

import math
from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from bytemtp.common.settings import LONGEST_WARMUP, TrainConfig
from bytemtp.common.shards import copies, is_sharded, local
from bytemtp.model.model import ByteMTP
from bytemtp.training.distributed import ALONE, World
from bytemtp.training.muon import StackedMuon

BETAS = (0.9, 0.95)
MOMENTUM = 0.95
"""Of Muon (Jordan et al. 2024)."""

EMBEDDING, UNEMBEDDINGS = "embed.weight", ("unembed.", "transitions", "order_head.")
"""What the names begin with that `train.embedding_lr` and `train.unembedding_lr` are for: all that makes logits."""
STATES = {torch.optim.AdamW: ("step", "exp_avg", "exp_avg_sq"), StackedMuon: ("momentum_buffer",)}


class Optimizers:
    """One optimizer for each kind of parameter, stepped together.

    Parameters are named in the groups (`param_names`), so that checkpoints can store the state by name.  Frozen ones
    (`requires_grad` is False) are in no group.
    """

    def __init__(self, model: ByteMTP, train: TrainConfig, world: World = ALONE) -> None:
        """world: the processes that share out the weights, if they are sharded."""
        self.world = world
        named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        first = {parameter for module in model.first_modules() for parameter in module.parameters()}
        self.shared = [parameter for _, parameter in named if parameter in first]
        """what head 1 needs; `own` is what only the others do"""
        self.own = [parameter for _, parameter in named if parameter not in first]
        matrices = [(name, p) for name, p in named if train.optimizer == "muon" and is_layer_matrix(name, p)]
        taken = {name for name, _ in matrices}
        rest = [(name, parameter) for name, parameter in named if name not in taken]
        self.parts: list[torch.optim.Optimizer] = []
        if rest:
            self.parts.append(adamw(rest, train))
        if matrices:
            self.parts.append(muon(matrices, train))

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return list(chain.from_iterable(part.param_groups for part in self.parts))

    def states(self) -> Iterator[tuple[str, Tensor, dict[str, Any], tuple[str, ...]]]:
        """Name, parameter, state (to be read and written to) and that state's names, of every parameter.

        What has not learned yet, such as heads that begin later, has the state of before a first step: zeros.
        """
        for part in self.parts:
            keys = STATES[type(part)]
            for group in part.param_groups:
                for name, parameter in zip(group["param_names"], group["params"], strict=True):
                    state = part.state[parameter]
                    state.update({key: blank(key, parameter) for key in keys if key not in state})
                    yield name, parameter, state, keys

    def clip(self, largest: float) -> Tensor:
        """Clip the gradients of what head 1 needs and of the rest apart, each to the norm `largest` (0: not at all).

        Apart, because a norm of everything would let the unembeddings of seven more heads shrink the trunk's steps.
        Returns the norm of what head 1 needs, or of the rest if that is all that learns, or not finite.
        """
        parts = [part for part in (self.shared, self.own) if any(x.grad is not None for x in part)]
        norms = [clip_together(part, largest or math.inf, self.world) for part in parts]
        return torch.where(norms[-1].isfinite(), norms[0], norms[-1])

    def step(self) -> None:
        for part in self.parts:
            part.step()

    def zero_grad(self) -> None:
        for part in self.parts:
            part.zero_grad()


def blank(key: str, parameter: Tensor) -> Tensor:
    """State of the optimizer before the first step, as torch's own makes it."""
    if key == "step":
        return torch.zeros((), dtype=torch.float32, device=parameter.device)
    return torch.zeros_like(parameter)


def clip_together(parameters: list[nn.Parameter], largest: float, world: World) -> Float[Tensor, ""]:
    """`torch.nn.utils.clip_grad_norm_`, also where processes hold slices of some: the norm of all, before clipping."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    sharded = [gradient for gradient in gradients if is_sharded(gradient)]
    slices = [local(gradient) for gradient in sharded]
    wholes = [gradient for gradient in gradients if not is_sharded(gradient)]
    norm = get_total_norm(wholes or slices)
    if slices:
        square = world.sum(get_total_norm(slices).double().square()) / copies(sharded[0])
        norm = ((square + norm.double().square()) if wholes else square).sqrt().to(norm.dtype)
    torch._foreach_mul_(slices + wholes, (largest / (norm + 1e-6)).clamp(max=1.0))
    return norm


def is_layer_matrix(name: str, parameter: Tensor) -> bool:
    """Whether it is a matrix from hidden states to hidden states, not an (un)embedding: Muon's, and what is sharded."""
    return parameter.dim() == 2 and name.startswith(("trunk.", "links."))


def adamw(named: list[tuple[str, nn.Parameter]], train: TrainConfig) -> torch.optim.AdamW:
    """Decoupled decay on matrices only: decaying a norm's scale would pull it from 1 to 0, not towards simplicity.

    Embedding and unembeddings have learning rates of their own, in whose units they decay as slowly as other matrices.
    """
    into, out = train.embedding_lr, train.unembedding_lr
    embedding = [(name, parameter) for name, parameter in named if name == EMBEDDING]
    unembeddings = [(name, parameter) for name, parameter in named if name.startswith(UNEMBEDDINGS)]
    # Groups of their own: fused AdamW cannot mix sharded and whole tensors.
    layers = [(name, parameter) for name, parameter in named if is_layer_matrix(name, parameter)]
    scales = [(name, parameter) for name, parameter in named if parameter.dim() < 2]
    groups = [
        {"params": embedding, "weight_decay": train.weight_decay / into, "lr_scale": into},
        {"params": unembeddings, "weight_decay": train.weight_decay / out, "lr_scale": out},
        {"params": layers, "weight_decay": train.weight_decay},
        {"params": scales, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=train.lr, betas=BETAS, fused=True)


def muon(named: list[tuple[str, nn.Parameter]], train: TrainConfig) -> StackedMuon:
    group = {"params": named, "weight_decay": train.weight_decay}
    return StackedMuon([group], lr=train.lr, momentum=MOMENTUM)


def learning_rate(train: TrainConfig, step: int, elapsed_s: float) -> float:
    """Learning rate of optimiser step number `step` (from 0), `elapsed_s` seconds into training.

    The warm-up takes a tenth of the run at most.  By steps, its last step is at the peak and the last step of all at
    the end of the schedule.  By minutes, the schedule follows the clock.
    """
    warmup = train.warmup_steps
    warm = (step + 1) / max(1, warmup)
    if train.minutes:
        progress = elapsed_s / (60 * train.minutes)
        warm = max(warm, progress / LONGEST_WARMUP)
    else:
        progress = (step + 1 - warmup) / max(1, train.steps - warmup)
    return train.lr * (warm if warm < 1 else SCHEDULES[train.schedule](train, min(1.0, progress)))


def cosine(train: TrainConfig, progress: float) -> float:
    """Half a cosine down to `final_lr` (Loshchilov & Hutter 2017)."""
    return train.final_lr + (1 - train.final_lr) * (1 + math.cos(math.pi * progress)) / 2


def wsd(train: TrainConfig, progress: float) -> float:
    """Constant, then linear to zero over the last `decay` of the run (warm-up, stable, decay: Hu et al. 2024)."""
    return min(1.0, (1 - progress) / train.decay)


SCHEDULES = {"cosine": cosine, "wsd": wsd}


def set_learning_rate(optimizer: Optimizers | torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
