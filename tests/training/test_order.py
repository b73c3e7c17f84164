"""Token-order prediction: its loss against loops, where its gradient goes, and runs that decode as if without it."""

import json
import math
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from test_loss import TINY, TOPOLOGIES, gradients, model_for, rows
from torch.utils.flop_counter import FlopCounterMode

import bytemtp
from bytemtp.common.errors import UserError
from bytemtp.common.settings import DataConfig, ModelConfig, Settings, TrainConfig, changed, load_settings
from bytemtp.common.vocab import EOT, VOCAB_SIZE
from bytemtp.evaluation.bits_per_byte import score_windows
from bytemtp.model.checkpoint import latest, load_model
from bytemtp.model.huggingface import llama_weights
from bytemtp.model.model import ByteMTP
from bytemtp.train import main, read_command
from bytemtp.training import loss as loss_module
from bytemtp.training.cost import Flops, memory
from bytemtp.training.loss import backward, evaluate, targets_of
from bytemtp.training.optimizer import Optimizers
from bytemtp.training.order import NEVER, next_places, shares_of
from bytemtp.training.trainer import train


def slow_shares(ids, document_ids, b, p, s):
    """Of each id at one position, read off its document: the softmax of W - distance, W being the length of the row."""
    scores: dict[int, int] = {}
    for q in range(p + 1, s + 1):
        if document_ids[b, p] < 0 or document_ids[b, q] < 0 or document_ids[b, q - 1] != document_ids[b, p]:
            break
        scores.setdefault(int(ids[b, q]), s - (q - p))
    most = max(scores.values(), default=0)
    weights = {v: math.exp(score - most) for v, score in scores.items()}
    return {v: weight / sum(weights.values()) for v, weight in weights.items()}


def slow_nats(model, ids, document_ids):
    """Summed over positions, by loops, with its graph."""
    s = ids.shape[1] - model.config.n_future
    z = model.run_trunk(model.context(ids, s, document_ids))
    law = model.order_head(model.norm(z))[..., :VOCAB_SIZE].log_softmax(-1)
    places = [(b, p) for b in range(len(ids)) for p in range(s)]
    terms = [-share * law[b, p, v] for b, p in places for v, share in slow_shares(ids, document_ids, b, p, s).items()]
    return sum(terms, (0 * law).sum())


@given(batch=rows(n=1), size=st.integers(1, 20))
def test_shares_are_those_that_loops_find(batch, size):
    """However the rows are cut; no id of the next document has a share, the EOT between them has one."""
    ids, document_ids = batch
    targets = targets_of(ids, document_ids, 1)[0]
    b, s = targets.shape
    later, pieces = torch.full((b, VOCAB_SIZE), NEVER, dtype=torch.int32), []
    for end in range(s, 0, -size):
        start = max(0, end - size)
        places = next_places(targets[:, start:end], start, later)
        later = places[:, 0]
        pieces.insert(0, shares_of(places, start, torch.float64))
    found = torch.cat(pieces, 1)
    expected = torch.zeros_like(found)
    for row in range(b):
        for p in range(s):
            for v, share in slow_shares(ids, document_ids, row, p, s).items():
                expected[row, p, v] = share
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    assert torch.equal(found.sum(-1) > 0, targets >= 0), "whoever has a next id has an order to learn, and nobody else"


def test_shares_fall_by_e_for_each_position():
    ids = torch.tensor([[EOT, *b"abab", EOT, *b"c"]])
    targets = targets_of(ids, (ids == EOT).cumsum(1), 1)[0]
    places = next_places(targets, 0, torch.full((1, VOCAB_SIZE), NEVER, dtype=torch.int32))
    shares = shares_of(places, 0, torch.float64)[0, 0]
    parts = {"a": 1.0, "b": math.exp(-1), "": math.exp(-4)}
    total = sum(parts.values())
    assert shares[ord("a")].item() == pytest.approx(1 / total)
    assert shares[ord("b")].item() == pytest.approx(math.exp(-1) / total)
    assert shares[EOT].item() == pytest.approx(math.exp(-4) / total)
    assert shares[ord("c")] == 0


def test_what_is_lost_in_rounding_is_left_out():
    """In rows longer than e^-x is a number that processors are fast with."""
    ids = torch.tensor([[EOT, *b"a" * 150, *b"b"]])
    targets = targets_of(ids, ids * 0, 1)[0]
    places = next_places(targets, 0, torch.full((1, VOCAB_SIZE), NEVER, dtype=torch.int32))
    shares = shares_of(places, 0, torch.float32)[0]
    for p in range(151):
        expected = slow_shares(ids, ids * 0, 0, p, 151)
        assert shares[p, ord("a")].item() == pytest.approx(expected.get(ord("a"), 0.0), abs=1e-7)
        assert shares[p, ord("b")].item() == pytest.approx(expected[ord("b")], rel=1e-5, abs=1e-27)
    assert shares[shares > 0].min() > 1e-30


@settings(max_examples=25)
@given(batch=rows(), topology=st.sampled_from(TOPOLOGIES), far_rows=st.sampled_from([0.3, 1.0]))
def test_it_adds_its_own_gradient_to_that_of_the_heads(batch, topology, far_rows):
    """In full, whatever the weights and rows of far heads are; the heads' losses stay as they were."""
    ids, document_ids = batch
    chosen = {"weights": [1.0, 0.02, 0.02, 0.02], "far_rows": far_rows}
    plain, model = model_for(topology), model_for(topology, order_head=True)
    alone, expected = gradients(plain, *batch, **chosen)
    losses, found = gradients(model, *batch, **chosen)
    assert torch.equal(losses.nats, alone.nats) and alone.order_nats == 0
    model.zero_grad()
    nats = slow_nats(model, ids, document_ids)
    torch.testing.assert_close(losses.order_nats, nats.detach(), atol=1e-10, rtol=0)
    (nats / losses.counts[0].clamp_min(1)).backward()
    for name, parameter in model.named_parameters():
        own = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        heads = expected.get(name, torch.zeros_like(parameter))
        torch.testing.assert_close(found.get(name, heads), heads + own, atol=1e-12, rtol=1e-9, msg=name)
    trunk = "embed.weight"
    assert not losses.counts[0] or model.get_parameter(trunk).grad.any(), "it reaches the trunk"


@settings(max_examples=25)
@given(batch=rows(), topology=st.sampled_from(TOPOLOGIES), checkpointing=st.booleans(), size=st.integers(1, 9))
def test_sequential_backward_equals_joint(batch, topology, checkpointing, size):
    """Also in pieces of `size` positions."""
    model, room = model_for(topology, order_head=True), loss_module.GROUP_BYTES
    joint, expected = gradients(model, *batch, mode="joint")
    model.use(checkpointing=checkpointing)
    loss_module.GROUP_BYTES = size * 2 * 4 * VOCAB_SIZE * len(batch[0])
    try:
        sequential, found = gradients(model, *batch)
    finally:
        loss_module.GROUP_BYTES = room
    torch.testing.assert_close(sequential.order_nats, joint.order_nats, atol=1e-10, rtol=0)
    assert found.keys() == expected.keys() >= {"order_head.weight"}
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=1e-10, rtol=0, msg=name)


class Kept:
    """What autograd keeps of a tensor with a number for each id."""

    def __init__(self, x):
        self.x = x


@pytest.mark.parametrize(("mode", "most"), [("sequential", 2), ("joint", 8)])
def test_only_one_piece_is_kept_at_a_time(mode, most, monkeypatch):
    """Its shares and the logarithms of its law.  The joint backward pass keeps those of all four pieces."""
    kept, counts = [], []

    def keep(x):
        box = Kept(x)
        if x.shape[-1:] == (VOCAB_SIZE,):
            kept.append(weakref.ref(box))
            counts.append(sum(ref() is not None for ref in kept))
        return box

    monkeypatch.setattr(loss_module, "GROUP_BYTES", 5 * 2 * 4 * VOCAB_SIZE)
    ids = torch.zeros(1, 20, dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda box: box.x):
        backward(model_for("replicated", order_head=True), ids, ids, mode=mode)
    assert len(counts) == 2 * math.ceil(16 / 5) and max(counts) == most


def test_in_bfloat16_it_is_nearly_the_same():
    ids = torch.randint(0, 256, (2, 36), generator=torch.Generator().manual_seed(0))
    model = model_for("replicated", torch.float32, order_head=True)
    exact, _ = gradients(model, ids, ids * 0)
    model.use(dtype=torch.bfloat16)
    rough, grads = gradients(model, ids, ids * 0)
    assert rough.order_nats.dtype == torch.float64 and grads["order_head.weight"].dtype == torch.float32
    assert float(rough.order_nats) == pytest.approx(float(exact.order_nats), rel=1e-2)


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_the_matrix_changes_no_other_weight_and_no_logit(topology):
    """It is drawn last; what decodes, scores and validates does not look at it."""
    config = replace(TINY, topology=topology)
    plain, model = ByteMTP(config, seed=3), ByteMTP(replace(config, order_head=True), seed=3)
    weights = model.state_dict()
    assert weights.pop("order_head.weight").shape == (264, 16)
    assert weights.keys() == plain.state_dict().keys()
    assert all(torch.equal(weight, plain.state_dict()[name]) for name, weight in weights.items())
    ids = torch.randint(0, 256, (2, 28), generator=torch.Generator().manual_seed(1))
    assert torch.equal(model(ids), plain(ids))
    for score in (lambda each: evaluate(each, ids, ids * 0), lambda each: score_windows(each, ids, 8)):
        assert torch.equal(score(model).nats, score(plain).nats) and score(model).order_nats == 0


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_it_is_stepped_like_an_unembedding_and_clipped_with_what_head_1_does_not_need(optimizer):
    model = ByteMTP(replace(TINY, n_future=1, order_head=True))
    optimizers = Optimizers(model, TrainConfig(optimizer=optimizer))
    groups = {name: group for group in optimizers.param_groups for name in group["param_names"]}
    assert groups["order_head.weight"] is groups["unembed.0.weight"]
    assert [*map(id, optimizers.own)] == [id(model.order_head.weight)]


@pytest.mark.parametrize("topology", ["replicated", "parallel"])
def test_costs_count_it(topology):
    """FLOPs of all rows, whatever share far heads see; weights, gradients and moments of one more matrix."""
    config = ModelConfig(
        dim=32, layers=5, attention_heads=4, ffn_dim=48, n_future=3, topology=topology, order_head=True
    )
    model = ByteMTP(config)
    model.use(attention="matmul", dtype=torch.bfloat16)
    ids = torch.arange(4 * 19).view(4, -1)
    with FlopCounterMode(display=False) as counter:
        backward(model, ids, torch.zeros_like(ids), far_rows=0.5)
    assert Flops.of_model(model, 0.5).of(4 * 16, 4 * 16 * 16) == pytest.approx(counter.get_total_flops(), rel=1e-6)
    chosen = Settings(config, TrainConfig(batch_size=2, seq_len=16))
    need, without = (memory(changed(chosen, **{"model.order_head": on}), torch.float32) for on in (True, False))
    assert (need.weights - without.weights, need.moments - without.moments) == (4 * 264 * 32, 8 * 264 * 32)
    assert need.activations > without.activations


SETTINGS = Settings(
    ModelConfig(dim=16, layers=2, attention_heads=2, ffn_dim=24, n_future=2, order_head=True),
    TrainConfig(
        steps=12, batch_size=4, seq_len=32, lr=1e-2, warmup=2, dtype="float32", compile="false", log_every=3,
        valid_every=6, valid_bytes=256, checkpoint_every=4, sample_bytes=0,
    ),
    DataConfig(valid_fraction=0.2),
)  # fmt: skip


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("corpus")
    for i in range(40):
        (folder / f"{i:02}.txt").write_text("alpha beta gamma\n" * (1 + i % 4))
    return str(folder)


@pytest.fixture(scope="module")
def run(corpus: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("order") / "run"
    assert train(SETTINGS, [corpus], run, device="cpu").finished
    return run


def lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_training_lines_say_the_order_loss_and_it_falls(run):
    by_split = {split: [line for line in lines(run) if line["split"] == split] for split in ("train", "valid")}
    losses = [line["order_loss"] for line in by_split["train"]]
    assert len(losses) == 4 and losses[-1] < losses[0] < 1.5 * math.log(VOCAB_SIZE)
    assert not any("order_loss" in line for line in by_split["valid"])


def test_a_run_without_it_does_not_speak_of_it(trained_run):
    assert all("order_loss" not in line for line in lines(trained_run))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_cut_and_resumed_is_the_same_run(corpus, tmp_path, accumulate):
    """Between two lines, too: the sums since the last line are in the checkpoint."""
    chosen = changed(SETTINGS, **{"train.accumulate": accumulate})
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train(chosen, [corpus], whole, device="cpu")
    train(chosen, [corpus], cut, device="cpu", stop_after=7)
    train(chosen, [], cut, device="cpu", resume=True)
    for name in ("model.safetensors", "optimizer.safetensors"):
        one, other = (load_file(latest(folder) / name) for folder in (whole, cut))
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    assert "order_head.weight/exp_avg" in one
    ours, theirs = ([line.get("order_loss") for line in lines(folder)] for folder in (whole, cut))
    assert ours == theirs


def test_a_resumed_run_cannot_begin_with_it(corpus, tmp_path):
    plain = changed(SETTINGS, **{"model.order_head": False, "train.steps": 2})
    train(plain, [corpus], tmp_path / "run", device="cpu")
    with pytest.raises(UserError, match=r"model.order_head is True but the run was made with False; leave it out"):
        train(replace(plain, model=SETTINGS.model), [], tmp_path / "run", device="cpu", resume=True)


def test_a_run_is_decoded_and_exported_as_if_it_had_none(run):
    """The model without the matrix, with the run's other weights, says and writes the same."""
    model = bytemtp.load(run)
    plain = ByteMTP(replace(model.config, order_head=False)).eval()
    plain.trained_length = model.trained_length
    plain.load_state_dict({name: x for name, x in model.state_dict().items() if not name.startswith("order_head")})
    for mode in ("ar", "speculative"):
        for engine in ("native", "torch"):
            ours, theirs = (
                bytemtp.generate(each, b"alpha ", 40, mode=mode, engine=engine).data for each in (model, plain)
            )
            assert ours == theirs
    assert llama_weights(model).keys() == llama_weights(plain).keys()
    assert all(torch.equal(weight, llama_weights(plain)[name]) for name, weight in llama_weights(model).items())


def test_a_run_of_an_older_version_has_none(run, tmp_path):
    text = (run / "config.toml").read_text()
    (tmp_path / "config.toml").write_text(text.replace("order_head = true\n", ""))
    assert text != (tmp_path / "config.toml").read_text()
    assert not load_settings(tmp_path / "config.toml")[0].model.order_head


def test_losses_of_a_checkpoint_from_before_there_were_order_heads(corpus, tmp_path):
    plain, run = changed(SETTINGS, **{"model.order_head": False}), tmp_path / "run"
    train(plain, [corpus], run, device="cpu", stop_after=4)
    path = latest(run) / "state.json"
    state = json.loads(path.read_text())
    assert state["unlogged"].pop("order_nats") == 0
    path.write_text(json.dumps(state))
    assert train(plain, [], run, device="cpu", resume=True).finished


def test_a_new_run_takes_the_matrix_if_it_asks_for_one(run, corpus, tmp_path, capsys):
    """`--init` alone begins without the objective; heads can then be added to the frozen trunk."""
    assert not read_command([corpus, "--out", "x", "--init", str(run)]).settings.model.order_head
    plain, order, anew = (tmp_path / name for name in ("plain", "order", "anew"))

    def begin(out, source, *more):
        short = ["--train.steps=0", "--train.sample_bytes=0", "--train.seq_len=32", "--device=cpu"]
        main([corpus, "--out", str(out), "--init", str(source), *short, *more])
        return capsys.readouterr().err

    assert "order head: dropped" in begin(plain, run, "--train.freeze=trunk", "--model.n-future=4")
    assert "order head: taken" in begin(order, run, "--model.order-head=true")
    assert torch.equal(load_model(order).order_head.weight, load_model(run).order_head.weight)
    assert "order head: drawn anew" in begin(anew, plain, "--model.order-head=true")


def test_with_a_frozen_trunk_it_would_teach_nothing(run, corpus, tmp_path):
    frozen = changed(SETTINGS, **{"train.freeze": "trunk"})
    with pytest.raises(UserError, match=r"train.freeze is trunk and model.order_head true.*; set it to false") as error:
        train(frozen, [corpus], tmp_path / "run", device="cpu", init=run)
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


@pytest.mark.gpu
def test_cuda_gradients_equal_the_cpu(monkeypatch):
    monkeypatch.setattr(loss_module, "GROUP_BYTES", 2**17)
    ids = torch.randint(0, 256, (2, 68), generator=torch.Generator().manual_seed(0))
    ids[:, ::17] = EOT
    batch = ids, (ids == EOT).cumsum(1)
    config = replace(TINY, dim=64, order_head=True)
    exact, expected = gradients(ByteMTP(config), *batch)
    losses, found = gradients(ByteMTP(config).cuda(), *(x.cuda() for x in batch))
    torch.testing.assert_close(losses.order_nats.cpu(), exact.order_nats, rtol=1e-4, atol=0)
    for name in expected:
        torch.testing.assert_close(found[name].cpu(), expected[name], atol=1e-4, rtol=1e-3, msg=name)
