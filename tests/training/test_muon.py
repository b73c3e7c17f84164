"""Stacked Muon against torch's, one matrix at a time."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from bytemtp.training import muon as module
from bytemtp.training.muon import StackedMuon, stacks

SHAPES = st.lists(st.sampled_from([(4, 4), (12, 4), (4, 10), (3, 3)]), min_size=1, max_size=7)


@given(SHAPES, st.integers(0, 2**16), st.integers(1, 3), st.sampled_from([0.0, 0.3]))
def test_the_updates_are_those_of_torch(shapes, seed, steps, decay):
    generator = torch.Generator().manual_seed(seed)
    ours = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    theirs = [nn.Parameter(param.detach().clone()) for param in ours]
    lr = 0.1
    fast = StackedMuon(ours, lr=lr, weight_decay=decay)
    slow = torch.optim.Muon(theirs, lr=lr, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
    for _ in range(steps):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn(one.shape, generator=generator)
            other.grad = one.grad.clone()
        fast.step()
        slow.step()
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(fast.state[one]["momentum_buffer"], slow.state[other]["momentum_buffer"])
        # An update's values are at most 0.2 * lr * sqrt(12), of which bfloat16 products may lose some percent a step.
        torch.testing.assert_close(one, other, rtol=0, atol=steps * 0.05 * 0.2 * lr * 12**0.5)
        assert not torch.equal(one, torch.zeros_like(one))


def test_the_state_is_that_of_torch():
    param = nn.Parameter(torch.randn(4, 3))
    param.grad = torch.randn(4, 3)
    fast, slow = StackedMuon([param], lr=0.1), torch.optim.Muon([param], lr=0.1)
    fast.step()
    slow.load_state_dict(fast.state_dict())
    slow.step()
    fast.load_state_dict(slow.state_dict())
    fast.step()


def test_stacks_have_one_shape_and_are_not_too_large(monkeypatch):
    monkeypatch.setattr(module, "STACKED", 40)
    params = [torch.zeros(shape) for shape in [(4, 4), (8, 8), (4, 4), (2, 8), (4, 4)]]
    assert [[param.shape for param in stack] for stack in stacks(params)] == [
        [(4, 4), (4, 4)],
        [(4, 4)],
        [(8, 8)],
        [(2, 8)],
    ]


def test_parameters_without_a_gradient_stay():
    params = [nn.Parameter(torch.ones(2, 2)) for _ in range(2)]
    params[1].grad = torch.ones(2, 2)
    StackedMuon(params, lr=0.1).step()
    assert torch.equal(params[0], torch.ones(2, 2)) and not torch.equal(params[1], torch.ones(2, 2))


@pytest.mark.parametrize("shape", [(64, 32), (32, 64)])
def test_updates_have_the_size_that_is_asked_for(shape):
    param = nn.Parameter(torch.zeros(shape))
    param.grad = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    StackedMuon([param], lr=1.0).step()
    assert param.square().mean().sqrt().item() == pytest.approx(0.2, rel=0.3)
