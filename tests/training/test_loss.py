"""The loss against loops, and the sequential backward against the joint one."""

import math
import weakref
from dataclasses import replace
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bytemtp.common.settings import ModelConfig, Topology
from bytemtp.common.vocab import EOT
from bytemtp.model.model import ByteMTP
from bytemtp.training import loss as loss_module
from bytemtp.training.loss import IGNORED, HeadLosses, backward, evaluate, targets_of, trained_targets, valid_counts

TOPOLOGIES = get_args(Topology)
TINY = ModelConfig(dim=16, layers=6, attention_heads=2, kv_heads=1, ffn_dim=24, n_future=4)


@st.composite
def rows(draw, n=4):
    """ids and document ids [b, s + n] as packing makes them, padding included."""
    b, s = draw(st.integers(1, 3)), draw(st.integers(1, 16))
    flat = draw(st.lists(st.sampled_from([0, 7, 255, EOT]), min_size=b * (s + n), max_size=b * (s + n)))
    ids = torch.tensor(flat).view(b, s + n)
    document_ids = (ids == EOT).cumsum(1)
    padding = draw(st.integers(0, s + n - 1))
    if padding:
        ids[-1, -padding:], document_ids[-1, -padding:] = EOT, -1
    return ids, document_ids


def model_for(topology, dtype=torch.float64, **changes):
    model = ByteMTP(replace(TINY, topology=topology, **changes)).to(dtype)
    if model.transitions is not None:
        torch.nn.init.normal_(model.transitions, generator=torch.Generator().manual_seed(0))
    return model


KINDS = st.one_of(
    st.fixed_dictionaries({"topology": st.sampled_from(TOPOLOGIES)}),
    st.fixed_dictionaries(
        {"topology": st.sampled_from([name for name in TOPOLOGIES if name != "deepseek"]), "transitions": st.just(True)}
    ),
)


def gradients(model, *args, **kwargs):
    model.zero_grad()
    losses = backward(model, *args, **kwargs)
    return losses, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@given(rows())
def test_targets_stop_where_their_document_does(batch):
    ids, document_ids = batch
    n, s = 4, ids.shape[1] - 4
    for i in range(n):
        expected = torch.full((len(ids), s), IGNORED)
        for b in range(len(ids)):
            for p in range(s):
                q = p + 1 + i
                real = document_ids[b, p] >= 0 and document_ids[b, q] >= 0
                if real and EOT not in ids[b, p + 1 : q]:
                    expected[b, p] = ids[b, q]
        assert torch.equal(targets_of(ids, document_ids, n)[i], expected)


@given(batch=rows(), kind=KINDS)
def test_losses_equal_the_full_forward_pass(batch, kind):
    ids, document_ids = batch
    model = model_for(**kind)
    s = ids.shape[1] - 4
    with torch.no_grad():
        logits = model(ids[:, : s + 3], document_ids[:, : s + 3])[:, :, :s].log_softmax(-1)
    losses = evaluate(model, ids, document_ids)
    for i in range(4):
        targets = targets_of(ids, document_ids, 4)[i]
        picked = logits[i].gather(-1, targets.clamp_min(0)[..., None])[..., 0]
        nats = -picked[targets != IGNORED].sum()
        assert losses.counts[i] == (targets != IGNORED).sum()
        torch.testing.assert_close(losses.nats[i], nats, atol=1e-10, rtol=1e-10)
        assert losses.end_counts[i] == (targets == EOT).sum()
        torch.testing.assert_close(losses.end_nats[i], -picked[targets == EOT].sum(), atol=1e-10, rtol=1e-10)


@settings(max_examples=60)
@given(
    batch=rows(),
    kind=KINDS,
    window=st.sampled_from([0, 3]),
    checkpointing=st.booleans(),
    far=st.lists(st.sampled_from([0.0, 0.25, 1.0]), min_size=3, max_size=3),
    far_rows=st.sampled_from([0.0, 0.3, 1.0]),
    for_drafts=st.booleans(),
    qk_norm=st.booleans(),
)
def test_sequential_backward_equals_joint_in_float64(
    batch, kind, window, checkpointing, far, far_rows, for_drafts, qk_norm
):
    model = model_for(**kind, window=window, qk_norm=qk_norm)
    chosen = {"weights": [1.0, *far], "far_rows": far_rows, "for_drafts": for_drafts}
    joint, expected = gradients(model, *batch, mode="joint", **chosen)
    model.use(checkpointing=checkpointing)
    sequential, found = gradients(model, *batch, mode="sequential", **chosen)
    torch.testing.assert_close(sequential.nats, joint.nats, atol=1e-10, rtol=0)
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=1e-10, rtol=0, msg=name)


@pytest.mark.parametrize("n", [1, 2, 6])
@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sequential_backward_equals_joint_for_any_head_count(topology, n, dtype):
    model = model_for(topology, dtype, n_future=n)
    ids = torch.randint(0, 256, (2, 24 + n), generator=torch.Generator().manual_seed(n))
    batch = ids, torch.zeros_like(ids)
    _, expected = gradients(model, *batch, mode="joint")
    _, found = gradients(model, *batch)
    tolerance = 1e-10 if dtype == torch.float64 else 1e-6
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=tolerance, rtol=0, msg=name)


def path_parameters(model):
    """Names of what head 1's logits depend on."""
    model.zero_grad()
    ids = torch.arange(12)[None]
    model(ids)[0, ..., :257].sum().backward()
    return {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_the_modules_of_head_1_are_all_that_its_logits_depend_on(topology):
    model = model_for(topology)
    first = {id(parameter) for module in model.first_modules() for parameter in module.parameters()}
    assert {name for name, parameter in model.named_parameters() if id(parameter) in first} == path_parameters(model)
    assert model.config.has_far_heads == (len(model.path_to_first_head) < 4)


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_weight_zero_trains_head_1_as_if_it_were_alone(topology):
    model, ids = model_for(topology), torch.randint(0, 256, (2, 28), generator=torch.Generator().manual_seed(5))
    document_ids = torch.zeros_like(ids)
    _, found = gradients(model, ids, document_ids, weights=[1.0, 0.0, 0.0, 0.0])
    path = path_parameters(model)
    model.zero_grad()
    logits = model(ids[:, :24])[0]
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:25].flatten()).backward()
    for name, parameter in model.named_parameters():
        if name in path:
            torch.testing.assert_close(found[name], parameter.grad, atol=1e-10, rtol=0, msg=name)


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_weights_scale_what_reaches_shared_parameters_and_nothing_else(topology):
    """Shared gradients are linear in the weight of the far heads; a head's own do not change at all."""
    model, ids = model_for(topology), torch.randint(0, 256, (2, 28), generator=torch.Generator().manual_seed(6))
    path = path_parameters(model)

    def at(far):
        return gradients(model, ids, torch.zeros_like(ids), weights=[1.0, far, far, far])[1]

    none, quarter, full = at(0.0), at(0.25), at(1.0)
    for name in full:
        expected = none[name] + 0.25 * (full[name] - none[name])
        torch.testing.assert_close(quarter[name], expected, atol=1e-10, rtol=0, msg=name)
        assert name in path or torch.equal(quarter[name], full[name]), name


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_far_heads_learn_from_the_first_rows_alone(topology):
    """Off head 1's path gradients are those of a batch of these rows; on it, with weight zero, those of all rows."""
    model, ids = model_for(topology), torch.randint(0, 256, (4, 28), generator=torch.Generator().manual_seed(8))
    weights, path = [1.0, 0.0, 0.0, 0.0], path_parameters(model)
    _, whole = gradients(model, ids, torch.zeros_like(ids), weights=weights)
    _, first = gradients(model, ids[:2], torch.zeros_like(ids[:2]), weights=weights)
    losses, found = gradients(model, ids, torch.zeros_like(ids), weights=weights, far_rows=0.5)
    for name in found:
        expected = whole if name in path else first
        torch.testing.assert_close(found[name], expected[name], atol=1e-10, rtol=0, msg=name)
    far_count = 4 * 24 if topology == "anticausal" else 2 * 24
    assert losses.counts.tolist() == [4 * 24, *[far_count] * 3]


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_far_heads_without_rows_are_not_run(topology, monkeypatch):
    """Head 1 learns as with weight zero; what only the others need has no gradient, and no link of theirs ran."""
    model, ids = model_for(topology), torch.randint(0, 256, (3, 28), generator=torch.Generator().manual_seed(8))
    document_ids, path = torch.zeros_like(ids), path_parameters(model)
    _, expected = gradients(model, ids, document_ids, weights=[1.0, 0.0, 0.0, 0.0])
    ran, link = [], model.link
    monkeypatch.setattr(model, "link", lambda i, *rest: ran.append(i) or link(i, *rest))
    losses, found = gradients(model, ids, document_ids, far_rows=0.0, weights=[1.0, 0.0, 0.0, 0.0])
    assert found.keys() == path
    for name in path:
        torch.testing.assert_close(found[name], expected[name], atol=1e-10, rtol=0, msg=name)
    assert set(ran) <= set(model.path_to_first_head)
    assert losses.counts.tolist() == [3 * 24, *[3 * 24 if topology == "anticausal" else 0] * 3]


@pytest.mark.parametrize("for_drafts", [False, True])
@pytest.mark.parametrize("transitions", [False, True])
@pytest.mark.parametrize("topology", ["linear", "replicated", "branched"])
def test_heads_in_groups_equal_one_head_at_a_time(topology, transitions, for_drafts, monkeypatch):
    model, ids = (
        model_for(topology, transitions=transitions),
        torch.randint(0, 256, (2, 28), generator=torch.Generator().manual_seed(7)),
    )
    batch = ids, torch.zeros_like(ids)
    grouped, expected = gradients(model, *batch, for_drafts=for_drafts)
    for size in (3, 1):
        monkeypatch.setattr(loss_module, "GROUP_BYTES", size * 4 * 264 * 48)
        alone, found = gradients(model, *batch, for_drafts=for_drafts)
        torch.testing.assert_close(alone.nats, grouped.nats, atol=1e-10, rtol=0)
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], atol=1e-10, rtol=0, msg=name)


@pytest.mark.parametrize("for_drafts", [False, True])
@pytest.mark.parametrize("order_head", [False, True])
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_split_batch_adds_up_to_the_whole(topology, order_head, for_drafts):
    """Also when the parts have different numbers of valid targets, which is why `counts` is the whole batch's."""
    model = model_for(topology, order_head=order_head)
    ids = torch.randint(0, 256, (4, 28), generator=torch.Generator().manual_seed(3))
    ids[0, 3], ids[1, 5:20:4] = EOT, EOT
    document_ids = (ids == EOT).cumsum(1)
    whole, expected = gradients(model, ids, document_ids, for_drafts=for_drafts)
    model.zero_grad()
    chosen = {"counts": valid_counts(trained_targets(model, ids, document_ids)), "for_drafts": for_drafts}
    parts = [backward(model, ids[i : i + 1], document_ids[i : i + 1], **chosen) for i in range(4)]
    total = parts[0] + parts[1] + parts[2] + parts[3]
    torch.testing.assert_close(total.nats, whole.nats)
    assert torch.equal(total.counts, whole.counts)
    torch.testing.assert_close(total.order_nats, whole.order_nats)
    assert total.order_loss == pytest.approx(float(whole.order_nats) / (4 * 24))
    assert (total.order_loss > 0) == order_head
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_only_one_head_has_logits_at_a_time(topology, monkeypatch):
    alive: list[weakref.ref] = []

    def watched(logits, *args, **kwargs):
        assert all(ref() is None for ref in alive), "an earlier head's logits are still in memory"
        alive.append(weakref.ref(logits))
        return cross_entropy(logits, *args, **kwargs)

    cross_entropy = loss_module.F.cross_entropy
    monkeypatch.setattr(loss_module.F, "cross_entropy", watched)
    monkeypatch.setattr(loss_module, "GROUP_BYTES", 0)
    ids = torch.zeros(1, 20, dtype=torch.long)
    backward(model_for(topology), ids, ids)
    assert len(alive) == 4


def test_the_loss_is_the_mean_over_heads_and_reads_in_bits():
    model = model_for("parallel")
    ids = torch.arange(24)[None]
    losses = evaluate(model, ids, torch.zeros_like(ids))
    assert losses.counts.tolist() == [20] * 4
    assert losses.mean == pytest.approx(sum(losses.bits_per_target) / 4 * math.log(2))


def test_documents_shorter_than_a_head_reaches_leave_it_without_targets():
    """A corpus of one-byte documents once made head 3's loss 0/0 and the whole loss nan."""
    ids = torch.tensor([[1, EOT] * 8])
    losses, grads = gradients(model_for("parallel"), ids, (ids == EOT).cumsum(1))
    assert losses.counts.tolist()[2:] == [0, 0]
    assert math.isfinite(losses.mean) and all(g.isfinite().all() for g in grads.values())


def losses_from(nats, counts, end_nats=(0, 0, 0), end_counts=(0, 0, 0)):
    wide, ends = (torch.tensor(x, dtype=torch.float64) for x in (nats, end_nats))
    none = torch.zeros_like(wide)
    sums, numbers = (wide, torch.tensor(counts)), (ends, torch.tensor(end_counts))
    return HeadLosses(*sums, *numbers, wide.new_zeros(()), none, none.long())


def test_a_loss_that_is_not_finite_is_not_averaged_away():
    assert math.isnan(losses_from([1, math.nan, 0], [4, 4, 0]).mean)
    assert losses_from([1, 2, 0], [4, 4, 0]).mean == 0.375
    assert losses_from([0, 0, 0], [0, 0, 0]).mean == 0


def test_bits_per_byte_leave_out_ends_of_documents():
    """The third head has ends alone to predict: it has no bits per byte, whatever rounding leaves."""
    bit = math.log(2)
    losses = losses_from([10 * bit, 8 * bit, 3 * bit], [4, 3, 2], [4 * bit, 0, 3.0000001 * bit], [1, 0, 2])
    assert losses.bits_per_byte[:2] == pytest.approx([2, 8 / 3]) and math.isnan(losses.bits_per_byte[2])
    assert losses.bits_per_target == pytest.approx([2.5, 8 / 3, 1.5])
    assert losses.bits_per_end[0] == pytest.approx(4) and math.isnan(losses.bits_per_end[1])
    double = losses + losses
    assert double.bits_per_byte[:2] == losses.bits_per_byte[:2] and double.mean == losses.mean


@pytest.mark.slow
@pytest.mark.compiled
@pytest.mark.parametrize("for_drafts", [False, True])
@pytest.mark.parametrize(("topology", "transitions"), [*((name, False) for name in TOPOLOGIES), ("replicated", True)])
def test_compiled_layers_train_alike(topology, transitions, for_drafts):
    model = model_for(topology, torch.float32, transitions=transitions)
    ids = torch.randint(0, 256, (2, 36), generator=torch.Generator().manual_seed(0))
    batch = ids, torch.zeros_like(ids)
    _, expected = gradients(model, *batch, for_drafts=for_drafts)
    model.use(compiled=True)
    _, found = gradients(model, *batch, for_drafts=for_drafts)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.gpu
@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("attention", ["auto", "sdpa"])
@pytest.mark.parametrize("for_drafts", [False, True])
def test_cuda_gradients_equal_the_cpu(topology, attention, for_drafts):
    ids = torch.randint(0, 256, (2, 68), generator=torch.Generator().manual_seed(0))
    ids[:, ::17] = EOT
    document_ids = (ids == EOT).cumsum(1)
    config = replace(TINY, dim=64, topology=topology)
    _, expected = gradients(ByteMTP(config), ids, document_ids, for_drafts=for_drafts)
    model = ByteMTP(config).cuda()
    model.use(attention=attention)
    _, found = gradients(model, ids.cuda(), document_ids.cuda(), for_drafts=for_drafts)
    for name in expected:
        torch.testing.assert_close(found[name].cpu(), expected[name], atol=1e-4, rtol=1e-3, msg=name)
