"""The trainer: the same weights however a run was cut, runs that survive kills, and files that say what happened."""

import gzip
import io
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from bytemtp.common.errors import UserError
from bytemtp.common.settings import TrainConfig, changed, load_settings
from bytemtp.model.checkpoint import best, latest, load_model, load_state
from bytemtp.model.model import ByteMTP
from bytemtp.train import main, read_command
from bytemtp.training.optimizer import learning_rate
from bytemtp.training.progress import drop_lines_after
from bytemtp.training.trainer import TrainOutcome, train
from tests.training.runs import SETTINGS, lines, settings, steps_of, weights, without_clock

KEYS = {
    "step", "split", "loss", "bpb", "bpb_per_head", "bpb_with_ends", "lr", "grad_norm", "bytes_seen", "epoch",
    "bytes_per_s", "elapsed_s", "peak_memory_bytes",
}  # fmt: skip


def generators(run: Path) -> bytes:
    """State of PyTorch's random numbers at the end."""
    folder = latest(run)
    assert folder is not None
    return (folder / "rng.safetensors").read_bytes()


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


def test_a_longer_run_equals_one_of_that_length_until_its_rate_falls(corpus: str, tmp_path: Path) -> None:
    """Of 20 steps 8 are done, then it is resumed for 30: so far both would have done the same."""
    train(settings(steps=20), [corpus], tmp_path / "a", device="cpu", stop_after=8)
    train(settings(steps=30), [], tmp_path / "a", device="cpu", resume=True)
    train(settings(steps=30), [corpus], tmp_path / "b", device="cpu")
    assert weights(tmp_path / "a") == weights(tmp_path / "b")


@pytest.mark.parametrize(("stop_after", "warns"), [(0, True), (8, False)])
def test_a_changed_schedule_is_told(
    corpus: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], stop_after: int, warns: bool
) -> None:
    train(settings(steps=20), [corpus], tmp_path / "run", device="cpu", stop_after=stop_after)
    capsys.readouterr()
    train(settings(steps=30), [], tmp_path / "run", device="cpu", resume=True)
    assert ("followed the schedule of the old" in capsys.readouterr().err) == warns


def test_nothing_is_told_of_waiting_where_all_heads_are_on_head_1s_path(
    corpus: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At step 8 of 20 others' far heads would have begun; of 30 they would not."""
    plan = changed(settings(steps=20, far_from=0.35, decay=0.1), **{"model.topology": "anticausal"})
    train(plan, [corpus], tmp_path / "run", device="cpu", stop_after=8)
    capsys.readouterr()
    train(changed(plan, **{"train.steps": 30}), [], tmp_path / "run", device="cpu", resume=True)
    assert "followed the schedule of the old" not in capsys.readouterr().err


def test_a_run_that_fewer_steps_end_is_validated(corpus: str, tmp_path: Path) -> None:
    """Its rows stay as short as it has learned them, and it is validated once."""
    plan = settings(steps=12, first_seq_len=8, grow_at=0.5, valid_every=0)
    train(plan, [corpus], tmp_path / "run", device="cpu", stop_after=4)
    for _ in range(2):
        assert train(changed(plan, **{"train.steps": 4}), [], tmp_path / "run", device="cpu", resume=True).finished
    assert [line["step"] for line in lines(tmp_path / "run") if line["split"] == "valid"] == [4]
    assert load_model(tmp_path / "run").trained_length == 8


def test_the_best_of_a_run_that_fewer_steps_end_is_kept(corpus: str, tmp_path: Path) -> None:
    plan = settings(steps=12, valid_every=0)
    train(plan, [corpus], tmp_path / "run", device="cpu", stop_after=4)
    ended = train(changed(plan, **{"train.steps": 4}), [], tmp_path / "run", device="cpu", resume=True)
    folder = best(tmp_path / "run")
    assert folder is not None and ended.valid is not None
    assert load_state(folder).best_bpb == pytest.approx(ended.valid.bits_per_byte[0])


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
    with pytest.raises(UserError, match=r"data.text_field is 'auto'"):  # a name like any other
        train(changed(SETTINGS, **{"data.text_field": "auto"}), [], run, device="cpu", resume=True)
    train(settings(steps=3, log_every=1, keep_checkpoints=1, dtype="auto"), [], run, device="cpu", resume=True)
    saved, _ = load_settings(run / "config.toml")
    assert (saved.train.steps, saved.train.log_every, saved.train.dtype) == (3, 1, "float32")


@pytest.mark.compiled
def test_going_on_without_compilation_is_said_to_round_otherwise(
    corpus: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(settings(steps=2, compile="true"), [corpus], tmp_path / "run", device="cpu", stop_after=1)
    train(settings(steps=2, compile="false"), [], tmp_path / "run", device="cpu", resume=True)
    assert "warning: the run had compiled True and goes on with False: not bit for bit" in capsys.readouterr().err


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
        assert line.keys() == (KEYS | {"accepted_per_head"} if line["split"] == "valid" else KEYS)
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
    train(settings(steps=2), [], tmp_path / "run", device="cpu", resume=True)  # more is done than there is to do
    assert "| 3/3 step [" in shown and "| 2/2 step [" in terminal.getvalue()
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


@pytest.mark.parametrize(
    "changes",
    [
        {"train.optimizer": "muon", "train.schedule": "wsd"},
        {"train.head_weights": "geometric:0.5"},
        {"train.optimizer": "muon", "model.qk_norm": True},
        {"train.optimizer": "muon", "model.topology": "parallel", "train.far_from": 0.7},
        {"model.transitions": True, "train.tv_from": 0.6},
    ],
)
def test_resumed_is_the_same_run_with_other_recipes(corpus: str, tmp_path: Path, changes: dict[str, Any]) -> None:
    train(changed(SETTINGS, **changes), [corpus], tmp_path / "whole", device="cpu")
    train(changed(SETTINGS, **changes), [corpus], tmp_path / "cut", device="cpu", stop_after=5)
    train(changed(SETTINGS, **changes), [], tmp_path / "cut", device="cpu", resume=True)
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the memory of who starts a program may count")
def test_the_peak_is_this_programs_own() -> None:
    """Not that of the one that started it, which the kernel's ru_maxrss keeps."""
    held = bytearray(1 << 30)
    held[:: 1 << 12] = bytes(1) * (1 << 18)
    code = "import torch; from bytemtp.training.progress import *; print(peak_memory_bytes(torch.device('cpu')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert len(held) > int(done.stdout) > 10**7


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
