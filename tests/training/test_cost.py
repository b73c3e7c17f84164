"""Estimates of memory against what tensors take, FLOPs against PyTorch's counter, and messages that say what to do."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bytemtp.common.errors import UserError
from bytemtp.common.presets import PRESETS
from bytemtp.common.settings import ModelConfig, Settings, Topology, TrainConfig, changed
from bytemtp.model.checkpoint import load_model
from bytemtp.model.initial import freeze_path
from bytemtp.model.model import ByteMTP
from bytemtp.training import cost
from bytemtp.training.batches import check_shares, grouped
from bytemtp.training.cost import Flops, check_memory, layer_bytes, memory, peak_by_name, remedy, told_if_full
from bytemtp.training.distributed import World
from bytemtp.training.loss import HeadLosses, backward
from bytemtp.training.optimizer import Optimizers
from bytemtp.training.trainer import train
from tests.training.runs import SETTINGS, lines, settings

CARD = 80 * cost.GB
SMALL = ModelConfig(dim=32, layers=4, attention_heads=4, kv_heads=2, ffn_dim=48, n_future=3)
CPU = torch.device("cpu")


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("topology", ["replicated", "parallel", "linear"])
def test_weights_and_what_belongs_to_them(topology: Topology, frozen: bool, optimizer: Any) -> None:
    settings = Settings(
        replace(SMALL, topology=topology),
        TrainConfig(batch_size=2, seq_len=16, optimizer=optimizer, freeze="trunk" if frozen else "none"),
    )
    model = ByteMTP(settings.model)
    if frozen:
        freeze_path(model)
    optimizers = Optimizers(model, settings.train)
    ids = torch.arange(2 * 19).view(2, 19)
    backward(model, ids, torch.zeros_like(ids))
    optimizers.step()
    need = memory(settings, torch.float32)
    assert need.weights == sum(x.numel() * x.itemsize for x in model.parameters())
    assert need.gradients == sum(x.grad.numel() * x.grad.itemsize for x in model.parameters() if x.grad is not None)
    states = [state[key] for _, _, state, keys in optimizers.states() for key in keys if key != "step"]
    assert need.moments == sum(x.numel() * x.itemsize for x in states)
    copies = 2 * model.num_parameters()
    assert memory(settings, torch.bfloat16).weights == need.weights + copies


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kv_heads", [1, 4])
@pytest.mark.parametrize("qk_norm", [False, True])
def test_activations_of_a_layer_are_what_autograd_keeps(kv_heads: int, qk_norm: bool, dtype: torch.dtype) -> None:
    config = ModelConfig(
        dim=64, layers=6, attention_heads=4, kv_heads=kv_heads, ffn_dim=176, n_future=1, qk_norm=qk_norm
    )
    model = ByteMTP(config)
    model.use(attention="sdpa", dtype=dtype)
    matrices = {shape for p in model.parameters() for shape in (tuple(p.shape), tuple(p.shape)[::-1])}
    kept: dict[int, torch.Tensor] = {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        kept[x.untyped_storage().data_ptr()] = x
        return x

    ids = torch.arange(2 * 128).view(2, 128) % 256
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x), model.autocast():
        model.run_trunk(model.context(ids, 128))
    sizes = [x.untyped_storage().nbytes() for x in kept.values() if tuple(x.shape) not in matrices]
    assert sum(sizes) == pytest.approx(256 * 6 * layer_bytes(config, dtype.itemsize), rel=0.05)


@pytest.mark.parametrize("name", [name for name in PRESETS if name not in ("7b", "13b")])
def test_presets_fit_a_card_of_80_gb(name: str) -> None:
    """The paper's were split into rounds of 8 rows whatever their size; 1.3b needed some 125 GB so."""
    assert memory(PRESETS[name], torch.bfloat16).total < 0.95 * CARD


@pytest.mark.parametrize(("name", "rows"), [("600m", 8), ("1.3b", 8), ("1.3b", 4), ("3b", 8)])
def test_larger_rounds_would_not_fit(name: str, rows: int) -> None:
    assert memory(changed(PRESETS[name], **{"train.accumulate": 1536 // rows}), torch.bfloat16).total > CARD


@pytest.mark.parametrize("name", ["7b", "13b"])
def test_the_largest_presets_say_that_they_need_several_cards(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "device_memory", lambda device: CARD)
    message = r"^weights, gradients and optimizer take some \d+ GB and cpu has 80: this model needs several cards"
    with pytest.raises(UserError, match=message):
        check_memory(PRESETS[name], CPU)


def test_memory_is_said_before_the_start(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "device_memory", lambda device: CARD)
    check_memory(changed(PRESETS["1.3b"], **{"train.dtype": "bfloat16"}), CPU)
    said = capsys.readouterr().err
    assert re.fullmatch(
        r"memory: some 6\d\.\d GB of 80 \(2\d\.\d weights and optimizer, 4\d\.\d a micro-batch of 2 rows\)\n", said
    )
    check_memory(changed(PRESETS["1.3b"], **{"train.accumulate": 192}), CPU)
    said = capsys.readouterr().err
    assert "warning: it may run out of memory; set train.accumulate to 256 or more, or " in said


def test_the_remedy_names_what_is_left_to_change() -> None:
    assert remedy(Settings(train=TrainConfig(batch_size=12, accumulate=4, seq_len=64))) == (
        "set train.accumulate to 6 or more, or train.activation_checkpointing to true, or train.seq_len below 64"
    )
    last = TrainConfig(batch_size=4, accumulate=4, seq_len=64, activation_checkpointing=True)
    assert remedy(Settings(train=last)) == "set train.seq_len below 64"


def test_the_remedy_is_one_that_all_processes_can_share() -> None:
    train = TrainConfig(batch_size=64, accumulate=8)
    assert remedy(Settings(train=train), 4).startswith("set train.accumulate to 16 or more, or ")
    assert remedy(Settings(train=train), 4, planned=True).startswith("set train.accumulate to 64 or more, or ")
    few = TrainConfig(batch_size=64, accumulate=2, far_rows=0.25)
    assert remedy(Settings(train=few), 4).startswith("set train.accumulate to 4 or more, or ")
    whole = Settings(model=ModelConfig(attention_heads=5, dim=80))
    for full in (
        replace(few, accumulate=4),  # 2 of 8 rows are not for 4 processes
        TrainConfig(batch_size=64, accumulate=16),
        TrainConfig(batch_size=64, accumulate=32),
    ):
        assert "accumulate" not in remedy(replace(whole, train=full), 4)


def test_a_single_row_becomes_smaller_in_parts() -> None:
    """Who follows the advice until there is none has a row in as many parts as there are heads of keys."""
    one = Settings(SMALL, TrainConfig(batch_size=64, seq_len=64, accumulate=8, far_rows=1.0))
    held = [memory(one, torch.float32, 8).activations]
    while found := re.search(r"train.context_parallel to (\d+) and train.accumulate to (\d+)", remedy(one, 8)):
        parts, rounds = map(int, found.groups())
        more = {"train.context_parallel": parts, "train.accumulate": rounds}
        of_all = re.search(r"and train.accumulate to (\d+)", remedy(one, 8, planned=True))
        assert of_all is not None
        one = changed(one, **more)
        assert grouped(one, World(0, 8)) == World(0, 8, parts)
        check_shares(one, World(0, 8, parts))
        assert int(of_all[1]) == rounds * (8 // parts)
        held.append(memory(one, torch.float32, 8).activations)
    assert one.train.context_parallel == SMALL.key_value_heads
    assert held == sorted(held, reverse=True)
    assert held[-1] < 0.6 * held[0]


def test_a_frozen_trunk_keeps_nothing_for_a_backward_pass() -> None:
    frozen = memory(changed(PRESETS["1.3b"], **{"train.freeze": "trunk"}), torch.bfloat16)
    assert frozen.activations < memory(PRESETS["1.3b"], torch.bfloat16).activations / 5


def test_processes_of_one_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = cost.device_memory(CPU)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert cost.device_memory(CPU) == whole // 4


def too_large() -> None:
    torch.empty(1 << 60, dtype=torch.uint8)


def out_of_memory() -> None:
    raise torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB of which ..."
    )


@pytest.mark.parametrize("fail", [too_large, out_of_memory])
def test_out_of_memory_is_one_line_with_the_remedy(fail: Any) -> None:
    with pytest.raises(UserError) as caught, told_if_full(Settings()):
        fail()
    assert re.match(r"^out of memory: .+; start anew: set train\.accumulate to 2 or more[^\n]+$", str(caught.value))


def test_other_errors_stay_as_they_are() -> None:
    with pytest.raises(RuntimeError, match="shape"), told_if_full(Settings()):
        torch.ones(2).view(3)


@pytest.mark.parametrize(("n", "kv_heads", "share", "freezes"), [
    (1, 4, 1.0, False), (3, 2, 1.0, False), (4, 1, 0.25, False), (3, 4, 0.5, True),
])  # fmt: skip
@pytest.mark.parametrize("topology", get_args(Topology))
def test_flops_are_those_of_the_counter(topology: Topology, n: int, kv_heads: int, share: float, freezes: bool) -> None:
    """With every pair counted, because in 16 bits a short row's scores are products that compute them all."""
    config = ModelConfig(
        dim=32, layers=5, attention_heads=4, kv_heads=kv_heads, ffn_dim=48, n_future=n, topology=topology
    )
    model = ByteMTP(config)
    if freezes and topology != "anticausal":
        freeze_path(model)
    model.use(attention="matmul", dtype=torch.bfloat16)
    ids = torch.arange(4 * (16 + n)).view(4, -1)
    with FlopCounterMode(display=False) as counter:
        backward(model, ids, torch.zeros_like(ids), far_rows=share)
    found = Flops.of_model(model, share).of(4 * 16, 4 * 16 * 16)
    near = 0.15 if freezes else 1e-6  # some frozen matrices pass gradients on, and some others need not
    assert found == pytest.approx(counter.get_total_flops(), rel=near)


@pytest.mark.parametrize(("name", "tera"), [
    ("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA H200", 989), ("NVIDIA A100-SXM4-80GB", 312),
    ("NVIDIA A100 80GB PCIe", 312), ("NVIDIA L40S", 362), ("NVIDIA L4", 121), ("NVIDIA A10", 125),
])  # fmt: skip
def test_peaks(name: str, tera: float) -> None:
    assert peak_by_name(name) == 1e12 * tera


@pytest.mark.parametrize("name", ["NVIDIA A10G", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA GeForce RTX 9090"])
def test_no_figure_where_the_peak_is_not_known(name: str) -> None:
    assert peak_by_name(name) is None


def test_out_of_memory_is_told_in_one_line(corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> HeadLosses:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ...")

    monkeypatch.setattr("bytemtp.training.trainer.backward", full)
    with pytest.raises(UserError, match=r"^out of memory: CUDA out of memory; start anew: set train.accumulate to 2"):
        train(SETTINGS, [corpus], tmp_path / "run", device="cpu")


def test_memory_is_estimated_before_an_old_run_is_deleted(
    corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train(settings(steps=1), [corpus], tmp_path / "run", device="cpu")
    assert "memory: some 0.0 GB of " in capsys.readouterr().err
    monkeypatch.setattr("bytemtp.training.cost.device_memory", lambda _: 1000)
    with pytest.raises(UserError, match="this model needs several cards"):
        train(settings(steps=1), [corpus], tmp_path / "run", device="cpu", overwrite=True)
    assert load_model(tmp_path / "run")


def test_the_use_of_the_device_is_logged_where_its_peak_is_known(
    corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("bytemtp.training.trainer.peak_flops", lambda *_: 1e9)
    train(settings(steps=3), [corpus], tmp_path / "run", device="cpu")
    trained, valid = lines(tmp_path / "run")
    assert 0 < trained["mfu"] < 100
    assert "mfu" not in valid
    assert re.search(r"^train .* kB/s  mfu [\d.]+%  epoch 0", capsys.readouterr().err, re.MULTILINE)


@pytest.mark.parametrize("name", ["layers", "dim"])
def test_a_model_beyond_the_memory_is_refused_before_it_is_made(corpus: str, tmp_path: Path, name: str) -> None:
    large = changed(SETTINGS, **{f"model.{name}": 2**20, "model.ffn_dim": 2**20})
    with pytest.raises(UserError, match=f"model.{name} 1048576.* GiB of weights, and this machine has"):
        train(large, [corpus], tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("topology", get_args(Topology))
def test_a_model_has_at_least_the_parameters_it_is_refused_for(topology: Topology) -> None:
    config = replace(SETTINGS.model, topology=topology, layers=3, dim=32, attention_heads=4, kv_heads=2)
    real, least = ByteMTP(config).num_parameters(), config.least_parameters
    assert least <= real <= 2 * least
