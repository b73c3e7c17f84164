"""AdamW with decay groups, and the learning rate: linear warm-up, then a cosine (Loshchilov & Hutter 2017, 2019).

Betas, decay and the cosine's end follow Gloeckle et al. 2024, table S13.

Try:  python -c "from bytemtp.common.settings import TrainConfig; from bytemtp.training.optimizer import learning_rate
      print([round(learning_rate(TrainConfig(steps=10, warmup=4), step, 0), 6) for step in range(10)])"
"""

import math

import torch
from torch import nn

from bytemtp.common.settings import TrainConfig

BETAS = (0.9, 0.95)


def adamw(model: nn.Module, train: TrainConfig) -> torch.optim.AdamW:
    """Decoupled decay on matrices only: decaying a norm's scale would pull it from 1 to 0, not towards simplicity.

    Parameters are named in the groups (`param_names`), so that checkpoints can store the state by name.  Frozen ones
    (`requires_grad` is False) are in no group.
    """
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    matrices = [(name, parameter) for name, parameter in named if parameter.dim() >= 2]
    scales = [(name, parameter) for name, parameter in named if parameter.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": train.weight_decay},
        {"params": scales, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]  # frozen runs may have no scales left
    return torch.optim.AdamW(groups, lr=train.lr, betas=BETAS, fused=True)


def learning_rate(train: TrainConfig, step: int, elapsed_s: float) -> float:
    """Learning rate of optimiser step number `step` (from 0), `elapsed_s` seconds into training.

    By steps, the last step of the warm-up is at the peak and the last step of all at `final_lr` of it.  By minutes, the
    cosine follows the clock.  During the warm-up the rate depends on nothing but the step.
    """
    if step < train.warmup:
        return train.lr * (step + 1) / train.warmup
    if train.minutes:
        progress = elapsed_s / (60 * train.minutes)
    else:
        progress = (step + 1 - train.warmup) / max(1, train.steps - train.warmup)
    cosine = (1 + math.cos(math.pi * min(1.0, progress))) / 2
    return train.lr * (train.final_lr + (1 - train.final_lr) * cosine)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
