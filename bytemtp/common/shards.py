"""Tensors of which each process holds a slice of the rows (PyTorch's DTensor), and what is done to any tensor alike.

DTensor takes half a second to import, so nothing here imports it before there is one.

Try:  python -c "import torch; from bytemtp.common.shards import local; print(local(torch.ones(2)))"
"""

import math
from typing import Any, cast

from jaxtyping import Float
from torch import Tensor


def is_sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "placements")


def local(tensor: Tensor) -> Tensor:
    """What this process has of it, not copied."""
    return cast(Tensor, cast(Any, tensor).to_local()) if is_sharded(tensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of it.  Of a sharded one a copy, and all processes must ask for it."""
    return cast(Tensor, cast(Any, tensor).full_tensor()) if is_sharded(tensor) else tensor


def copies(tensor: Tensor) -> int:
    """How many processes hold the same rows of a sharded tensor."""
    mesh, placements = cast(Any, tensor).device_mesh, cast(Any, tensor).placements
    return math.prod(mesh.size(i) for i, placement in enumerate(placements) if placement.is_replicate())


def joined_like(part: Float[Tensor, "rows c"], like: Float[Tensor, "r c"]) -> Float[Tensor, "r c"]:
    """The whole of which every process has `part`, its rows of `like`; that may have another dtype."""
    if not is_sharded(like):
        return part
    from torch.distributed.tensor import DTensor

    mesh, placements = like.device_mesh, like.placements  # type: ignore[attr-defined]
    sharded = DTensor.from_local(part, mesh, placements, run_check=False, shape=like.shape, stride=like.stride())
    return sharded.full_tensor()


def split_like(tensor: Float[Tensor, "*r"], like: Float[Tensor, "*r"]) -> Float[Tensor, "*r"]:
    """A whole on the device of `like`, or sharded as that is: each process keeps its own rows, and none are sent."""
    tensor = tensor.to(like.device)
    if not is_sharded(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = like.device_mesh, like.placements  # type: ignore[attr-defined]
    return distribute_tensor(tensor, mesh, placements, src_data_rank=None)
