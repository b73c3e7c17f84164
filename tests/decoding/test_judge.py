"""The judge of near ties: a float64 pass, made of one layer at a time."""

import copy
import weakref
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch

from bytemtp.common.settings import ModelConfig, Topology
from bytemtp.decoding.generate import generate
from bytemtp.decoding.judge import Float64Judge
from bytemtp.model.layers import Block
from bytemtp.model.model import ByteMTP

TOPOLOGIES = get_args(Topology)
TINY = ModelConfig(dim=32, layers=5, attention_heads=4, kv_heads=2, ffn_dim=48, n_future=4)


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("window", [1, 2, 7, 10**8])
@pytest.mark.parametrize("length", [1, 6, 80])
def test_it_is_the_whole_model_in_float64(topology, window, length):
    model, ids = ByteMTP(replace(TINY, topology=topology)).eval(), np.random.default_rng(0).integers(0, 257, length)
    wide = copy.deepcopy(model).double()
    with torch.no_grad():
        expected = wide.logits(0, wide.first_hidden(torch.from_numpy(ids)[None], window))[0, -1]
    np.testing.assert_allclose(Float64Judge(model, window).logits(ids)[:257], expected[:257], atol=1e-9)


def test_one_layer_at_a_time_is_held_in_float64(monkeypatch):
    """A copy of the whole model was once made at the first near tie: three times the memory of a large model."""
    copies, original = [], copy.deepcopy

    def noted(module):
        assert isinstance(module, Block) and all(reference() is None for reference in copies)
        copied = original(module)
        copies.append(weakref.ref(copied))
        return copied

    monkeypatch.setattr(copy, "deepcopy", noted)
    Float64Judge(ByteMTP(replace(TINY, topology="parallel")).eval(), 10).logits(np.arange(30))
    assert len(copies) == 2  # the trunk and the head


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_bfloat16_is_not_judged(monkeypatch, weights):
    """Its errors are far wider than a near tie, so that nothing is promised and a judge only costs."""
    model = ByteMTP(TINY).to(weights).eval()
    with torch.no_grad():
        model.unembed[0].weight[1:256:2] = model.unembed[0].weight[0:256:2]
    monkeypatch.setattr(Float64Judge, "logits", None)
    if weights == torch.float32:
        model.use(dtype=torch.bfloat16)
    assert generate(model, b"a", 20).stats["exact"] == 0
