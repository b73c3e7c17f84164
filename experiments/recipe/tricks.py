"""Ways of training that the toolkit has no setting for, tried on its own command:

    python -m experiments.recipe.tricks TRICK ARGUMENTS_OF_BYTEMTP_TRAIN...

zero-init   matrices that write to the residual stream begin at zero (Zhang et al. 2019; modded-nanogpt)
unit-embed  the embedding is drawn at unit scale, not at that of the other matrices (Vaswani et al. 2017, section 3.4)
z-loss      1e-4 times the squared logarithm of the softmax's denominator is added to the loss (PaLM, section 5)
ema         the weights that are kept are a moving average of those of all steps (Polyak & Juditsky 1992)
repeat-text rows that repeat (`train.repeat_rows`) repeat a stretch of their text in place of random bytes of it
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int64
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from bytemtp import train
from bytemtp.common.cli import run_main
from bytemtp.common.errors import UserError
from bytemtp.model import model
from bytemtp.model.checkpoint import latest
from bytemtp.model.model import ByteMTP
from bytemtp.training import loss, repeats
from bytemtp.training.repeats import SHORTEST

Z_LOSS = 1e-4
AVERAGED = 0.997
"""Share of the average that a step leaves as it is."""
Average = dict[str, Tensor]
MARK = "averaged"
"""Empty file in a checkpoint whose weights are the average."""


def main(arguments: Sequence[str] | None = None) -> None:
    """UserError for an unknown trick, or an average that is to go on where it was killed, which is kept nowhere.

    A finished average that is to go on stays as it is.
    """
    trick, *rest = sys.argv[1:] if arguments is None else arguments
    if trick not in TRICKS:
        raise UserError(f"unknown trick {trick!r}; choose from {', '.join(TRICKS)}")
    run = Path(dict(pairwise(rest)).get("--out", ""))
    if trick == "ema" and "--resume" in rest:
        if is_averaged(run):
            return
        raise UserError("the average of a killed run is lost; delete the run's folder to begin anew")
    with TRICKS[trick](run):
        train.main(rest)


def begun_otherwise(change: Callable[[ByteMTP], None]) -> AbstractContextManager[Any]:
    """Every model is changed once its weights are drawn."""
    draw = model.init_weights

    def changed(drawn: ByteMTP, seed: int) -> None:
        draw(drawn, seed)
        with torch.no_grad():
            change(drawn)

    return patch.object(model, "init_weights", changed)


def zero_outputs(drawn: ByteMTP) -> None:
    for name, parameter in drawn.named_parameters():
        if name.endswith(("attention_out.weight", "ffn_out.weight")):
            nn.init.zeros_(parameter)


def unit_embedding(drawn: ByteMTP) -> None:
    drawn.embed.weight *= drawn.config.dim**0.5


def z_loss() -> AbstractContextManager[Any]:
    """The gradient alone: what the log prints as the loss stays the cross-entropy."""
    cross_entropy = F.cross_entropy

    def with_penalty(logits: Tensor, targets: Tensor, **options: Any) -> Tensor:
        penalty = Z_LOSS * logits.logsumexp(-1).square().where(targets != loss.IGNORED, 0)
        return cross_entropy(logits, targets, **options) + penalty - penalty.detach()

    return patch.object(F, "cross_entropy", with_penalty)


def stretches(rows: int, width: int, seed: tuple[int, int]) -> Int64[np.ndarray, "b w"]:
    """In place of `repeating_places`: periods of up to nine tenths of a row, of which each place is one further on."""
    random = np.random.default_rng(seed)
    longest = max(SHORTEST, 0.9 * width)
    periods = (SHORTEST * (longest / SHORTEST) ** random.random((rows, 1))).astype(np.int64)
    return (random.random((rows, 1)) * (width - periods)).astype(np.int64) + np.arange(width) % periods


@contextmanager
def moving_average(run: Path) -> Iterator[None]:
    """Put into the run's last checkpoint, once it has ended well; what is averaged is float32."""
    average: Average = {}
    hook = register_optimizer_step_post_hook(lambda optimizer, args, options: follow(average, optimizer))
    try:
        yield
    finally:
        hook.remove()  # it is every optimizer's
    replace_weights(run, average)


@torch.no_grad()
def follow(average: Average, optimizer: torch.optim.Optimizer) -> None:
    for group in optimizer.param_groups:
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            average.setdefault(name, parameter.detach().clone()).lerp_(parameter, 1 - AVERAGED)


def replace_weights(run: Path, average: Average) -> None:
    folder = latest(run)
    assert folder is not None
    path = folder / "model.safetensors"
    save_file(load_file(path) | average, path)
    (folder / MARK).touch()


def is_averaged(run: Path) -> bool:
    """Whether a run has ended well and may be scored again."""
    folder = latest(run)
    return folder is not None and (folder / MARK).exists()


TRICKS: dict[str, Callable[[Path], AbstractContextManager[Any]]] = {
    "zero-init": lambda run: begun_otherwise(zero_outputs),
    "unit-embed": lambda run: begun_otherwise(unit_embedding),
    "z-loss": lambda run: z_loss(),
    "ema": moving_average,
    "repeat-text": lambda run: patch.object(repeats, "repeating_places", stretches),
}
"""A context that the training into a folder runs in."""

if __name__ == "__main__":
    run_main(main)
