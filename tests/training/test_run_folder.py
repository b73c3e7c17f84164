"""The run folder in a bad world: full disks, damaged files, two processes, signals.  Nothing is lost; a line tells."""

import errno
import io
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from bytemtp import report
from bytemtp.common import files
from bytemtp.common.errors import UserError
from bytemtp.common.runtime import log
from bytemtp.common.settings import changed, load_settings
from bytemtp.model import checkpoint
from bytemtp.model.checkpoint import latest, load_model
from bytemtp.training import prepare, progress, run_folder, trainer
from bytemtp.training.interrupts import Interrupts
from bytemtp.training.loss import evaluate
from bytemtp.training.optimizer import Optimizers
from bytemtp.training.progress import drop_lines_after
from bytemtp.training.run_folder import check_outside, locked
from bytemtp.training.trainer import train
from tests.training import runs

SETTINGS = changed(
    runs.settings(steps=4, log_every=1, valid_every=2, checkpoint_every=1), **{"data.valid_fraction": 0.3}
)
POINTER = Path("checkpoints") / "latest"
NEWEST = Path("checkpoints") / "step-00000003"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("corpus")
    for i in range(20):
        (folder / f"{i:02}.txt").write_text(f"document {i} of many, " * (i % 4 + 1))
    return str(folder)


@pytest.fixture(scope="module")
def whole(corpus: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed."""
    run = tmp_path_factory.mktemp("whole") / "run"
    train(SETTINGS, [corpus], run, device="cpu")
    return run


@pytest.fixture(scope="module")
def at_step_3(corpus: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("stopped") / "run"
    train(SETTINGS, [corpus], run, device="cpu", stop_after=3)
    return run


@pytest.fixture
def stopped(at_step_3: Path, tmp_path: Path) -> Path:
    """A run with checkpoints of steps 2 and 3 of 4."""
    return shutil.copytree(at_step_3, tmp_path / "run")


def go_on(run: Path, corpus: str, **values: Any) -> None:
    """Resume the run, or start it if it has not come so far."""
    begun = (run / "config.toml").exists()
    train(changed(SETTINGS, **values), [] if begun else [corpus], run, device="cpu", resume=begun)


def content(run: Path) -> tuple[list[bytes], list[tuple[int, str, float]]]:
    """Weights and optimiser at the end, and what metrics.jsonl says."""
    folder = latest(run)
    assert folder is not None
    names = ("model.safetensors", "optimizer.safetensors")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(folder / name).read_bytes() for name in names], [(x["step"], x["split"], x["loss"]) for x in lines]


def one_line(error: pytest.ExceptionInfo[UserError], text: str) -> bool:
    return text in str(error.value) and "\n" not in str(error.value)


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """No file of this process may grow beyond: what a full disk is like, in every library."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


@pytest.mark.parametrize("size", [0, 100, 1200, 2000, 20_000, 60_000, 100_000])
def test_a_file_that_cannot_grow(corpus: str, whole: Path, tmp_path: Path, size: int) -> None:
    """Lock, config.toml, weights, optimiser: whichever is too large, the run can go on when there is room."""
    with pytest.raises(UserError) as error, files_up_to(size):
        train(SETTINGS, [corpus], tmp_path / "run", device="cpu")
    assert one_line(error, str(tmp_path / "run"))
    assert "File too large" in str(error.value)
    go_on(tmp_path / "run", corpus)
    assert content(tmp_path / "run") == content(whole)


@pytest.mark.parametrize(
    "name", ["config.toml", "checkpoints/mine.pt", "tensorboard/events", "notes.txt", "report.png"]
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_that_is_no_run_is_left_alone(corpus: str, tmp_path: Path, name: str, overwrite: bool) -> None:
    mine = tmp_path / "mine" / name
    mine.parent.mkdir(parents=True)
    mine.write_text('title = "of another program"')
    with pytest.raises(UserError, match=rf"holds files that are not a run \({name.partition('/')[0]}\)"):
        train(SETTINGS, [corpus], tmp_path / "mine", device="cpu", overwrite=overwrite)
    assert mine.read_text() == 'title = "of another program"'


def test_standard_input_that_a_kill_left_behind_is_no_stranger(corpus: str, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/stdin.bytes.gz").write_bytes(b"")
    train(changed(SETTINGS, **{"train.steps": 1}), [corpus], tmp_path / "run", device="cpu")
    assert load_model(tmp_path / "run") and not (tmp_path / "run/stdin.bytes.gz").exists()


def test_the_picture_of_a_run_goes_with_it(corpus: str, tmp_path: Path) -> None:
    short = changed(SETTINGS, **{"train.steps": 1})
    train(short, [corpus], tmp_path / "run", device="cpu")
    (tmp_path / "run/report.png").touch()
    train(short, [corpus], tmp_path / "run", device="cpu", overwrite=True)
    assert not (tmp_path / "run/report.png").exists()


@pytest.mark.parametrize("path", ["-", "s3://bucket/key"])
def test_what_is_no_file_does_not_lie_in_the_run(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`train - --out .` was refused: a file "-" would lie there."""
    monkeypatch.chdir(tmp_path)
    check_outside(Path(), [path])
    with pytest.raises(UserError, match=r"a\.txt lies in --out \., which is to be written"):
        check_outside(Path(), ["a.txt"])


def test_a_run_that_lost_its_pointer_is_not_replaced_unasked(corpus: str, stopped: Path) -> None:
    (stopped / POINTER).unlink()
    (stopped / "metrics.jsonl").unlink()
    with pytest.raises(UserError, match="already holds a run"):
        train(SETTINGS, [corpus], stopped, device="cpu")
    train(SETTINGS, [corpus], stopped, device="cpu", overwrite=True)


def test_metrics_that_cannot_grow(corpus: str, whole: Path, stopped: Path) -> None:
    """It is the last line that is cut, and the cut line goes on resume."""
    size = (stopped / "metrics.jsonl").stat().st_size + 100
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "save", lambda run, *_: run)  # only metrics.jsonl is written
        patch.setattr(prepare, "write_output", lambda *_: None)
        with pytest.raises(UserError) as error, files_up_to(size):
            go_on(stopped, corpus)
    assert one_line(error, f"cannot write {stopped / 'metrics.jsonl'}: File too large; what is there is kept")
    assert (stopped / "metrics.jsonl").stat().st_size == size
    go_on(stopped, corpus)
    assert content(stopped) == content(whole)


def problem(work: Callable[[], None]) -> str:
    try:
        work()
    except UserError as error:
        return str(error)
    return ""


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_disk_that_is_full_at_any_moment(corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is written is synced: each sync in turn fails, and all after it."""
    real, failed, steps = files.sync, True, {"train.steps": 2, "train.warmup": 0}
    go_on(tmp_path / "whole", corpus, **steps)
    for allowed in range(0, 100, 2):
        left = iter(range(allowed))

        def sync(path: Path, left: Iterator[int] = left) -> None:
            full() if next(left, None) is None else real(path)

        for module in (files, run_folder):
            monkeypatch.setattr(module, "sync", sync)
        run = tmp_path / str(allowed)
        told = problem(lambda run=run: go_on(run, corpus, **steps))
        failed = bool(told)
        assert not failed or re.fullmatch(f"[^\n]*{run}[^\n]*No space left on device[^\n]*", told)
        monkeypatch.undo()
        go_on(run, corpus, **steps)
        assert content(run) == content(tmp_path / "whole")
        if not failed:
            break
    assert not failed and allowed > 15


@pytest.mark.parametrize(
    ("place", "name"),
    [
        (progress, "append_json_line"),
        (progress, "write_file"),
        (progress, "open_board"),
        (prepare, "clear"),
        (prepare, "remove_partial"),
        (run_folder, "spool_standard_input"),
        (checkpoint, "write_file"),
        (checkpoint, "_prune"),
    ],
)
def test_each_place_that_writes_tells_in_one_line(
    corpus: str, stopped: Path, monkeypatch: pytest.MonkeyPatch, place: Any, name: str
) -> None:
    with (stopped / "metrics.jsonl").open("a") as file:
        file.write('{"step')  # to be dropped, and so written
    monkeypatch.setattr(place, name, full)
    options: dict[str, Any] = {"resume": True}
    if name in ("clear", "spool_standard_input"):
        options = {"overwrite": True}
        monkeypatch.setattr(sys, "stdin", io.StringIO("text"))
    paths = {"clear": [corpus], "spool_standard_input": ["-"]}.get(name, [])
    board = changed(SETTINGS, **{"train.tensorboard": name == "open_board"})
    with pytest.raises(UserError, match=r"^cannot write ") as error:
        train(board, paths, stopped, device="cpu", **options)
    assert one_line(error, "No space left on device") and one_line(error, str(stopped))


def test_a_place_where_nothing_can_be_written(corpus: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for run in (tmp_path / "file" / "run", tmp_path / ("x" * 300)):
        with pytest.raises(UserError, match=r"^cannot write ") as error:
            train(SETTINGS, [corpus], run, device="cpu")
        assert one_line(error, str(run))


DAMAGES: dict[str, Callable[[bytes], bytes | None]] = {
    "missing": lambda data: None,
    "empty": lambda data: b"",
    "cut": lambda data: data[: len(data) // 2],
    "zeros": lambda data: bytes(len(data)),
    "noise": lambda data: b"\xff\xfe\x00" * 40,
    "elsewhere": lambda data: b"step-00000099\n",
}
DAMAGED = [
    *((POINTER, damage) for damage in DAMAGES),
    *((NEWEST / "model.safetensors", damage) for damage in DAMAGES),
    (NEWEST / "optimizer.safetensors", "cut"),
    (NEWEST / "rng.safetensors", "empty"),
    (NEWEST / "state.json", "cut"),
    (NEWEST / "state.json", "zeros"),
]


@pytest.mark.parametrize(("path", "damage"), DAMAGED, ids=str)
def test_the_newest_whole_checkpoint_is_taken(
    corpus: str, whole: Path, stopped: Path, path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the pointer is damaged that is the newest, where a file of the newest is, the one before it."""
    data = DAMAGES[damage]((stopped / path).read_bytes())
    (stopped / path).unlink()
    if data is not None:
        (stopped / path).write_bytes(data)
    step = 3 if path == POINTER else 2
    capsys.readouterr()
    go_on(stopped, corpus)
    told = f"{stopped / POINTER} does not name a whole checkpoint; going on with {stopped / 'checkpoints'}/step-0000000"
    assert f"{told}{step}," in capsys.readouterr().err
    assert content(stopped) == content(whole)


@pytest.mark.parametrize("path", [POINTER, NEWEST / "model.safetensors"], ids=str)
def test_a_model_is_loaded_from_the_newest_whole_checkpoint(
    stopped: Path, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    step = stopped / "checkpoints" / ("step-00000003" if path == POINTER else "step-00000002")
    expected = load_file(step / "model.safetensors")
    (stopped / path).write_bytes(b"")
    capsys.readouterr()
    assert torch.equal(load_model(stopped).embed.weight, expected["embed.weight"])
    assert f"going on with {step}" in capsys.readouterr().err


def test_only_the_weights_are_needed_to_load_a_model(stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As in a run folder that was made small to be given away."""
    for name in ("optimizer.safetensors", "rng.safetensors", "state.json"):
        (stopped / NEWEST / name).unlink()
    capsys.readouterr()
    expected = load_file(stopped / NEWEST / "model.safetensors")
    assert torch.equal(load_model(stopped).embed.weight, expected["embed.weight"])
    assert "going on" not in capsys.readouterr().err


def test_without_any_whole_checkpoint_the_named_one_is_told(corpus: str, stopped: Path) -> None:
    for folder in (stopped / "checkpoints").glob("step-*"):
        (folder / "optimizer.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=str(stopped / NEWEST / "optimizer.safetensors")) as error:
        go_on(stopped, corpus)
    assert one_line(error, "is damaged")


def test_a_pointer_of_the_user_that_names_nothing(stopped: Path) -> None:
    (stopped / "checkpoints" / "best").write_bytes(b"")
    with pytest.raises(UserError, match=r"checkpoints/best names no folder beside it") as error:
        load_model(stopped / "checkpoints" / "best")
    assert one_line(error, "step folder")


JUNK = st.one_of(
    st.binary(max_size=20),
    st.sampled_from([bytes(9), b"5", b"[]", b"null", b'{"step": null}', b'{"step": Infinity}']),
).filter(lambda data: b"\n" not in data)  # fmt: skip


@given(junk=st.lists(st.tuples(st.integers(0, 4), JUNK), max_size=4), cut=st.binary(max_size=9), step=st.integers(0, 5))
def test_good_lines_of_metrics_stay(
    tmp_path_factory: pytest.TempPathFactory, junk: list[tuple[int, bytes]], cut: bytes, step: int
) -> None:
    good = [b'{"step": %d, "split": "train"}' % i for i in range(4)]
    lines = list(good)
    for place, data in junk:
        lines.insert(place, data)
    path = tmp_path_factory.mktemp("metrics") / "metrics.jsonl"
    path.write_bytes(b"".join(line + b"\n" for line in lines) + cut.replace(b"\n", b""))
    drop_lines_after(path, step)
    assert path.read_bytes() == b"".join(line + b"\n" for line in good[: step + 1])


@pytest.mark.parametrize("junk", [b"\0" * 50, b"\xff\xfe\n", b"{\n", b"5\n", b"{}\n"])
def test_damaged_metrics_are_told_and_mended(
    corpus: str, whole: Path, stopped: Path, junk: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    path = stopped / "metrics.jsonl"
    first, rest = path.read_bytes().split(b"\n", 1)
    path.write_bytes(first + b"\n" + junk + rest)
    with pytest.raises(UserError, match=f"^{path}, line 2 ") as error:
        report.main([str(stopped)])
    assert one_line(error, "line 2")
    capsys.readouterr()
    go_on(stopped, corpus)
    assert ("1 damaged lines are left out" in capsys.readouterr().err) == junk.endswith(b"\n")
    assert content(stopped) == content(whole)
    report.main([str(stopped)])


def test_metrics_are_json_for_strict_readers(whole: Path, tmp_path: Path) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(name)

    for line in (whole / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=refuse)
    with pytest.raises(ValueError, match="not JSON compliant"):
        progress.append_json_line(tmp_path / "other.jsonl", {"loss": torch.tensor([torch.nan]).item()})


def test_a_config_without_a_corpus(corpus: str, stopped: Path) -> None:
    path = stopped / "config.toml"
    path.write_text(re.sub(r"(?s)\[run\].*", "", path.read_text()))
    with pytest.raises(UserError, match=r"config\.toml is damaged: it has no paths under .run.; name PATH again"):
        go_on(stopped, corpus)
    train(SETTINGS, [corpus], stopped, device="cpu", resume=True)


def test_a_run_in_use_is_left_alone(corpus: str, stopped: Path) -> None:
    before = {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}
    with locked(stopped):
        for options in ({"resume": True}, {"overwrite": True}):
            with pytest.raises(UserError, match=f"is in use by process {os.getpid()} on ") as error:
                train(SETTINGS, [] if "resume" in options else [corpus], stopped, device="cpu", **options)
            assert one_line(error, "stop it, or choose another --out")
    before[stopped / "lock"] = (stopped / "lock").read_bytes()
    assert {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()} == before
    go_on(stopped, corpus)


def test_the_lock_ends_with_its_process(tmp_path: Path) -> None:
    code = f"""
import pathlib, time
from bytemtp.training.run_folder import check_outside, locked
with locked(pathlib.Path({str(tmp_path)!r})):
    print(flush=True)
    time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline()
    with pytest.raises(UserError, match=f"in use by process {process.pid} on "), locked(tmp_path):
        pass
    process.kill()
    process.communicate()
    with locked(tmp_path):
        pass


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    with locked(tmp_path):
        assert "cannot be locked (No locks available)" in capsys.readouterr().err


def test_what_a_run_starts_from_is_named_absolutely(
    corpus: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From another folder, before the first checkpoint, it is still found."""
    monkeypatch.chdir(whole.parent)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(progress, "append_json_line", full)
        with pytest.raises(UserError, match="No space left"):
            train(SETTINGS, [corpus], tmp_path / "run", device="cpu", init=Path("run"))
    assert load_settings(tmp_path / "run" / "config.toml")[1]["init"] == str(latest(whole))
    monkeypatch.chdir(tmp_path)
    train(SETTINGS, [], Path("run"), device="cpu", resume=True)
    train(SETTINGS, [corpus], Path("other"), device="cpu", init=whole)
    assert content(Path("run")) == content(Path("other"))


@pytest.mark.parametrize(("what", "value"), [("weights", torch.nan), ("moments", torch.inf)])
@pytest.mark.parametrize(("at", "fraction"), [(3, 0.3), (4, 0.3), (4, 0.0)])
def test_spoilt_weights_are_never_saved(
    corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int, fraction: float, what: str, value: float
) -> None:
    """Also those of the last step, after which no loss is computed, and also without validation."""
    step, done = Optimizers.step, 0

    def spoilt(self: Optimizers) -> None:
        nonlocal done
        step(self)
        done += 1
        if done == at:
            _, weights, state, _ = next(iter(self.states()))
            (weights.data if what == "weights" else state["exp_avg_sq"]).view(-1)[3] = value

    monkeypatch.setattr(Optimizers, "step", spoilt)
    settings = changed(SETTINGS, **{"data.valid_fraction": fraction, "train.valid_every": 0, "train.sample_bytes": 8})
    with pytest.raises(
        UserError, match=f"not finite after step {at}, and not saved; the last good .*{at - 1};"
    ) as error:
        train(settings, [corpus], tmp_path / "run", device="cpu", sample=lambda model: pytest.fail("sampled"))
    assert one_line(error, "lower train.lr")
    model = load_model(tmp_path / "run")
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_a_validation_that_is_not_finite_ends_the_run(
    corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoilt(*arguments: Any) -> Any:
        losses = evaluate(*arguments)
        return replace(losses, nats=losses.nats * torch.tensor([1.0, torch.nan]))

    monkeypatch.setattr(trainer, "evaluate", spoilt)
    with pytest.raises(UserError, match=r"validation after step 2 has loss nan; the last good .*step-00000001;"):
        train(SETTINGS, [corpus], tmp_path / "run", device="cpu")
    assert '"valid"' not in (tmp_path / "run" / "metrics.jsonl").read_text()


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1])
def test_a_notice_may_come_twice(number: signal.Signals) -> None:
    """Shell and terminal both send SIGHUP; what is being saved must not be killed by the second."""
    before = signal.getsignal(number)
    with Interrupts() as interrupts:
        for _ in range(2):
            os.kill(os.getpid(), number)
        assert interrupts.signal == number
    assert signal.getsignal(number) == before


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1])
def test_what_is_ignored_stays_so(number: signal.Signals) -> None:
    """`nohup` ignores SIGHUP."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with Interrupts() as interrupts:
            os.kill(os.getpid(), number)
            assert not interrupts.signal
    finally:
        signal.signal(number, before)


def test_a_log_that_nobody_can_read_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The terminal has been closed: its signal still has to save the run."""
    reading, writing = os.pipe()
    os.close(reading)
    with monkeypatch.context() as patch, open(writing, "w", buffering=1) as broken:
        patch.setattr(sys, "stderr", broken)
        log("lost")
        os.dup2(os.open(os.devnull, os.O_WRONLY), writing)
