"""Matrices in int8: sums of whole numbers are exact, and the rest errs by half a step."""

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from bytemtp.common.settings import ModelConfig
from bytemtp.model.int8 import EXACT_IN_FLOAT32, Int8Linear, in_int8, rounded
from bytemtp.model.layers import Block
from bytemtp.model.model import ByteMTP


@given(st.lists(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=3, max_size=3), min_size=1, max_size=4))
@example([[2.0**-149, 0.0, -(2.0**-149)], [2.0**-126, 2.0**-120, -(2.0**-119)], [0.0, 0.0, 0.0]])
def test_numbers_are_off_by_half_a_step_at_most(rows):
    x = torch.tensor(rows)
    whole, scale = rounded(x)
    assert torch.equal(whole, whole.round()) and whole.abs().max() <= 127
    assert ((whole * scale[:, None] - x).abs() <= 0.5001 * scale[:, None]).all()


@pytest.mark.parametrize("inputs", [1, 16, EXACT_IN_FLOAT32, EXACT_IN_FLOAT32 + 1, 5000])
def test_sums_are_those_of_whole_numbers(inputs):
    """Of the largest ones, too, whose sum is the first to be inexact in float32."""
    generator = torch.Generator().manual_seed(0)
    weight, x = (torch.randn(rows, inputs, generator=generator) for rows in (5, 3))
    weight[0] = x[0] = 1.0
    weight[1, ::2] = -1.0
    (w, weight_scale), (q, scale) = rounded(weight), rounded(x)
    sums = q.long() @ w.long().T
    assert inputs < 2 or sums[0, 0] == 127**2 * inputs
    assert torch.equal(Int8Linear(weight)(x), sums.float() * weight_scale * scale[:, None])


def test_the_model_itself_stays_as_it_is_and_shares_the_rest():
    model = ByteMTP(ModelConfig(dim=32, layers=4, attention_heads=2, ffn_dim=48, n_future=4, topology="parallel"))
    with torch.no_grad():
        for block in model.trunk:
            block.ffn_norm.weight.mul_(3.0)
    ids = torch.arange(40)[None]
    before, narrow = model(ids), in_int8(model)
    assert in_int8(model) is narrow and torch.equal(model(ids), before)
    assert narrow.embed.weight is model.embed.weight
    children = [child for block in narrow.modules() if isinstance(block, Block) for child in block.children()]
    assert not any(isinstance(child, torch.nn.Linear) for child in children)
    real, error = before[..., :257], (narrow(ids) - before)[..., :257]
    assert 0 < error.std() < 0.05 * real.std()
