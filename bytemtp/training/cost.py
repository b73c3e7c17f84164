"""What a training step costs: memory, said before the start and again when there was too little, and FLOPs.

Memory is estimated from the settings alone.  FLOPs are those that the model asks for (Chowdhery et al. 2022, appendix
B), recomputed activations not counted: divided by what the device could do they are the utilisation, MFU.

Try:  python -c "import torch; from bytemtp.common.presets import PRESETS; from bytemtp.training.cost import memory
      print(memory(PRESETS['1.3b'], torch.bfloat16))"
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bytemtp.common.errors import UserError
from bytemtp.common.runtime import log, pick_dtype
from bytemtp.common.settings import ModelConfig, Settings, TrainConfig
from bytemtp.common.vocab import PADDED_VOCAB_SIZE
from bytemtp.model.initial import freeze_path
from bytemtp.model.layers import Block
from bytemtp.model.model import ByteMTP
from bytemtp.training.batches import check_shares, grouped
from bytemtp.training.distributed import World
from bytemtp.training.optimizer import is_layer_matrix

GB = 10**9
SINGLE = 4
"""Bytes of a float32: weights, gradients, state of the optimizer, residual stream."""

PEAK_TFLOPS = {
    "B200": 2250.0, "GH200": 989.0, "H200 NVL": 835.0, "H200": 989.0, "H100 NVL": 835.0, "H100 PCIe": 756.0,
    "H100": 989.0, "A100": 312.0, "A30": 165.0, "A10": 125.0, "L40S": 362.0, "L40": 181.0, "L4": 121.0,
}  # fmt: skip
"""bfloat16 without sparsity, from NVIDIA's data sheets, by words of the device's name; the first that fits counts."""


@dataclass(frozen=True)
class Memory:
    """Bytes of a training step, roughly."""

    weights: int
    """with copies in the step's dtype; of sharded ones two layers' worth at a time"""
    gradients: int
    """of sharded weights with one layer's before and in their sum"""
    moments: int
    """state of the optimizer"""
    activations: int
    """of one micro-batch"""

    @property
    def kept(self) -> int:
        """What a smaller micro-batch would not change."""
        return self.weights + self.gradients + self.moments

    @property
    def total(self) -> int:
        return self.kept + self.activations


def memory(settings: Settings, dtype: torch.dtype, processes: int = 1, *, sharded: bool = False) -> Memory:
    """Of a step on one device, with matrix products in `dtype`, if so many processes share each micro-batch.

    sharded: they share out the layers' matrices, too, all of them or `train.shards` (`bytemtp.training.sharding`).
    """
    train, half = settings.train, dtype.itemsize
    shards = train.shards or processes
    model = meta_model(settings)
    copies = half if half < SINGLE else 0
    largest = largest_layer(model) if sharded else 0
    weights, gradients, moments = 2 * half * largest, (half + SINGLE) * largest, 0
    for name, parameter in model.named_parameters():
        is_large = is_layer_matrix(name, parameter)
        is_split = sharded and is_large
        size = -(-parameter.numel() // shards) if is_split else parameter.numel()
        weights += (SINGLE if is_split else SINGLE + copies) * size
        if parameter.requires_grad:
            gradients += SINGLE * size
            moments += (1 if train.optimizer == "muon" and is_large else 2) * SINGLE * size
    positions = rows_a_round(train, processes) * train.seq_len // train.context_parallel
    return Memory(weights, gradients, moments, positions * activation_bytes(settings, half))


def rows_a_round(train: TrainConfig, processes: int) -> int:
    """Of one micro-batch that a process has, or has its part of."""
    return train.batch_size // train.accumulate // (processes // train.context_parallel)


def meta_model(settings: Settings) -> ByteMTP:
    """The model without its weights."""
    with torch.device("meta"):
        model = ByteMTP(settings.model)
    if settings.train.freeze != "none":
        freeze_path(model)
    return model


def largest_layer(model: ByteMTP) -> int:
    """Numbers in the matrices of the layer that has the most."""
    layers = (*model.trunk, *model.links)
    return max(sum(p.numel() for p in layer.parameters() if p.dim() == 2) for layer in layers)


def activation_bytes(settings: Settings, half: int) -> int:
    """What a position of a micro-batch holds at the most, `half` bytes a number in matrix products."""
    config, layer = settings.model, layer_bytes(settings.model, half)
    if settings.train.context_parallel > 1:
        layer += half * config.dim  # what was attended, as it was before it was sent back
    heads = config.head_layers
    if config.topology in ("parallel", "branched") and settings.train.backward == "sequential":
        heads = 1  # at a time
    kept = SINGLE * config.dim if settings.train.activation_checkpointing else layer
    if settings.train.freeze != "none":
        kept = 0  # there is no backward pass through the trunk
    # One more layer for the gradients inside the layer whose turn it is; then hidden states and one head's logits.
    # Transitions add their gradients, an order head its targets and what makes them, total variation two laws.
    copies = 8 if config.order_head else 6 if config.tables else 4
    logits = (copies + 2 * (settings.train.tv_from < 1)) * SINGLE * PADDED_VOCAB_SIZE
    hidden_and_logits = 5 * SINGLE * config.dim + logits
    return config.trunk_layers * kept + (heads + 1) * layer + hidden_and_logits


def layer_bytes(config: ModelConfig, half: int) -> int:
    """What a layer keeps of a position for its backward pass; compiled layers keep less."""
    keys = config.head_dim * config.key_value_heads
    norms = 2 * (2 * SINGLE + half) * config.dim  # input, normed input, and that as the product takes it
    if config.qk_norm:  # queries and keys in float32, if they are not, and normed
        norms += (half + (SINGLE if half < SINGLE else 0)) * (config.dim + keys)
    attention = half * 3 * (config.dim + keys)  # queries, keys and values before and after the rotation, and the result
    return norms + attention + 4 * half * config.ffn_dim  # gate, up, the gate's SiLU, the product


def check_memory(settings: Settings, device: torch.device, processes: int = 1, *, sharded: bool = False) -> None:
    """Say what a step will hold, and what to do where that is more than there is.

    UserError if the weights and what belongs to them do not fit: no setting of the run could help.
    """
    train, room = settings.train, device_memory(device)
    need = memory(settings, pick_dtype(train.dtype, device).value, processes, sharded=sharded)
    if need.kept > room:
        raise UserError(
            f"weights, gradients and optimizer take some {need.kept / GB:.0f} GB and {device} has "
            f"{room / GB:.0f}: {more_cards(train, processes, sharded=sharded)}, or choose a smaller one"
        )
    rows = f"{rows_a_round(train, processes)} rows"
    if train.context_parallel > 1:
        rows = f"a part of {rows}"
    parts = f"{need.kept / GB:.1f} weights and optimizer, {need.activations / GB:.1f} a micro-batch of {rows}"
    log(f"memory: some {need.total / GB:.1f} GB of {room / GB:.0f} ({parts})")
    if need.total > room:
        log(f"warning: it may run out of memory; {remedy(settings, processes)}")


def more_cards(train: TrainConfig, processes: int, *, sharded: bool) -> str:
    """What to do about a model that is too large for one, as half a sentence."""
    if sharded and 0 < train.shards < processes:
        return f"this model needs more than {train.shards} cards to share it; set train.shards to 0, or higher"
    if sharded:
        return f"this model needs more cards than {processes}; start more processes"
    return "this model needs several cards that share it out; start it with torchrun and --train.parallel fsdp"


def device_memory(device: torch.device) -> int:
    """Bytes that the device has; on a CPU each of torchrun's processes has its share of the machine's."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def remedy(settings: Settings, processes: int = 1, *, planned: bool = False) -> str:
    """The settings that make a step smaller, as half a sentence.

    planned: the rounds of `settings` are those of one process, and the user names those of all.
    """
    train = settings.train
    readers = processes // train.context_parallel
    more = range(train.accumulate + 1, train.batch_size // readers + 1)
    rounds = next((k for k in more if can_share(settings, processes, accumulate=k)), 0)
    options = [f"train.accumulate to {rounds * (readers if planned else 1)} or more"] if rounds else []
    if not rounds and (times := _more_parts(settings, processes)):
        parts, rounds_of_fewer = times * train.context_parallel, train.accumulate * (readers if planned else times)
        options.append(f"train.context_parallel to {parts} and train.accumulate to {rounds_of_fewer}")
    if not train.activation_checkpointing:
        options.append("train.activation_checkpointing to true")
    options.append(f"train.seq_len below {train.seq_len}")
    return f"set {', or '.join(options)}"


def _more_parts(settings: Settings, processes: int) -> int:
    """How many times as many processes could share out rows, in so many times as many rounds: the least; else 0."""
    parts, rounds = settings.train.context_parallel, settings.train.accumulate
    for times in range(2, processes // parts + 1):
        if can_share(settings, processes, context_parallel=times * parts, accumulate=times * rounds):
            return times
    return 0


def can_share(settings: Settings, processes: int, **train: Any) -> bool:
    """Whether so many processes could train with these settings of `train` in place of those named."""
    try:
        own = replace(settings, train=replace(settings.train, **train))
        check_shares(own, grouped(own, World(0, processes)))
    except UserError:
        return False
    return True


@contextmanager
def told_if_full(settings: Settings, processes: int = 1) -> Iterator[None]:
    """UserError with the remedy in place of an error by an allocator."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # on a CPU, PyTorch raises nothing more special
        what = str(error).strip().partition("\n")[0]
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in what:
            raise UserError(
                f"out of memory: {what.partition('. ')[0]}; start anew: {remedy(settings, processes)}"
            ) from None
        raise


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of forward and backward."""

    a_position: float
    a_pair: float
    """for each (query, key) pair that attention looks at"""

    def of(self, positions: int, pairs: int) -> float:
        return positions * self.a_position + pairs * self.a_pair

    @staticmethod
    def of_model(model: ByteMTP, far_rows: float) -> "Flops":
        """Two a weight forward and, unless it is frozen, four backward; heads off head 1's path see fewer rows."""
        modules = [*model.first_modules(), *filter(None, [model.order_head])]
        of_all_rows = {parameter for module in modules for parameter in module.parameters()}

        def cost(weight: Tensor) -> float:
            return (6 if weight.requires_grad else 2) * (1.0 if weight in of_all_rows else far_rows)

        n, path = model.config.n_future, len(model.path_to_first_head)
        matrices = [p for p in model.parameters() if p.dim() == 2 and p is not model.embed.weight]
        total = sum(cost(weight) * weight.numel() for weight in matrices)
        if len(model.unembed) == 1:  # all heads multiply by the same one
            unembedding = model.unembedding(0)[1]
            total += cost(unembedding) * unembedding.numel() * (path - 1 + (n - path) * far_rows)
        blocks = [module for module in model.modules() if isinstance(module, Block)]
        return Flops(total, sum(2 * model.config.dim * cost(block.qkv.weight) for block in blocks))


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """What the device can do a second in `dtype`; None where nobody has written it down."""
    if device.type != "cuda" or dtype != torch.bfloat16:
        return None
    return peak_by_name(torch.cuda.get_device_name(device))


def peak_by_name(name: str) -> float | None:
    """The same for bfloat16 by the name that CUDA gives; None for a slice of a card (MIG)."""
    words = set(re.split("[ -]", name))
    fits = [peak for key, peak in PEAK_TFLOPS.items() if words.issuperset(key.split())]
    return 1e12 * fits[0] if fits and "MIG" not in words else None
