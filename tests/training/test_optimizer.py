"""Learning rates over a run, and which parameters an optimizer takes, decays and clips."""

from dataclasses import replace
from typing import Literal

import pytest
import torch

from bytemtp.common.settings import ModelConfig, TrainConfig
from bytemtp.model.model import ByteMTP
from bytemtp.training.loss import backward
from bytemtp.training.optimizer import Optimizers, learning_rate, set_learning_rate
from tests.training.runs import SETTINGS, settings


def test_learning_rate() -> None:
    plan = TrainConfig(steps=100, warmup=10, lr=2.0, schedule="cosine", final_lr=0.1)
    rates = [learning_rate(plan, step, 0.0) for step in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[9] == 2.0
    assert rates[99] == pytest.approx(0.2)
    assert rates[:10] == sorted(rates[:10])
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert rates[54] == pytest.approx(1.1)  # half way between the ends, half way down
    by_clock = TrainConfig(minutes=1.0, warmup=0, lr=2.0, schedule="cosine", final_lr=0.1)
    assert [learning_rate(by_clock, 5, second) for second in (0.0, 30.0, 60.0, 90.0)] == pytest.approx(
        [2.0, 1.1, 0.2, 0.2]
    )


def test_wsd_is_constant_and_then_linear_to_zero() -> None:
    plan = TrainConfig(steps=100, warmup=0, lr=2.0, schedule="wsd", decay=0.25)
    rates = [learning_rate(plan, step, 0.0) for step in range(100)]
    assert rates[:75] == [2.0] * 75
    assert rates[75:] == pytest.approx([2.0 * left / 25 for left in range(24, -1, -1)])
    longer = TrainConfig(steps=200, warmup=0, lr=2.0, schedule="wsd", decay=0.25)
    assert [learning_rate(longer, step, 0.0) for step in range(75)] == rates[:75]  # such a run can be prolonged


def test_warmup_takes_a_tenth_of_the_steps_at_most() -> None:
    plan = TrainConfig(steps=20, warmup=1000, lr=2.0, schedule="wsd")
    assert [learning_rate(plan, step, 0.0) for step in (0, 1, 2, 19)] == [1.0, 2.0, 2.0, 0.0]


def test_warmup_by_the_clock_takes_a_tenth_of_the_run_at_most() -> None:
    slow_machine = TrainConfig(minutes=1.0, warmup=1000, lr=2.0, schedule="wsd")
    assert learning_rate(slow_machine, 0, 0.0) == pytest.approx(0.002)
    assert learning_rate(slow_machine, 3, 3.0) == pytest.approx(1.0)
    assert learning_rate(slow_machine, 8, 6.0) == 2.0


def is_between_hidden(name: str) -> bool:
    return name.rsplit(".", 2)[-2] in ("qkv", "attention_out", "gate_up", "ffn_out")


@pytest.mark.parametrize("qk_norm", [False, True])
def test_muon_takes_the_matrices_of_the_layers_and_nothing_else(qk_norm: bool) -> None:
    model = ByteMTP(replace(SETTINGS.model, qk_norm=qk_norm))
    adamw, muon = Optimizers(model, settings(optimizer="muon").train).parts
    names = {name for group in muon.param_groups for name in group["param_names"]}
    assert names == {name for name, p in model.named_parameters() if ".weight" in name and is_between_hidden(name)}
    assert isinstance(muon, torch.optim.Muon) and isinstance(adamw, torch.optim.AdamW)
    before = {name: p.clone() for name, p in model.named_parameters()}
    ids = torch.arange(20)[None]
    backward(model, ids, torch.zeros_like(ids))
    muon.step()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == (name not in names)


@pytest.mark.parametrize("end", ["embed", "unembed"])
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_both_ends_have_their_own_learning_rates(name: Literal["adamw", "muon"], end: str) -> None:
    """Ten times the rate moves it ten times as far in a first step, whose size is the rate; all else stays the same."""
    moves = []
    for scale in (1.0, 10.0):
        model = ByteMTP(SETTINGS.model)
        optimizer = Optimizers(model, settings(optimizer=name, weight_decay=0.0, **{f"{end}ding_lr": scale}).train)
        set_learning_rate(optimizer, 1e-3)
        before = {name: p.clone() for name, p in model.named_parameters()}
        ids = torch.arange(20)[None]
        backward(model, ids, torch.zeros_like(ids))
        optimizer.step()
        moves.append({name: p.detach() - before[name] for name, p in model.named_parameters()})
    for key, move in moves[0].items():
        expected = 10 * move if key.startswith(f"{end}.") else move
        torch.testing.assert_close(moves[1][key], expected, rtol=1e-3, atol=1e-6)
        assert move.any()


def test_gradients_of_head_1_and_of_the_rest_are_clipped_apart() -> None:
    """However large the far heads' gradients are, what head 1 needs keeps its own."""
    model = ByteMTP(ModelConfig(dim=16, layers=2, attention_heads=2, ffn_dim=24, n_future=3, topology="replicated"))
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e-6)
    for head in (1, 2):
        model.unembed[head].weight.grad.fill_(1e3)
    optimizer = Optimizers(model, TrainConfig())
    norm = optimizer.clip(1.0)
    assert norm < 1e-3
    assert all((p.grad == 1e-6).all() for name, p in model.named_parameters() if not name.startswith("unembed"))
    assert torch.stack([model.unembed[head].weight.grad.norm() for head in (1, 2)]).norm() == pytest.approx(1.0)
    model.unembed[1].weight.grad[0, 0] = torch.nan
    assert not optimizer.clip(1.0).isfinite()


@pytest.mark.parametrize("qk_norm", [False, True])
def test_decay_spares_the_norms(qk_norm: bool) -> None:
    model = ByteMTP(replace(SETTINGS.model, qk_norm=qk_norm))
    groups = Optimizers(model, SETTINGS.train).param_groups
    decay = {name: group["weight_decay"] for group in groups for name in group["param_names"]}
    assert decay.keys() == dict(model.named_parameters()).keys()
    assert {name for name, value in decay.items() if value == 0} == {name for name in decay if "norm" in name}
