"""What a training step sends from process to process, as `bytemtp.training.cost` says what it holds and computes.

Counted are the bytes that one process sends, by rings (Patarasuk & Yuan 2009): to gather x bytes from k processes, or
to sum them and keep a k-th, each sends x (k - 1) / k; to sum them and keep all, twice that.

    ddp     gradients of everything, summed once a step
    fsdp    a layer's matrices, gathered forward and backward in each micro-batch, and their gradients summed and kept
            in part; with copies of the model, these parts summed once a step; gradients of what is whole, as in ddp
    muon    and, if matrices are sharded, their updates, gathered once a step
    rows    of which each process has a part (`train.context_parallel`): of every layer queries, keys, values and what
            was attended, exchanged forward and backward, and forward again where activations are recomputed

To exchange x bytes among k processes each sends x (k - 1) / k of its own.
Counts of targets, norms and losses are some numbers a step, and left out.

Try:  python -c "import torch; from bytemtp.common.presets import PRESETS; from bytemtp.training.traffic import traffic
      print(traffic(PRESETS['7b'], torch.bfloat16, 64, sharded=True))"
"""

from dataclasses import dataclass

import torch

from bytemtp.common.settings import Settings
from bytemtp.model.layers import Block
from bytemtp.model.model import ByteMTP
from bytemtp.training.cost import SINGLE, meta_model, rows_a_round
from bytemtp.training.optimizer import is_layer_matrix

UPDATE = 2
"""Bytes of a number of Muon's updates, bfloat16."""


@dataclass(frozen=True)
class Traffic:
    """Bytes that a process sends in a step, roughly."""

    weights: int
    """of layers, gathered forward and backward"""
    gradients: int
    """of layers among those that share a copy of the model, in each micro-batch"""
    once: int
    """summed after the last micro-batch: gradients that are whole, or over copies; and Muon's updates"""
    attention: int = 0
    """exchanged among those that share out rows"""

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.once + self.attention


def traffic(settings: Settings, dtype: torch.dtype, processes: int, *, sharded: bool) -> Traffic:
    """Of a step by so many processes, with matrix products in `dtype`; sharded: as `cost.memory`."""
    train, shards = settings.train, (settings.train.shards or processes) if sharded else 1
    model = meta_model(settings)
    matrices = frozen = small = 0
    for name, parameter in model.named_parameters():
        if sharded and is_layer_matrix(name, parameter):
            matrices += parameter.numel() * parameter.requires_grad
            frozen += parameter.numel() * (not parameter.requires_grad)
        else:
            small += parameter.numel() * parameter.requires_grad
    gathered = train.accumulate * (2 * matrices + frozen) * dtype.itemsize
    updates = UPDATE * matrices if train.optimizer == "muon" else 0
    whole = 2 * SINGLE * (_sent(small, processes) + _sent(matrices // shards, processes // shards))
    return Traffic(
        _sent(gathered, shards),
        _sent(train.accumulate * SINGLE * matrices, shards),
        whole + _sent(updates, shards),
        _sent(round(exchanged(model, settings, dtype, processes)), train.context_parallel),
    )


def exchanged(model: ByteMTP, settings: Settings, dtype: torch.dtype, processes: int) -> float:
    """Bytes of all that a process exchanges in a step, its own part included."""
    config, train = settings.model, settings.train
    a_position = 2 * (config.dim + config.head_dim * config.key_value_heads) * dtype.itemsize
    both_ways = 1.0 if train.freeze != "none" else 2.0  # of what head 1 needs
    times = (3.0 if train.activation_checkpointing and both_ways > 1 else both_ways) * config.trunk_layers
    for i, link in enumerate(model.links):
        of_link = both_ways if i in model.path_to_first_head else 2 * train.far_rows
        times += of_link * any(isinstance(module, Block) for module in link.modules())
    positions = train.accumulate * rows_a_round(train, processes) * train.seq_len // train.context_parallel
    return positions * a_position * times


def _sent(size: int, processes: int) -> int:
    """Of `size` bytes that as many processes have a part of, what each sends to let all have it."""
    return size * (processes - 1) // processes
