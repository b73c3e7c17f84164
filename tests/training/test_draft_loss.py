"""Heads that learn to be accepted as drafts: their gradient against a loop over what speculative sampling refuses."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bytemtp.model.initial import freeze_path
from bytemtp.training.loss import IGNORED, evaluate, targets_of, trained_targets
from tests.training.test_loss import KINDS, TOPOLOGIES, gradients, model_for, rows


def slow_losses(model, ids, document_ids, far_rows=1.0):
    """By head: cross-entropy of those on head 1's path; of the others how often their drafts are refused.

    A draft x, drawn from the head's law q, is refused with probability 1 - min(1, p(x) / q(x)), where p is head 1's law
    once it has read the bytes up to x.  Beyond the row there is no p.
    """
    n, s = 4, ids.shape[1] - 4
    targets = trained_targets(model, ids, document_ids, far_rows)
    laws = model(ids[:, :-1], document_ids[:, :-1])[:, :, :s].softmax(-1)
    losses = [laws.new_zeros(()) for _ in range(n)]
    for i in range(n):
        for b, p in (targets[i] != IGNORED).nonzero().tolist():
            q = laws[i, b, p, :257]
            if i in model.path_to_first_head:
                losses[i] = losses[i] - q[targets[i, b, p]].log()
            elif p + i < s:
                losses[i] = losses[i] + (q * (1 - laws[0, b, p + i, :257].detach() / q).clamp_min(0)).sum()
        losses[i] = losses[i] / max(1, int((targets[i] != IGNORED).sum()))
    return losses


@settings(max_examples=40)
@given(
    batch=rows(),
    kind=KINDS,
    mode=st.sampled_from(["joint", "sequential"]),
    far_rows=st.sampled_from([0.4, 1.0]),
)
def test_the_gradient_is_that_of_being_refused(batch, kind, mode, far_rows):
    model = model_for(**kind)
    losses, found = gradients(model, *batch, mode=mode, far_rows=far_rows, for_drafts=True)
    plain, _ = gradients(model, *batch, mode=mode, far_rows=far_rows)
    assert torch.equal(losses.nats, plain.nats) and torch.equal(losses.end_nats, plain.end_nats)
    model.zero_grad()
    if (loss := sum(slow_losses(model, *batch, far_rows))).requires_grad:
        loss.backward()
    for name, parameter in model.named_parameters():
        expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(found.get(name, torch.zeros_like(parameter)), expected, atol=1e-10, rtol=0, msg=name)


@settings(max_examples=40)
@given(batch=rows(), kind=KINDS)
@torch.no_grad()
def test_validation_tells_how_often_drafts_are_accepted(batch, kind):
    """Counted for all drafts of a byte that the row has an input before; no draft is head 1's."""
    model, (ids, document_ids) = model_for(**kind), batch
    s, found = ids.shape[1] - 4, evaluate(model, ids, document_ids)
    targets = targets_of(ids, document_ids, 4)
    laws = model(ids[:, :-1], document_ids[:, :-1])[:, :, :s, :257].softmax(-1)
    for i in range(4):
        places = [(b, p) for b, p in (targets[i] != IGNORED).nonzero().tolist() if i and p + i < s]
        kept = [laws[i, b, p].minimum(laws[0, b, p + i]).sum() for b, p in places]
        assert found.drafts[i] == len(places)
        assert float(found.accepted[i]) == pytest.approx(float(sum(kept)), abs=1e-10)
    assert math.isnan(found.acceptance[0])


@pytest.mark.parametrize("topology", [name for name in TOPOLOGIES if name != "anticausal"])
def test_heads_come_to_be_accepted_more_often(topology):
    """Ten small steps on a frozen trunk, from where cross-entropy has brought them."""
    model, ids = model_for(topology), torch.arange(4 * 36).view(4, 36) * 7 % 11
    batch = ids, torch.zeros_like(ids)

    freeze_path(model)

    def step(**chosen):
        _, found = gradients(model, *batch, **chosen)
        with torch.no_grad():
            for name, gradient in found.items():
                model.get_parameter(name).sub_(0.05 * gradient)

    for _ in range(20):
        step()
    before = sum(slow_losses(model, *batch)[1:])
    for _ in range(10):
        step(for_drafts=True)
    assert sum(slow_losses(model, *batch)[1:]) < before
