"""Tables of transitions in training: where they enter, what they learn, and that zeros change nothing."""

from dataclasses import replace
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_loss import TINY, gradients, model_for, rows

from bytemtp.common.settings import Topology, TrainConfig
from bytemtp.common.vocab import EOT, VOCAB_SIZE
from bytemtp.evaluation.bits_per_byte import score_windows
from bytemtp.model.model import ByteMTP
from bytemtp.training.loss import IGNORED, evaluate, targets_of, trained_targets
from bytemtp.training.optimizer import Optimizers

TOPOLOGIES = [topology for topology in get_args(Topology) if topology != "deepseek"]


@given(batch=rows(), topology=st.sampled_from(TOPOLOGIES))
def test_a_heads_logits_move_by_the_row_of_the_byte_before_theirs(batch, topology):
    """Beyond the end EOT stands in; padding ids keep no probability whatever their columns hold."""
    ids, document_ids = batch
    tabled, plain = model_for(topology, transitions=True), model_for(topology)
    with torch.no_grad():
        found, without = tabled(ids, document_ids), plain(ids, document_ids)
    assert torch.equal(found[0], without[0])
    assert (found[..., VOCAB_SIZE:] == -torch.inf).all()
    for i in range(1, 4):
        for b, p in torch.cartesian_prod(torch.arange(len(ids)), torch.arange(ids.shape[1])).tolist():
            before = int(ids[b, p + i]) if p + i < ids.shape[1] else EOT
            expected = without[i, b, p] + tabled.transitions[i - 1, before]
            torch.testing.assert_close(found[i, b, p, :VOCAB_SIZE], expected[:VOCAB_SIZE], atol=1e-12, rtol=0)


@torch.no_grad()
def slow_gradient(model, ids, document_ids, far_rows):
    """Of the tables: what each target adds to the row of the byte before it."""
    n, s = 4, ids.shape[1] - 4
    gradient = torch.zeros_like(model.transitions)
    targets = trained_targets(model, ids, document_ids, far_rows)
    law = model(ids[:, :-1], document_ids[:, :-1])[:, :, :s].softmax(-1)
    for i in range(1, n):
        for b, p in (targets[i] != IGNORED).nonzero().tolist():
            share = law[i, b, p].clone()
            share[targets[i, b, p]] -= 1
            gradient[i - 1, ids[b, p + i]] += share / (targets[i] != IGNORED).sum()
    return gradient


@settings(max_examples=25)
@given(
    batch=rows(),
    topology=st.sampled_from(TOPOLOGIES),
    mode=st.sampled_from(["joint", "sequential"]),
    far=st.sampled_from([0.0, 0.25, 1.0]),
    far_rows=st.sampled_from([0.4, 1.0]),
)
def test_tables_learn_from_their_heads_loss_in_full(batch, topology, mode, far, far_rows):
    model = model_for(topology, transitions=True)
    _, found = gradients(model, *batch, mode=mode, weights=[1.0, far, far, far], far_rows=far_rows)
    expected = slow_gradient(model, *batch, far_rows)
    torch.testing.assert_close(found["transitions"], expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_tables_of_zeros_change_no_bit(topology, dtype):
    """Of logits, of losses, and of what all else learns."""
    ids = torch.randint(0, 257, (3, 36), generator=torch.Generator().manual_seed(0))
    document_ids, found = (ids == EOT).cumsum(1), []
    for transitions in (False, True):
        model = ByteMTP(replace(TINY, topology=topology, transitions=transitions), seed=3)
        model.use(dtype=dtype)
        logits = model(ids, document_ids)
        losses, grads = gradients(model, ids, document_ids, weights=[1.0, 0.02, 0.02, 0.02], far_rows=0.7)
        scored = evaluate(model, ids, document_ids), score_windows(model, ids, 8)
        learned = grads.pop("transitions", None)
        assert (learned is not None and learned.any()) == transitions
        found.append([logits, losses.nats, *(each.nats for each in scored), *grads.values()])
        found[-1].append(model.state_dict().keys() - {"transitions"})
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def test_evaluation_reads_the_bytes_before():
    """`evaluate bpb` and the training loss of whole windows are the same numbers."""
    model = model_for("replicated", transitions=True)
    ids = torch.randint(0, 256, (2, 24), generator=torch.Generator().manual_seed(1))
    scored = score_windows(model, ids, 20)
    torch.testing.assert_close(scored.nats, evaluate(model, ids, torch.zeros_like(ids)).nats)
    assert scored.counts.equal(torch.full((4,), 40)) and (targets_of(ids, ids * 0, 4) != IGNORED).all()


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_tables_are_stepped_like_unembeddings(optimizer):
    model = ByteMTP(replace(TINY, transitions=True))
    optimizers = Optimizers(model, TrainConfig(optimizer=optimizer))
    groups = {name: group for group in optimizers.param_groups for name in group["param_names"]}
    assert groups["transitions"] is groups["unembed.1.weight"]
    assert any(parameter is model.transitions for parameter in optimizers.own)


def test_who_has_tables():
    assert ByteMTP(replace(TINY, n_future=1, transitions=True)).transitions is None
    assert ByteMTP(replace(TINY, n_future=3, transitions=True)).transitions.shape == (2, 264, 264)
    assert ByteMTP(replace(TINY, topology="deepseek", transitions=True)).transitions is None
