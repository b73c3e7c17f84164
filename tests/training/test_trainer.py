"""The trainer: the same weights however a run was cut, runs that survive kills, and files that say what happened."""

import gzip
import hashlib
import io
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from functools import reduce
from itertools import takewhile
from operator import add
from pathlib import Path
from typing import Any, Literal, get_args

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bytemtp.common.errors import UserError
from bytemtp.common.presets import PRESETS
from bytemtp.common.settings import (
    DataConfig,
    ModelConfig,
    Settings,
    Topology,
    TrainConfig,
    changed,
    head_weights,
    load_settings,
)
from bytemtp.data.stream import stream
from bytemtp.model.checkpoint import best, latest, load_model
from bytemtp.model.model import ByteMTP
from bytemtp.train import main, read_command
from bytemtp.training import auto
from bytemtp.training.auto import pick_compile
from bytemtp.training.batches import collect_valid, count_rows, nothing, seq_len_at
from bytemtp.training.distributed import ALONE
from bytemtp.training.loss import HeadLosses, backward, evaluate, trained_targets
from bytemtp.training.optimizer import Optimizers, learning_rate, set_learning_rate
from bytemtp.training.progress import drop_lines_after
from bytemtp.training.trainer import Trainer, TrainOutcome, train
from bytemtp.training.watch import Watch

SETTINGS = Settings(
    ModelConfig(dim=16, layers=2, attention_heads=2, ffn_dim=24, n_future=2),
    TrainConfig(
        steps=12, batch_size=4, seq_len=32, lr=1e-2, warmup=2, dtype="float32", log_every=3, valid_every=5,
        valid_bytes=256, checkpoint_every=4, sample_bytes=0,
    ),
    DataConfig(valid_fraction=0.2),
)  # fmt: skip
KEYS = {
    "step", "split", "loss", "bpb", "bpb_per_head", "bpb_with_ends", "lr", "grad_norm", "bytes_seen", "epoch",
    "bytes_per_s", "elapsed_s", "peak_memory_bytes",
}  # fmt: skip
CLOCK = {"bytes_per_s", "elapsed_s", "peak_memory_bytes"}
"""What may differ between two equal runs."""

WORDS = ["alpha ", "beta ", "gamma\n", "delta, ", "epsilon. "]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    """40 documents of 10 to 70 bytes: an epoch is some 10 batches, so the runs here cross its end."""
    folder = tmp_path_factory.mktemp("corpus")
    draw = random.Random(0)
    for i in range(40):
        words = draw.choices(WORDS, k=draw.randint(2, 9))
        (folder / f"{i:02}.txt").write_text("".join(words))
    return str(folder)


def settings(**values: Any) -> Settings:
    return changed(SETTINGS, **{f"train.{name}": value for name, value in values.items()})


def weights(run: Path) -> str:
    """Hash of the newest weights and optimiser state."""
    folder = latest(run)
    assert folder is not None
    names = ("model.safetensors", "optimizer.safetensors")
    return hashlib.sha256(b"".join((folder / name).read_bytes() for name in names)).hexdigest()


def generators(run: Path) -> bytes:
    """State of PyTorch's random numbers at the end."""
    folder = latest(run)
    assert folder is not None
    return (folder / "rng.safetensors").read_bytes()


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def without_clock(run: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key not in CLOCK} for line in lines(run)]


@pytest.fixture(scope="module")
def whole(corpus: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody stopped."""
    torch.set_num_threads(1)
    run = tmp_path_factory.mktemp("whole") / "run"
    assert train(SETTINGS, [corpus], run, device="cpu").finished
    return run


@pytest.mark.parametrize("cuts", [[1], [4, 5], [7], [2, 6, 11]])
def test_cut_and_resumed_is_the_same_run(corpus: str, whole: Path, tmp_path: Path, cuts: list[int]) -> None:
    """Same weights, same optimiser state and, clocks apart, the same metrics; nothing is said again on resume."""
    run = tmp_path / "run"
    for i, cut in enumerate(cuts):
        torch.manual_seed(i)  # as a new process would have another state
        outcome = train(SETTINGS, [corpus], run, device="cpu", stop_after=cut, resume=i > 0)
        assert (outcome.finished, outcome.state.step) == (False, cut)
    assert train(SETTINGS, [], run, device="cpu", resume=True).finished
    assert weights(run) == weights(whole)
    assert generators(run) == generators(whole)
    assert without_clock(run) == without_clock(whole)


def test_a_longer_run_equals_one_of_that_length_while_warming_up(corpus: str, tmp_path: Path) -> None:
    """10 steps, then resumed for 20: during the warm-up the schedule does not depend on how long the run is."""
    train(settings(steps=10, warmup=20), [corpus], tmp_path / "a", device="cpu")
    train(settings(steps=20, warmup=20), [], tmp_path / "a", device="cpu", resume=True)
    train(settings(steps=20, warmup=20), [corpus], tmp_path / "b", device="cpu")
    assert weights(tmp_path / "a") == weights(tmp_path / "b")


@pytest.mark.parametrize(("warmup", "warns"), [(2, True), (20, False)])
def test_a_changed_schedule_is_told(
    corpus: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], warmup: int, warns: bool
) -> None:
    train(settings(steps=4, warmup=warmup), [corpus], tmp_path / "run", device="cpu")
    capsys.readouterr()
    train(settings(steps=6, warmup=warmup), [], tmp_path / "run", device="cpu", resume=True)
    assert ("followed the schedule of the old" in capsys.readouterr().err) == warns


def test_a_finished_run_stays_as_it_is(corpus: str, tmp_path: Path) -> None:
    train(settings(steps=3), [corpus], tmp_path / "run", device="cpu")
    before = weights(tmp_path / "run"), lines(tmp_path / "run")
    outcome = train(settings(steps=3), [], tmp_path / "run", device="cpu", resume=True)
    assert outcome.finished
    assert (weights(tmp_path / "run"), lines(tmp_path / "run")) == before


def test_settings_that_shape_the_result_cannot_change_on_resume(corpus: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(settings(steps=2), [corpus], run, device="cpu")
    for name, value in {"lr": 0.5, "seed": 3, "batch_size": 2}.items():
        with pytest.raises(UserError, match=f"train.{name} is {value}"):
            train(settings(**{name: value}), [], run, device="cpu", resume=True)
    train(settings(steps=3, log_every=1, keep_checkpoints=1, dtype="auto"), [], run, device="cpu", resume=True)
    saved, _ = load_settings(run / "config.toml")
    assert (saved.train.steps, saved.train.log_every, saved.train.dtype) == (3, 1, "float32")


def test_resume_on_the_command_line_takes_everything_from_the_run(corpus: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(settings(steps=2), [corpus], run, device="cpu", preset="nano")
    command = read_command(["--out", str(run), "--resume", "--train.steps", "5"])
    assert command.settings == changed(load_settings(run / "config.toml")[0], **{"train.steps": 5})
    assert read_command(["--out", str(run), "--resume", "--preset", "nano"]).settings.model == SETTINGS.model
    with pytest.raises(UserError, match="started from preset 'nano', not 'small'"):
        read_command(["--out", str(run), "--resume", "--preset", "small"])


def test_metrics_have_all_keys(whole: Path, corpus: str) -> None:
    records = lines(whole)
    epoch_steps = steps_of(corpus, epochs=1)
    assert 8 <= epoch_steps < 12
    assert [(line["step"], line["split"]) for line in records] == [
        (3, "train"), (5, "valid"), (6, "train"), (9, "train"), (10, "valid"), (12, "train"), (12, "valid"),
    ]  # fmt: skip
    for line in records:
        assert line.keys() == KEYS
        assert line["bpb"] == line["bpb_per_head"][0]
        assert len(line["bpb_per_head"]) == 2
        assert line["bpb"] < line["bpb_with_ends"], "ends of documents are harder to learn"
        assert line["bytes_seen"] == line["step"] * 4 * 32
        assert line["epoch"] == (line["step"] >= epoch_steps)
        assert line["lr"] == learning_rate(SETTINGS.train, line["step"] - 1, 0.0)
        assert line["peak_memory_bytes"] > 10**6
        assert line["bytes_per_s"] > 0
    assert sorted(line["elapsed_s"] for line in records) == [line["elapsed_s"] for line in records]


def test_config_says_what_the_run_was(whole: Path, corpus: str) -> None:
    saved, info = load_settings(whole / "config.toml")
    assert saved == changed(SETTINGS, **{"train.compile": "false", "data.sweeps": 1})
    assert info["paths"] == [corpus]
    assert info["parameters"] == ByteMTP(SETTINGS.model).num_parameters()
    assert info["torch"] == torch.__version__


def test_old_checkpoints_go(whole: Path) -> None:
    """All but the newest two, and the best in validation: here, where the loss falls, the last."""
    names = sorted(path.name for path in (whole / "checkpoints").iterdir())
    assert names == ["best", "latest", "step-00000010", "step-00000012"]


def test_the_best_validation_is_kept(corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The third of six validations is the best; a run that is cut and resumed comes to the same."""
    bits = {1: 5.0, 2: 4.0, 3: 2.0, 4: 3.0, 5: math.nan, 6: 2.0}

    def train_with(run: Path, **more: Any) -> TrainOutcome:
        step = int(latest(run).name[-8:]) if latest(run) else 0  # type: ignore[union-attr]
        coming = iter([bits[i] for i in range(step + 1, 7)])
        monkeypatch.setattr("bytemtp.training.trainer.to_compare", lambda *_: next(coming))
        paths = [] if more.get("resume") else [corpus]
        short = settings(steps=6, valid_every=1, checkpoint_every=100, keep_checkpoints=1)
        return train(short, paths, run, device="cpu", **more)

    for cuts in ([], [2], [3, 5]):
        run = tmp_path / str(cuts)
        for i, cut in enumerate(cuts):
            train_with(run, stop_after=cut, resume=i > 0)
            names = {path.name for path in (run / "checkpoints").glob("step-*")}
            assert names == {f"step-{cut:08d}", f"step-{min(cut, 3):08d}"}
            if cut <= 3:  # as a kill between the writing of `latest` and of `best` leaves it
                (run / "checkpoints" / "best").unlink()
        state = train_with(run, resume=bool(cuts)).state
        assert (state.best_step, state.best_bpb) == (3, 2.0)
        names = {path.name for path in (run / "checkpoints").glob("step-*")}
        assert best(run) == run / "checkpoints" / "step-00000003"
        assert names == {"step-00000003", "step-00000006"}


def test_head_1_decides_which_validation_is_best(whole: Path) -> None:
    valid = [line for line in lines(whole) if line["split"] == "valid"]
    expected = min(valid, key=lambda line: float(line["bpb"]))
    state = json.loads((latest(whole) / "state.json").read_text())  # type: ignore[operator]
    assert (state["best_step"], state["best_bpb"]) == (expected["step"], expected["bpb"])


def test_accumulation_is_the_full_batch(corpus: str, tmp_path: Path) -> None:
    """Documents make the valid targets of each part differ, so averaging the parts' means would be another gradient."""
    models = []
    for accumulate in (1, 2, 4):
        run = tmp_path / str(accumulate)
        train(settings(steps=3, accumulate=accumulate), [corpus], run, device="cpu")
        models.append(load_model(run))
    for model in models[1:]:
        for one, other in zip(models[0].parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_the_loss_falls(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(b"abcdefgh" * 2000)
    losses = train(settings(steps=60, valid_every=0), [str(path)], tmp_path / "run", device="cpu")
    first, *_, last = [line["bpb"] for line in lines(tmp_path / "run") if line["split"] == "train"]
    assert first > 6
    assert last < 0.5
    assert losses.finished


def spoil_losses(monkeypatch: pytest.MonkeyPatch, step: int, factor: torch.Tensor) -> None:
    """Multiply the heads' losses of one step."""
    calls = 0

    def spoilt(*arguments: Any) -> HeadLosses:
        nonlocal calls
        calls += 1
        losses = backward(*arguments)
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
        losses = backward(model, ids, document_ids, None, "sequential", [1.0, 0.5], 0.5, layout)
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


def test_out_of_memory_is_told_in_one_line(corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> HeadLosses:
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


def steps_of(corpus: str, epochs: int) -> int:
    """Steps until every row of so many epochs was in a batch: by reading the rows."""
    options: dict[str, Any] = {"split": "train", "valid_fraction": 0.2, "n_future": 2}
    with stream(corpus, 32, 4, epochs=None, **options) as batches:
        return 1 + sum(1 for _ in takewhile(lambda batch: batch.cursor.epoch < epochs, batches))


def test_epochs_become_steps(corpus: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The run ends with the batch that holds the last row of the last epoch, and its schedule is that of its steps."""
    steps = steps_of(corpus, epochs=2)
    outcome = train(settings(epochs=2, steps=7), [corpus], tmp_path / "epochs", device="cpu")
    assert (outcome.finished, outcome.state.step) == (True, steps)
    assert outcome.state.cursor is not None
    assert outcome.state.cursor["epoch"] == 2
    assert lines(tmp_path / "epochs")[-1]["epoch"] == 2
    assert f"train.epochs 2: {steps} steps of 4 x 32 bytes" in capsys.readouterr().err
    saved, _ = load_settings(tmp_path / "epochs" / "config.toml")
    assert (saved.train.epochs, saved.train.steps) == (2, steps)
    train(settings(steps=steps), [corpus], tmp_path / "steps", device="cpu")
    assert weights(tmp_path / "epochs") == weights(tmp_path / "steps")


def test_a_run_by_epochs_is_resumed_without_counting_again(
    corpus: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train(settings(epochs=2), [corpus], whole, device="cpu")
    train(settings(epochs=2), [corpus], cut, device="cpu", stop_after=5)
    capsys.readouterr()
    main(["--out", str(cut), "--resume", "--device=cpu", "--stop-after=15"])
    train(settings(epochs=2), [], cut, device="cpu", resume=True)  # these settings name other steps
    assert "counting" not in capsys.readouterr().err
    assert weights(cut) == weights(whole)
    assert without_clock(cut) == without_clock(whole)


def test_a_run_by_epochs_may_get_another_length(
    corpus: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    train(settings(epochs=1, warmup=100), [corpus], run, device="cpu")
    main(["--out", str(run), "--resume", "--device=cpu", "--train.epochs=2"])
    assert load_settings(run / "config.toml")[0].train.steps == steps_of(corpus, epochs=2)
    train(settings(epochs=2, warmup=100), [corpus], tmp_path / "other", device="cpu")
    assert weights(run) == weights(tmp_path / "other")
    main(["--out", str(run), "--resume", "--device=cpu", "--train.steps=50"])
    assert "set train.epochs to 0, too" in capsys.readouterr().err
    assert load_settings(run / "config.toml")[0].train.steps == steps_of(corpus, epochs=2)
    main(["--out", str(run), "--resume", "--device=cpu", "--train.steps=50", "--train.epochs=0"])
    saved, _ = load_settings(run / "config.toml")
    assert (saved.train.epochs, saved.train.steps) == (0, 50)
    assert lines(run)[-1]["step"] == 50


def test_epochs_of_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is kept before it is counted, and read once."""
    (tmp_path / "text").write_bytes(b"abcdefgh" * 100)
    with (tmp_path / "text").open() as file:
        monkeypatch.setattr(sys, "stdin", file)
        outcome = train(settings(epochs=3), ["-"], tmp_path / "run", device="cpu")
    assert outcome.state.step == math.ceil(3 * 801 / (4 * 32))


def held_out(folder: Path) -> str:
    path = folder / "held-out.jsonl"
    path.write_text("".join(json.dumps({"text": word * 20}) + "\n" for word in WORDS))
    return str(path)


def test_files_can_be_named_for_validation(corpus: str, tmp_path: Path) -> None:
    """They are validated on, all of PATH is trained on, and a resumed run does the same."""
    run, cut = tmp_path / "run", tmp_path / "cut"
    named = changed(settings(valid_bytes=10**6), **{"data.valid_paths": [held_out(tmp_path)]})
    outcome = train(named, [corpus], run, device="cpu")
    assert outcome.valid is not None
    assert outcome.valid.counts[0] == sum(20 * len(word) + 1 for word in WORDS) - 1  # the first id is no target
    assert outcome.valid.end_counts[0] == len(WORDS)
    train(named, [corpus], cut, device="cpu", stop_after=5)
    main(["--out", str(cut), "--resume", "--device=cpu"])
    assert without_clock(cut) == without_clock(run)
    whole_corpus = changed(settings(), **{"data.valid_fraction": 0.0})
    train(whole_corpus, [corpus], tmp_path / "other", device="cpu")
    assert weights(run) == weights(tmp_path / "other")
    with pytest.raises(UserError, match=r"data.valid_paths is \(\) but the run was made with \('.*held-out.jsonl',\)"):
        train(settings(valid_bytes=10**6), [], cut, device="cpu", resume=True)


def test_wrong_validation_files_are_told_before_anything_is_written(corpus: str, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(Path(corpus) / "00.txt")
    for path, message in {
        str(tmp_path / "misspelt"): "data.valid_paths: .*misspelt: no such file or folder",
        str(tmp_path / "link"): "data.valid_paths: .*link is also among the files to train on; name PATHs that leave",
    }.items():
        with pytest.raises(UserError, match=message):
            train(changed(SETTINGS, **{"data.valid_paths": [path]}), [corpus], tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


def test_a_batch_with_nothing_in_it_adds_nothing() -> None:
    """A process that shares weights validates as often as the others, though it may have fewer rows."""
    model, batch = ByteMTP(SETTINGS.model), nothing(SETTINGS)
    losses = evaluate(model, batch.ids, batch.document_ids, model.layout(1, SETTINGS.train.seq_len, batch.document_ids))
    none = HeadLosses.none(2, model.device)
    assert all(torch.equal(one, other) for one, other in zip(vars(losses).values(), vars(none).values(), strict=True))
    assert count_rows([batch], ALONE) == 0


@pytest.mark.parametrize(("accumulate", "rows"), [(1, 4), (2, 4), (4, 3)])
def test_validation_reads_its_bytes_in_rounds(corpus: str, accumulate: int, rows: int) -> None:
    """As many batches as cover train.valid_bytes, each of the rows that a round of training has."""
    batches = collect_valid(settings(valid_bytes=96, accumulate=accumulate), [corpus], pin_memory=False)
    assert {len(batch.octets) for batch in batches} == {4 // accumulate}
    assert sum(len(batch.octets) for batch in batches) == rows


@pytest.mark.parametrize(("preset", "kib"), [("nano", 32), ("tiny", 256), ("small", 256), ("300m", 256)])
def test_presets_validate_on_enough_bytes(preset: str, kib: int, corpus: str, tmp_path: Path) -> None:
    """Eight batches of 4 x 512 bytes, as it once was, are 16 KiB: too few to tell two models apart."""
    (tmp_path / "held-out").write_bytes(bytes(400 << 10))
    named = changed(PRESETS[preset], **{"data.valid_paths": [str(tmp_path / "held-out")]})
    batches = collect_valid(named, [corpus], pin_memory=False)
    size = sum(len(batch.octets) for batch in batches) * named.train.seq_len
    round_bytes = named.train.batch_size // named.train.accumulate * named.train.seq_len
    assert kib << 10 <= size < (kib << 10) + round_bytes


def test_a_run_of_an_older_version_goes_on(corpus: str, whole: Path, tmp_path: Path) -> None:
    """Its config.toml says train.valid_batches, which is now train.valid_bytes, and lacks newer settings."""
    run = tmp_path / "run"
    train(SETTINGS, [corpus], run, device="cpu", stop_after=5)
    config = run / "config.toml"
    text = config.read_text().replace("valid_bytes = 256", "valid_batches = 2")
    for name in ("valid_paths = []", "sweeps = 1", "epochs = 0"):
        assert text.count(f"{name}\n") == 1
        text = text.replace(f"{name}\n", "")
    config.write_text(text)
    main(["--out", str(run), "--resume", "--device=cpu"])
    assert weights(run) == weights(whole)


def test_what_an_older_run_does_not_say_is_as_it_was_then(corpus: str, tmp_path: Path) -> None:
    """Not as it is now: it was trained with a cosine and equal weights."""
    run = tmp_path / "run"
    train(SETTINGS, [corpus], run, device="cpu", stop_after=2)
    config = run / "config.toml"
    lines = config.read_text().splitlines()
    config.write_text("\n".join(x for x in lines if not x.startswith(("schedule", "head_weights", "qk_norm"))))
    saved = load_settings(config)[0].train
    assert (saved.schedule, saved.head_weights) == ("cosine", "equal") != (TrainConfig().schedule, "far:0.02")
    newer = changed(SETTINGS, **{"model.qk_norm": True})
    old = load_settings(config, newer)[0]
    assert old.train.schedule == "cosine" and not old.model.qk_norm


@pytest.mark.parametrize(
    ("speed", "minutes", "expected"),
    [(1.0, 5, "tiny"), (1.0, 1, "nano"), (1.0, 25, "mini"), (4.0, 5, "mini"), (0.1, 60, "tiny"), (1000.0, 60, "small")],
)
def test_preset_auto_weighs_the_minutes_by_the_speed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], speed: float, minutes: int, expected: str
) -> None:
    monkeypatch.setattr(auto, "measure_speed", lambda *_: speed * auto.REFERENCE_BYTES_PER_S)
    command = read_command(["corpus", "--out", "run", "--preset", "auto", f"--train.minutes={minutes}"])
    assert command.preset == expected
    assert command.settings == changed(PRESETS[expected], **{"train.minutes": float(minutes)})
    assert f"preset: {expected} (" in capsys.readouterr().err


def test_preset_auto_needs_minutes() -> None:
    with pytest.raises(UserError, match=r"say it with --train\.minutes M"):
        read_command(["corpus", "--out", "run", "--preset", "auto"])


def test_the_speed_of_this_machine_is_a_number() -> None:
    assert 1e2 < auto.measure_speed(SETTINGS, torch.device("cpu")) < 1e8


def test_sweeps_are_chosen_once_and_kept(tmp_path: Path) -> None:
    """A corpus beyond one buffer of rows is swept more often, and the resumed run goes on in the same order."""
    path = tmp_path / "text.txt"
    path.write_bytes(random.Random(0).randbytes(20 << 20))
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train(settings(steps=4), [str(path)], whole, device="cpu")
    assert load_settings(whole / "config.toml")[0].data.sweeps == 3
    train(settings(steps=4), [str(path)], cut, device="cpu", stop_after=2)
    main(["--out", str(cut), "--resume", "--device=cpu"])
    assert weights(cut) == weights(whole)


def test_minutes_end_a_run(corpus: str, tmp_path: Path) -> None:
    outcome = train(settings(minutes=0.01, steps=10**9, valid_every=0), [corpus], tmp_path / "run", device="cpu")
    assert outcome.finished
    assert 0.6 <= outcome.state.elapsed_s < 10
    assert [line["split"] for line in lines(tmp_path / "run")][-1] == "valid"


def test_overwrite_needs_a_corpus_that_is_there(corpus: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(settings(steps=2), [corpus], run, device="cpu")
    with pytest.raises(UserError, match="already holds a run"):
        train(settings(steps=2), [corpus], run, device="cpu")
    with pytest.raises(UserError, match="no such file"):
        train(settings(steps=2), [str(tmp_path / "misspelt")], run, device="cpu", overwrite=True)
    assert load_model(run)
    train(settings(steps=1), [corpus], run, device="cpu", overwrite=True)
    assert {line["step"] for line in lines(run)} == {1}


def test_without_validation_documents_training_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "one.txt").write_bytes(b"abcdefgh" * 100)
    outcome = train(settings(steps=3), [str(tmp_path / "one.txt")], tmp_path / "run", device="cpu")
    assert outcome.valid is None
    assert "no document fell into the validation split" in capsys.readouterr().err
    assert {line["split"] for line in lines(tmp_path / "run")} == {"train"}


def test_damaged_inputs_are_told_once(corpus: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.gz").write_bytes(gzip.compress(b"x" * 100)[:-10])
    skipping = changed(settings(steps=12), **{"data.on_corrupt": "skip"})
    train(skipping, [corpus, str(tmp_path / "bad.gz")], tmp_path / "run", device="cpu")
    assert capsys.readouterr().err.count("left out: " + str(tmp_path / "bad.gz")) == 1


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_standard_input_is_kept_for_resuming(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compress: Any) -> None:
    class Input(io.BytesIO):
        isatty = staticmethod(lambda: False)
        buffer = property(lambda self: self)

    content = compress(b"the quick brown fox " * 20_000)  # above 256 KiB, so that a part of it is held out
    file = tmp_path / ("stdin.bytes.gz" if compress is gzip.compress else "stdin.bytes")
    file.write_bytes(content)
    monkeypatch.setattr(sys, "stdin", Input(content))
    train(settings(steps=4), ["-"], tmp_path / "piped", device="cpu", stop_after=2)
    train(settings(steps=4), [], tmp_path / "piped", device="cpu", resume=True)
    train(settings(steps=4), [str(file)], tmp_path / "named", device="cpu")
    assert load_settings(tmp_path / "piped" / "config.toml")[1]["paths"] == ["-"]
    assert weights(tmp_path / "piped") == weights(tmp_path / "named")


def test_a_terminal_gets_a_bar(corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        isatty = staticmethod(lambda: True)

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    train(settings(steps=3), [corpus], tmp_path / "run", device="cpu")
    shown = terminal.getvalue()
    last = lines(tmp_path / "run")[-1]
    assert "| 3/3 step [" in shown
    assert "kB/s" in shown
    assert f"valid      3  loss {last['loss']:.4f}  bpb {last['bpb_per_head'][0]:.3f} " in shown


def test_a_sample_does_not_change_the_run(corpus: str, whole: Path, tmp_path: Path) -> None:
    shown = []

    def sample(model: ByteMTP) -> bytes:
        shown.append(torch.rand(1))  # a sampler may use the global random numbers
        return b"\xff\n"

    train(settings(sample_bytes=8), [corpus], tmp_path / "run", device="cpu", sample=sample)
    assert len(shown) == 3
    assert weights(tmp_path / "run") == weights(whole)


def test_a_cut_last_line_of_metrics_goes(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    drop_lines_after(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


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


def test_warmup_by_the_clock_takes_a_tenth_of_the_run_at_most() -> None:
    slow_machine = TrainConfig(minutes=1.0, warmup=1000, lr=2.0, schedule="wsd")
    assert learning_rate(slow_machine, 0, 0.0) == pytest.approx(0.002)
    assert learning_rate(slow_machine, 3, 3.0) == pytest.approx(1.0)
    assert learning_rate(slow_machine, 8, 6.0) == 2.0


@pytest.mark.parametrize(
    "changes",
    [
        {"train.optimizer": "muon", "train.schedule": "wsd"},
        {"train.head_weights": "geometric:0.5"},
        {"train.optimizer": "muon", "model.qk_norm": True},
    ],
)
def test_resumed_is_the_same_run_with_other_recipes(corpus: str, tmp_path: Path, changes: dict[str, Any]) -> None:
    train(changed(SETTINGS, **changes), [corpus], tmp_path / "whole", device="cpu")
    train(changed(SETTINGS, **changes), [corpus], tmp_path / "cut", device="cpu", stop_after=5)
    train(changed(SETTINGS, **changes), [], tmp_path / "cut", device="cpu", resume=True)
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")


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


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_the_embedding_has_its_own_learning_rate(name: Literal["adamw", "muon"]) -> None:
    """Ten times the rate moves it ten times as far in a first step, whose size is the rate; all else stays the same."""
    moves = []
    for scale in (1.0, 10.0):
        model = ByteMTP(SETTINGS.model)
        optimizer = Optimizers(model, settings(optimizer=name, embedding_lr=scale, weight_decay=0.0).train)
        set_learning_rate(optimizer, 1e-3)
        before = {name: p.clone() for name, p in model.named_parameters()}
        ids = torch.arange(20)[None]
        backward(model, ids, torch.zeros_like(ids))
        optimizer.step()
        moves.append({name: p.detach() - before[name] for name, p in model.named_parameters()})
    for key, move in moves[0].items():
        expected = 10 * move if key == "embed.weight" else move
        torch.testing.assert_close(moves[1][key], expected, rtol=1e-3, atol=1e-6)
        assert move.any()


def is_between_hidden(name: str) -> bool:
    return name.rsplit(".", 2)[-2] in ("qkv", "attention_out", "gate_up", "ffn_out")


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


@pytest.mark.parametrize(
    ("text", "weights"),
    [("equal", [1, 1, 1]), ("far:0.1", [1, 0.1, 0.1]), ("far:0", [1, 0, 0]), ("geometric:0.5", [1, 0.5, 0.25])],
)
def test_head_weights(text: str, weights: list[float]) -> None:
    assert head_weights(text, 3) == weights


@pytest.mark.parametrize(
    "text", ["", "far", "far:", "far:2", "far:-1", "near:0.1", "geometric:x", "equal:1", "far:nan"]
)
def test_bad_head_weights(text: str) -> None:
    with pytest.raises(UserError, match="it must be equal, far:W or geometric:R with a number from 0 to 1"):
        TrainConfig(head_weights=text)


@pytest.mark.parametrize("qk_norm", [False, True])
def test_decay_spares_the_norms(qk_norm: bool) -> None:
    model = ByteMTP(replace(SETTINGS.model, qk_norm=qk_norm))
    groups = Optimizers(model, SETTINGS.train).param_groups
    decay = {name: group["weight_decay"] for group in groups for name in group["param_names"]}
    assert decay.keys() == dict(model.named_parameters()).keys()
    assert {name for name, value in decay.items() if value == 0} == {name for name in decay if "norm" in name}


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


def test_compiling_is_for_long_runs() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert not pick_compile(settings(steps=10), cpu, 10_000).value
    assert pick_compile(settings(steps=10**9), cpu, 10_000).value
    assert pick_compile(settings(minutes=600), cpu, 10_000).value
    assert pick_compile(settings(steps=10), cuda, 10_000).value
    assert not pick_compile(settings(compile="false"), cuda, 10_000).value


def test_tensorboard(corpus: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    train(settings(steps=3, tensorboard=True), [corpus], tmp_path / "run", device="cpu")
    assert list((tmp_path / "run" / "tensorboard").glob("events.out.tfevents.*"))


def command_line(corpus: str, run: Path, *more: str) -> list[str]:
    flags = [
        "--model.dim=16", "--model.layers=2", "--model.attention_heads=2", "--model.ffn_dim=24", "--model.n_future=2",
        "--train.batch_size=4", "--train.seq_len=32", "--train.dtype=float32", "--train.sample_bytes=0",
        "--train.log_every=5", "--train.checkpoint_every=20", "--train.compile=false", "--device=cpu",
    ]  # fmt: skip
    return [corpus, "--out", str(run), *flags, *more]


def start_and_wait(arguments: list[str], run: Path, lines: int) -> subprocess.Popen[str]:
    """A trainer in a process of its own that has written that many lines of metrics."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "bytemtp.train", *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    path = run / "metrics.jsonl"
    while not (path.exists() and path.read_text().count("\n") >= lines):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_saves_and_the_resumed_run_is_the_same(corpus: str, tmp_path: Path, number: signal.Signals) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    process = start_and_wait(command_line(corpus, run, "--train.steps=100000"), run, lines=1)
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + number
    assert f"go on with: python -m bytemtp.train --out {run} --resume" in errors
    assert "Traceback" not in errors
    step = int(str(latest(run))[-8:])
    main(["--out", str(run), "--resume", f"--stop_after={step + 7}", "--device=cpu"])
    main(command_line(corpus, other, "--train.steps=100000", f"--stop_after={step + 7}"))
    assert weights(run) == weights(other)


def test_kill_9_at_any_moment_leaves_a_run_that_can_go_on(corpus: str, tmp_path: Path) -> None:
    """With a checkpoint at every step, most moments are moments of saving."""
    run, other = tmp_path / "run", tmp_path / "other"
    arguments = ["--train.steps=100000", "--train.checkpoint_every=1"]
    process = start_and_wait(command_line(corpus, run, *arguments), run, lines=1)
    time.sleep(random.random() / 10)
    process.kill()
    process.communicate()
    step = int(str(latest(run))[-8:])
    main(["--out", str(run), "--resume", f"--stop_after={step + 7}", "--device=cpu"])
    main(command_line(corpus, other, "--train.steps=100000", f"--stop_after={step + 7}"))
    assert weights(run) == weights(other)
    assert without_clock(run) == without_clock(other)


def test_the_command_reports(corpus: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    main([*command_line(corpus, run), "--train.steps=2", "--train.sample_bytes=5"])
    captured = capsys.readouterr()
    assert captured.out == ""
    for text in (
        "parameters: ",
        "attention: matmul (",
        "torch.compile: False (",
        "sample: ",
        "step-00000002",
        "next: ",
    ):
        assert text in captured.err
    assert "bpb" in captured.err


def test_rows_grow_and_a_cut_run_is_still_the_same(corpus: str, tmp_path: Path) -> None:
    """Rows of 8 bytes for 6 of 12 steps, then of 32, and some that repeat: cut before, at and after the change."""
    growing = settings(first_seq_len=8, grow_at=0.5, repeat_rows=0.3, repeat_until=0.8)
    train(growing, [corpus], tmp_path / "whole", device="cpu")
    for i, cut in enumerate([2, 6, 8]):
        train(growing, [corpus], tmp_path / "cut", device="cpu", stop_after=cut, resume=i > 0)
        assert load_model(tmp_path / "cut").trained_length == (32 if cut > 6 else 8)
    train(growing, [], tmp_path / "cut", device="cpu", resume=True)
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")
    assert weights(tmp_path / "cut") != weights_of(settings(), corpus, tmp_path / "plain")
    assert {line["bytes_seen"] // line["step"] for line in lines(tmp_path / "whole") if line["step"]} == {4 * 32}


@pytest.mark.parametrize(
    ("changes", "longer"),
    [
        ({"first_seq_len": 8, "grow_at": 0.5, "schedule": "wsd", "decay": 0.1}, {"steps": 24}),
        ({"head_schedule": "anneal", "schedule": "wsd", "decay": 0.1}, {"steps": 24}),
        ({"repeat_rows": 0.3, "repeat_until": 0.5, "schedule": "wsd", "decay": 0.1}, {"steps": 24}),
        ({"first_seq_len": 8, "grow_at": 0.01, "minutes": 0.01}, {"minutes": 0.02}),
    ],
    ids=["rows", "heads", "repeats", "minutes"],
)
def test_a_prolonged_run_keeps_long_rows_and_tells(
    corpus: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], longer: dict[str, Any]
) -> None:
    """12 steps are 9 of short rows where there are to be 24 in all; the rate is the same to step 9 in both."""
    short = settings(**changes)
    done = train(short, [corpus], tmp_path / "run", device="cpu", stop_after=0 if short.train.minutes else 8).state
    capsys.readouterr()
    plan = changed(short, **{f"train.{name}": value for name, value in longer.items()})
    state = train(plan, [], tmp_path / "run", device="cpu", resume=True, stop_after=done.step + 1).state
    assert (state.seq_len, state.step) == (32, done.step + 1)
    assert "followed the schedule of the old" in capsys.readouterr().err


def test_passes_over_the_data_are_counted_across_rows_that_grow(corpus: str, tmp_path: Path) -> None:
    plan = settings(first_seq_len=8, grow_at=0.5, steps=300, valid_every=0, checkpoint_every=300, log_every=1)
    train(plan, [corpus], tmp_path / "run", device="cpu", stop_after=200)
    train(plan, [], tmp_path / "run", device="cpu", resume=True)
    epochs = [line["epoch"] for line in lines(tmp_path / "run") if line["split"] == "train"]
    assert epochs == sorted(epochs) and epochs[149] > 0
    assert epochs[150] == epochs[149] and epochs[-1] > epochs[150]


def test_short_rows_are_validated_with_a_window_of_their_length(corpus: str, tmp_path: Path) -> None:
    """And are not compared with what the model can do once it has seen longer ones."""
    growing = settings(first_seq_len=8, grow_at=0.5, valid_every=3)
    train(growing, [corpus], tmp_path / "run", device="cpu")
    valid = {line["step"]: line["bpb_per_head"] for line in lines(tmp_path / "run") if line["split"] == "valid"}
    train(growing, [corpus], tmp_path / "short", device="cpu", stop_after=3)
    model = load_model(tmp_path / "short")
    rows = collect_valid(growing, [corpus], pin_memory=False)

    def bits(window: int) -> list[float]:
        layouts = [model.layout(len(x.ids), growing.train.seq_len, x.document_ids, window) for x in rows]
        losses = [evaluate(model, x.ids, x.document_ids, there) for x, there in zip(rows, layouts, strict=True)]
        return reduce(add, losses).bits_per_byte

    assert valid[3] == pytest.approx(bits(8)) and valid[3] != pytest.approx(bits(0))
    assert best(tmp_path / "short") is None and best(tmp_path / "run") is not None


def weights_of(plan: Settings, corpus: str, run: Path) -> str:
    train(plan, [corpus], run, device="cpu")
    return weights(run)


@pytest.mark.parametrize(("step", "second", "minutes", "expected"), [
    (0, 0.0, 0.0, 16), (69, 99.0, 0.0, 16), (70, 0.0, 0.0, 64), (90, 41.0, 1.0, 16), (9, 42.0, 1.0, 64),
])  # fmt: skip
def test_when_rows_grow(step: int, second: float, minutes: float, expected: int) -> None:
    plan = TrainConfig(steps=100, minutes=minutes, seq_len=64, first_seq_len=16, grow_at=0.7, warmup=50)
    assert seq_len_at(plan, step, second) == expected
    assert seq_len_at(replace(plan, steps=10, minutes=0.0), 20, 0.0) == 16  # still warming up: a longer run's rows
