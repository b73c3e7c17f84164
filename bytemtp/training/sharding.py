"""Sharding: N processes hold an N-th each of the layers' matrices, their gradients and the optimizer's state.

    a layer's turn, forward or backward   its matrices are gathered, used, and dropped
    after its backward pass               their gradients are summed, and each process keeps its own rows
    a step                                each process updates its own rows

With `train.shards` K it is a K-th: the first K processes share out one copy of the model, the next K another, and once
a step each process sums the gradients of its rows over the copies (HSDP).  Then matrices are gathered from neighbours
only, on one machine perhaps.

This is PyTorch's FSDP2 (Zhao et al. 2023; ZeRO-3 of Rajbhandari et al. 2020), one unit for each trunk layer and each
head.  Whatever is small stays whole everywhere, and its gradients are summed as without sharding: norms, embedding,
transitions, order head, and unembeddings, which must not be dropped between the backward passes of the heads that
share them.  Matrices are gathered in the dtype of their products, which is what autocast makes of them, and gradients
are summed in float32.

Try:  torchrun --nproc-per-node 2 -m bytemtp.train PATH --out RUN --train.parallel fsdp
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from bytemtp.common.errors import UserError
from bytemtp.common.runtime import Choice, log, pick_dtype
from bytemtp.common.settings import Settings, TrainConfig
from bytemtp.common.shards import is_sharded, whole
from bytemtp.model.checkpoint import OptimizerStates
from bytemtp.model.model import ByteMTP, init_weights
from bytemtp.training.cost import GB, check_memory, device_memory, memory
from bytemtp.training.distributed import World
from bytemtp.training.optimizer import is_layer_matrix
from bytemtp.training.start import freeze, start_from


def will_shard(settings: Settings, device: torch.device, world: World) -> bool:
    """Whether the processes share out the weights: said where there are several.  UserError if memory is too small."""
    sharded = False
    if world.size > 1:
        choice = pick_parallel(settings, device, world)
        log(f"parallel: {choice}")
        sharded = bool(choice.value == "fsdp")
    if sharded:
        check_copies(settings.train, world.size)
    check_memory(settings, device, world.size, sharded=sharded)
    return sharded


def check_copies(train: TrainConfig, processes: int) -> None:
    """UserError unless so many processes make whole copies of the model."""
    if train.shards == 1:
        raise UserError("train.shards is 1, so nobody would share; set train.parallel to ddp, or train.shards to 0")
    if train.shards and processes % train.shards:
        raise UserError(
            f"train.shards is {train.shards}, which does not divide the {processes} processes; set it to 0 or a divisor"
        )


def pick_parallel(settings: Settings, device: torch.device, world: World) -> Choice:
    """How several processes train: each with all weights (ddp), or sharing them out (fsdp)."""
    train = settings.train
    if train.parallel != "auto":
        return Choice(train.parallel, "as asked")
    if device.type != "cuda":
        return Choice("ddp", "processes on a CPU share its memory")
    need, room = memory(settings, pick_dtype(train.dtype, device).value, world.size).total, device_memory(device)
    reason = f"a step with all weights takes {need / GB:.1f} GB of {room / GB:.0f}"
    return Choice("fsdp" if need > room else "ddp", reason)


def build(settings: Settings, source: Path | None, device: torch.device, *, sharded: bool) -> ByteMTP:
    """The model on a device, whole or sharded, with weights drawn at random or those of `source` (`--init`).

    Of one that is sharded each process draws all matrices, one at a time, and keeps its rows; only weights of a source
    are whole on every host for a moment.
    """
    train, draws_in_parts = settings.train, sharded and source is None
    with torch.device("meta" if draws_in_parts else "cpu"):
        model = ByteMTP(settings.model, train.seed)
    if source is not None:
        start_from(model, source, train)
    freeze(model, train)
    if not sharded:
        return model.to(device)
    shard(model, pick_dtype(train.dtype, device).value, device, train.shards)
    if train.sample_bytes:
        log("samples: none, for the weights are sharded; python -m bytemtp.generate RUN writes one of a checkpoint")
    if draws_in_parts:
        model.to_empty(device=device)
        init_weights(model, train.seed)
    return model.to(device)


def shard(model: ByteMTP, dtype: torch.dtype, device: torch.device, shards: int = 0) -> None:
    """Keep this process's rows of the layers' matrices.

    dtype: of matrix products; float32 stands for the weights' own.  shards: as `train.shards`.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    size = dist.get_world_size()
    shape = (size // shards, shards) if 0 < shards < size else (size,)
    mesh = init_device_mesh(device.type, shape, mesh_dim_names=("copies", "shards")[-len(shape) :])
    reduced = dict(param_dtype=dtype, reduce_dtype=torch.float32) if dtype != torch.float32 else {}
    policy = MixedPrecisionPolicy(**reduced, cast_forward_inputs=False)
    large = {parameter for name, parameter in model.named_parameters() if is_layer_matrix(name, parameter)}
    small = {parameter for parameter in model.parameters() if parameter not in large}
    units = [module for module in (*model.trunk, *model.links) if not large.isdisjoint(module.parameters())]
    for module in (*units, model):  # the model itself, which has none of its own, is what runs the others
        unit = fully_shard(module, mesh=mesh, mp_policy=policy, ignored_params=small)
        unit.set_gradient_divide_factor(1.0)  # the losses are divided by counts of all processes
        unit.set_force_sum_reduction_for_comms(True)
    register_fsdp_forward_method(model, "run_trunk")


def look_ahead(model: ByteMTP, *, far_heads: bool) -> None:
    """Let the backward pass of a head that is walked alone gather the layer whose turn is next, as it computes.

    That is the next head's or, behind the last one, the trunk's last.  PyTorch would gather the layer that ran before
    it, which is right inside of a chain and in the trunk; but a head before has done its backward pass.  (With a frozen
    trunk each head's backward pass is one by itself, behind which all is dropped.)
    far_heads: whether heads off head 1's path learn.
    """
    if not is_split(model) or model.config.topology not in ("parallel", "branched"):
        return
    firsts = [model.links[chain[0]] for chain in model.chains if far_heads or chain[0] in model.path_to_first_head]
    trunk = [layer for layer in model.trunk if any(parameter.requires_grad for parameter in layer.parameters())]
    for link, following in pairwise([*firsts, trunk[-1]] if trunk else []):
        cast(Any, link).set_modules_to_backward_prefetch([following])


def sum_over_copies(model: ByteMTP, *, now: bool) -> None:
    """Whether backward passes from here on add up gradients over copies of the model, or leave that to later ones.

    Among the processes that share a copy they are added up in either case.
    """
    if is_split(model):
        cast(Any, model).set_requires_all_reduce(now)


def is_split(model: ByteMTP) -> bool:
    """Whether `shard` has been there."""
    return any(map(is_sharded, model.parameters()))


@dataclass(frozen=True)
class Gathered:
    """Weights and moments in whole, on the host: as much of a model and its optimizer as a checkpoint needs."""

    weights: dict[str, Tensor]
    moments: list[tuple[str, Tensor, dict[str, Any], tuple[str, ...]]]

    def state_dict(self) -> dict[str, Tensor]:
        return self.weights

    def states(self) -> Iterator[tuple[str, Tensor, dict[str, Any], tuple[str, ...]]]:
        return iter(self.moments)


def gathered(model: ByteMTP, optimizer: OptimizerStates, world: World) -> Gathered:
    """On the first process; the others get nothing, but all must ask.  One tensor at a time is whole on a device."""
    weights = _gathered(model.state_dict(), world)
    moments = [(name, x, _gathered(state, world), keys) for name, x, state, keys in optimizer.states()]
    return Gathered(weights, moments)


def _gathered(tensors: dict[str, Any], world: World) -> dict[str, Tensor]:
    pairs = ((name, whole(tensor)) for name, tensor in tensors.items())
    return {name: tensor.cpu() for name, tensor in pairs if world.is_first}
