"""The engine of tensor operations: what it does to be fast changes no number."""

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from test_native import drafts_of
from torch.nn.attention import SDPBackend, sdpa_kernel

from bytemtp.common.settings import ModelConfig, Topology
from bytemtp.decoding.engines import tensor
from bytemtp.decoding.engines.tensor import TensorEngine, in_bfloat16
from bytemtp.model.model import ByteMTP

TOPOLOGIES = get_args(Topology)
TINY = ModelConfig(dim=32, layers=5, attention_heads=4, kv_heads=2, ffn_dim=48, n_future=4)


def passes(engine):
    """Logits and drafts of some passes of two rows."""
    start, lengths, out = np.zeros(2, dtype=np.int64), np.array([9, 5]), []
    for seed in range(4):
        out.append(engine.verify(start, np.random.default_rng(seed).integers(0, 256, (2, 9)), lengths))
        out.extend(drafts_of(engine, start, lengths, 4).values())
        start = start + lengths
    return out


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_bfloat16_matrices_are_cast_once_to_what_autocast_would_make_of_them(topology, monkeypatch):
    model = ByteMTP(replace(TINY, topology=topology)).eval()
    model.use(dtype=torch.bfloat16)
    engine = TensorEngine(model, 2, 20)
    cast = {module.weight.dtype for module in engine.model.modules() if isinstance(module, torch.nn.Linear)}
    assert cast == {cache.k.dtype for cache in engine.caches.values()} == {torch.bfloat16}
    assert engine.model.embed.weight is model.embed.weight and in_bfloat16(model) is engine.model
    monkeypatch.setattr(tensor, "in_bfloat16", lambda model: model)
    for mine, plain in zip(passes(engine), passes(TensorEngine(model, 2, 20)), strict=True):
        np.testing.assert_array_equal(mine, plain)


@pytest.mark.parametrize("topology", ["parallel", "causal"])
def test_shared_key_heads_under_a_mask_need_no_slow_attention(topology):
    """PyTorch's own way to share them (enable_gqa) has no fast kernel where there is a mask."""
    model = ByteMTP(replace(TINY, topology=topology)).eval()
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        assert all(np.isfinite(x[..., :257]).all() for x in passes(TensorEngine(model, 2, 20)))
