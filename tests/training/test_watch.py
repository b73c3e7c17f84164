"""A step never waits for the device, and nothing is written after a loss that is not finite."""

import math
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bytemtp.common.errors import UserError
from bytemtp.common.settings import Topology
from bytemtp.data.stream import stream
from bytemtp.model.checkpoint import latest, load_model
from bytemtp.model.model import ByteMTP
from bytemtp.training.loss import HeadLosses, backward, trained_targets
from bytemtp.training.optimizer import Optimizers
from bytemtp.training.trainer import Trainer, train
from bytemtp.training.watch import Watch
from tests.training.runs import SETTINGS, lines, settings, weights, without_clock


def spoil_losses(monkeypatch: pytest.MonkeyPatch, step: int, factor: torch.Tensor) -> None:
    """Multiply the heads' losses of one step."""
    calls = 0

    def spoilt(*arguments: Any, **options: Any) -> HeadLosses:
        nonlocal calls
        calls += 1
        losses = backward(*arguments, **options)
        return replace(losses, nats=losses.nats * factor) if calls == step else losses

    monkeypatch.setattr("bytemtp.training.trainer.backward", spoilt)


def test_a_loss_that_is_not_finite_stops_before_the_step(
    corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil_losses(monkeypatch, 7, torch.tensor(math.inf))
    run = tmp_path / "run"
    with pytest.raises(UserError, match=r"step 7 has loss inf.*last good checkpoint is .*step-00000005"):
        train(SETTINGS, [corpus], run, device="cpu")
    monkeypatch.undo()
    assert train(SETTINGS, [], run, device="cpu", resume=True).finished


@pytest.fixture
def _as_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses and norms are read where something is written, not after every step."""

    class Patient(Trainer):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self._checks_every_step = False

    monkeypatch.setattr("bytemtp.training.trainer.Trainer", Patient)


@pytest.mark.usefixtures("_as_on_cuda")
def test_a_trainer_that_does_not_wait_trains_alike(corpus: str, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(SETTINGS, [corpus], run, device="cpu", stop_after=7)
    train(SETTINGS, [], run, device="cpu", resume=True)
    assert weights(run) == weights(whole)
    assert without_clock(run) == without_clock(whole)


@pytest.mark.usefixtures("_as_on_cuda")
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize(("step", "written"), [(4, 3), (6, 5), (7, 6), (11, 10)])
def test_nothing_is_written_after_a_loss_that_is_not_finite(
    corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: float, step: int, written: int
) -> None:
    """Found where something is to be written next; the losses after it may be finite again."""
    spoil_losses(monkeypatch, step, torch.tensor([1, bad]))
    run = tmp_path / "run"
    with pytest.raises(UserError, match=rf"step {step} has loss {bad}"):
        train(SETTINGS, [corpus], run, device="cpu")
    assert lines(run)[-1]["step"] == written
    assert int(str(latest(run))[-8:]) <= written if latest(run) else step <= 4


class Transfers(TorchDispatchMode):
    """Counts tensors of the host that operations on the device are given: each is copied there, and waited for."""

    count, writes_by_index = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, torch.Tensor)]
        has_device = any(x.is_meta for x in tensors)
        self.count += sum(has_device and not x.is_meta and x.dim() > 0 for x in tensors)
        self.writes_by_index += func is torch.ops.aten.index_put_.default
        return out


@pytest.mark.parametrize("topology", get_args(Topology))
@pytest.mark.parametrize("window", [0, 6])
def test_a_step_asks_nothing_of_the_device(
    corpus: str, monkeypatch: pytest.MonkeyPatch, topology: Topology, window: int
) -> None:
    """On a device without data, whatever reads some fails: a layout made of what is there, for one."""
    monkeypatch.setattr(ByteMTP, "autocast", lambda _: nullcontext())  # which such a device does not have
    config = replace(SETTINGS.model, layers=3, topology=topology, window=window)
    model = ByteMTP(config).to("meta")
    model.use(attention="sdpa")
    with stream(corpus, 32, 4, n_future=2) as batches:
        batch = next(batches)
    there = batch.to("meta")
    ids, document_ids = there.ids, there.document_ids
    layout = model.layout(4, 32, batch.document_ids)
    assert not layout.is_plain
    with Transfers() as transfers:
        losses = backward(model, ids, document_ids, weights=[1.0, 0.5], far_rows=0.5, layout=layout)
    with Transfers() as choosing:
        trained_targets(model, ids, document_ids, 0.5)
    assert choosing.writes_by_index == 0  # a list of heads would be copied there
    assert transfers.count == (2 if topology in ("linear", "replicated", "anticausal") else 4)  # two places a layout
    watch = Watch(model.device)
    watch.note(1, losses.mean_there, Optimizers(model, SETTINGS.train).clip(1.0))
    with pytest.raises(NotImplementedError, match="no data"):
        backward(model, ids, document_ids)
    with pytest.raises(NotImplementedError, match="no data"):
        watch.read()


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_step_never_waits_for_cuda(
    corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    step = Trainer._step

    def watched(trainer: Trainer) -> None:
        torch.cuda.set_sync_debug_mode("error" if trainer.state.step else "default")
        try:
            step(trainer)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(Trainer, "_step", watched)
    quiet = settings(optimizer=optimizer, accumulate=2, far_rows=0.5, dtype="auto", compile="false")
    assert train(quiet, [corpus], tmp_path / "run", device="cuda").finished


@pytest.mark.gpu
@pytest.mark.compiled
def test_a_resumed_run_on_cuda_is_near_the_whole_one(corpus: str, tmp_path: Path) -> None:
    train(SETTINGS, [corpus], tmp_path / "whole", device="cuda")
    train(SETTINGS, [corpus], tmp_path / "cut", device="cuda", stop_after=5)
    train(SETTINGS, [], tmp_path / "cut", device="cuda", resume=True)
    pairs = zip(load_model(tmp_path / "cut").parameters(), load_model(tmp_path / "whole").parameters(), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-2)
