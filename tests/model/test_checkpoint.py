"""Checkpoints: complete or absent, whatever happens; exact when loaded; and clear about damage."""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from safetensors.torch import load_file, save_file

from bytemtp.common import files
from bytemtp.common.errors import UserError
from bytemtp.common.files import check_output, write_file, write_output
from bytemtp.common.settings import ModelConfig, Settings, to_toml
from bytemtp.model import checkpoint
from bytemtp.model.checkpoint import (
    TrainState,
    best,
    latest,
    load_model,
    load_training,
    save,
    settings_of,
    step_folder,
)
from bytemtp.model.model import ByteMTP
from bytemtp.training.loss import backward
from bytemtp.training.optimizer import Optimizers
from bytemtp.training.run_folder import claim, clear, remove_partial

MODEL = ModelConfig(dim=16, layers=2, attention_heads=2, ffn_dim=24, n_future=2, topology="parallel")
SETTINGS = Settings(MODEL)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    write_file(folder / "config.toml", to_toml(SETTINGS, {}))
    return folder


def trained(steps: int = 2, name: Literal["adamw", "muon"] = "adamw") -> tuple[ByteMTP, Optimizers]:
    """A model and an optimiser that have done some steps, so that all of their state differs from the start."""
    model = ByteMTP(MODEL)
    optimizer = Optimizers(model, replace(SETTINGS.train, optimizer=name))
    for step in range(steps):
        ids = torch.arange(step, step + 20).repeat(2, 1)
        backward(model, ids, torch.zeros_like(ids, dtype=torch.int32))
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_everything_comes_back(run: Path, name: Literal["adamw", "muon"]) -> None:
    model, optimizer = trained(name=name)
    state = TrainState(7, 99, 1.5, {"epoch": 3}, 0.1, {"nats": [0.1 + 0.2], "counts": [3]}, 5, 1.25)
    torch.manual_seed(5)
    folder = save(run, state, model, optimizer, keep=1)
    expected_draw = torch.rand(3)

    other, other_optimizer = trained(steps=1, name=name)
    assert load_training(folder, other, other_optimizer) == state
    assert torch.equal(torch.rand(3), expected_draw)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name])
    for old, new in zip(optimizer.states(), other_optimizer.states(), strict=True):
        assert old[0] == new[0] and old[2].keys() == new[2].keys() == set(old[3])
        for key, tensor in old[2].items():
            assert torch.equal(tensor, new[2][key])


def test_load_model_takes_a_run_or_a_step(run: Path) -> None:
    model, optimizer = trained()
    folder = save(run, TrainState(step=1), model, optimizer, keep=2)
    save(run, TrainState(step=2), *trained(steps=3), keep=2)
    assert torch.equal(load_model(folder).embed.weight, model.embed.weight)
    newest = load_model(run)
    assert not torch.equal(newest.embed.weight, model.embed.weight)
    assert not newest.training


def test_a_fresh_optimiser_can_be_saved(run: Path) -> None:
    folder = save(run, TrainState(), *trained(steps=0), keep=1)
    assert load_training(folder, *trained(steps=0)) == TrainState()


def test_only_the_newest_are_kept(run: Path) -> None:
    for keep, expected in [(3, [1, 2, 3, 4, 5][-3:]), (1, [6]), (10, [6, 7])]:
        steps = {3: range(1, 6), 1: range(6, 7), 10: range(7, 8)}[keep]
        for step in steps:
            save(run, TrainState(step=step), *trained(), keep=keep)
        names = sorted(path.name for path in (run / "checkpoints").iterdir() if path.is_dir())
        assert names == [f"step-{step:08d}" for step in expected]


def test_the_best_is_kept_and_can_be_loaded(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """RUN is its newest checkpoint, and a line tells of a better one; checkpoints/best is the best in validation."""
    models = {step: trained(steps=step) for step in range(1, 6)}
    for step, (best_step, bits) in enumerate([(0, None), (2, 3.0), (2, 3.0), (2, 3.0), (5, 2.5)], start=1):
        save(run, TrainState(step=step, best_step=best_step, best_bpb=bits), *models[step], keep=1)
        capsys.readouterr()
        assert torch.equal(load_model(run).embed.weight, models[step][0].embed.weight)
        told = f"taking step-{step:08d}, the newest; validation was best at step-00000002: {run}/checkpoints/best\n"
        assert capsys.readouterr().err == (told if step in (3, 4) else "")
        names = {path.name for path in (run / "checkpoints").glob("step-*")}
        if bits is not None:
            pointer = run / "checkpoints" / "best"
            assert names == {f"step-{step:08d}", f"step-{best_step:08d}"}
            assert best(run) == step_folder(run, best_step)
            assert torch.equal(load_model(pointer).embed.weight, models[best_step][0].embed.weight)
            assert load_model(pointer).trained_length == SETTINGS.train.seq_len
            assert settings_of(pointer) == settings_of(run / "checkpoints" / "latest") == SETTINGS
            assert capsys.readouterr().err == ""
    assert names == {"step-00000005"}


class Killed(BaseException):
    """Stands for the end of the process: nothing catches it."""


def writes_of(run: Path, monkeypatch: pytest.MonkeyPatch, allowed: int) -> Iterator[None]:
    """Kill the process at the first sync beyond `allowed`: between any two writes, there is a sync."""
    real, done = files.sync, 0

    def sync(path: Path) -> None:
        nonlocal done
        done += 1
        if done > allowed:
            raise Killed
        real(path)

    monkeypatch.setattr(files, "sync", sync)
    yield
    monkeypatch.undo()


def test_a_kill_at_any_moment_leaves_a_complete_checkpoint(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = trained(steps=1), trained(steps=2)
    save(run, TrainState(step=1), *first, keep=1)
    outcomes = set()
    for allowed in range(20):
        killed = False
        for _ in writes_of(run, monkeypatch, allowed):
            try:
                save(run, TrainState(step=2), *second, keep=1)
            except Killed:
                killed = True
        step = json.loads((latest(run) / "state.json").read_text())["step"]  # type: ignore[operator]
        expected = first if step == 1 else second
        assert torch.equal(load_model(run).embed.weight, expected[0].embed.weight)
        outcomes.add(step)
        if not killed:
            break
        remove_partial(run)
    assert not killed
    assert outcomes == {1, 2}


def test_a_kill_at_any_moment_leaves_a_complete_best(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`best` may be one step behind `latest`; the next save puts that right, even of the same step."""
    first, second = trained(steps=1), trained(steps=2)
    save(run, TrainState(step=1, best_step=1, best_bpb=3.0), *first, keep=1)
    outcomes = set()
    for allowed in range(20):
        killed = False
        for _ in writes_of(run, monkeypatch, allowed):
            try:
                save(run, TrainState(step=2, best_step=2, best_bpb=2.0), *second, keep=1)
            except Killed:
                killed = True
        pointed = best(run)
        assert pointed is not None
        expected = first if pointed == step_folder(run, 1) else second
        assert torch.equal(load_model(run / "checkpoints" / "best").embed.weight, expected[0].embed.weight)
        newest = latest(run)
        assert newest is not None
        outcomes.add((newest.name[-1], pointed.name[-1]))
        remove_partial(run)
        before = trained(steps=1)
        save(run, load_training(newest, *before), *before, keep=1)
        assert best(run) == newest
        if not killed:
            break
    assert not killed
    assert outcomes == {("1", "1"), ("2", "1"), ("2", "2")}


def test_what_a_kill_left_behind_goes(run: Path) -> None:
    save(run, TrainState(step=1), *trained(), keep=1)
    left = run / "checkpoints" / "step-00000002.partial"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    (run / "config.toml.partial").write_text("half")
    remove_partial(run)
    assert not left.exists()
    assert load_model(run)
    assert sorted(path.name for path in run.iterdir()) == ["checkpoints", "config.toml"]


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "rng.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "empty"])
def test_damage_is_named(run: Path, name: str, damage: str) -> None:
    folder = save(run, TrainState(step=1), *trained(), keep=1)
    path = folder / name
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"")
    with pytest.raises(UserError, match=str(path)) as error:
        load_training(folder, *trained())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["[]", "{}", '{"step": "3"}', "[" * 5000])
def test_a_state_without_a_step_is_damaged(run: Path, text: str) -> None:
    older = save(run, TrainState(step=1), *trained(), keep=2)
    folder = save(run, TrainState(step=2), *trained(), keep=2)
    (folder / "state.json").write_text(text)
    with pytest.raises(UserError, match=r"state\.json is damaged"):
        load_model(run)
    assert latest(run) == older


def test_a_state_of_a_later_version_is_not_passed_over(run: Path) -> None:
    save(run, TrainState(step=1), *trained(), keep=2)
    folder = save(run, TrainState(step=2), *trained(), keep=2)
    (folder / "state.json").write_text('{"step": 2, "of_a_later_version": 1}')
    assert latest(run) == folder
    with pytest.raises(UserError, match=r"state\.json is damaged.*of_a_later_version"):
        load_model(run)


def test_generators_that_are_none_are_damaged(run: Path, spoil: Callable[..., None]) -> None:
    folder = save(run, TrainState(step=1), *trained(), keep=1)
    spoil(folder / "rng.safetensors", "lack", "cpu", "other")
    with pytest.raises(UserError, match=r"rng\.safetensors is damaged"):
        load_training(folder, *trained())


@pytest.mark.parametrize("change", ["shape", "lack", "extra"])
def test_weights_of_another_model_are_refused(run: Path, change: str, spoil: Callable[..., None]) -> None:
    path = save(run, TrainState(step=1), *trained(), keep=1) / "model.safetensors"
    spoil(path, change, "norm.weight", "other")
    with pytest.raises(UserError, match=f"{path}.*{'other' if change == 'extra' else 'norm.weight'}"):
        load_model(run)


def test_another_vocabulary_is_named(run: Path) -> None:
    path = save(run, TrainState(step=1), *trained(), keep=1) / "model.safetensors"
    weights = {name: tensor.clone() for name, tensor in load_file(path).items()}
    for size in (256, 0):
        save_file(weights | {"embed.weight": torch.zeros(size, MODEL.dim)}, path)
        with pytest.raises(UserError, match=f"^{path}: embed.weight has {size} rows, not the 264 of our vocabulary"):
            load_model(run)


@pytest.mark.parametrize("name", ["model.safetensors", "latest", "config.toml"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "empty", "noise", "folder"])
def test_whatever_is_wrong_with_a_file_load_model_names_it(run: Path, name: str, damage: str) -> None:
    folder = save(run, TrainState(step=1), *trained(), keep=1)
    path = {"model.safetensors": folder, "latest": folder.parent, "config.toml": run}[name] / name
    content = path.read_bytes()
    path.unlink()
    match damage:
        case "truncated":
            # A text file inside a line: the first lines of a config.toml are a valid one.
            path.write_bytes(content[: content.rindex(b" =") if name == "config.toml" else len(content) // 2])
        case "empty":
            path.touch()
        case "noise":
            path.write_bytes(b"\xff\xfe\x00" * 40)
        case "folder":
            path.mkdir()
    if name == "latest":
        load_model(run)  # the newest that is whole: tests/training/test_run_folder.py
        return
    with pytest.raises(UserError) as error:
        load_model(run)
    assert str(run) in str(error.value) and "\n" not in str(error.value)
    assert name in str(error.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("dim = 16", "dim = 24", "model.safetensors: embed.weight has shape .264, 16., the model .264, 24."),
        ("layers = 2", "layers = 3", "model.safetensors lacks .*config.toml of the run does not describe"),
        ("n_future = 2", "n_future = 99", "config.toml: model.n_future is 99; it must be from 1 to 32"),
        ("n_future = 2", 'n_future = "two"', "config.toml: model.n_future is 'two'; it must be of type int"),
        ("n_future = 2", "n_futrue = 2", "unknown setting 'model.n_futrue' in .*config.toml; did you mean"),
    ],
)
def test_settings_that_do_not_fit(run: Path, old: str, new: str, message: str) -> None:
    save(run, TrainState(step=1), *trained(), keep=1)
    path = run / "config.toml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(UserError, match=message) as error:
        load_model(run)
    assert str(run) in str(error.value)


def test_settings_of_a_run_and_of_its_steps(run: Path, tmp_path: Path) -> None:
    step = save(run, TrainState(step=1), *trained(), keep=1)
    assert settings_of(run) == settings_of(step) == settings_of(str(step)) == SETTINGS
    (run / "checkpoints" / "folder").mkdir()
    with pytest.raises(UserError, match=r"folder is not a run: there is no .*folder/config\.toml"):
        settings_of(run / "checkpoints" / "folder")  # a settings file two levels up is not enough


def test_an_output_is_tried_without_a_trace(tmp_path: Path) -> None:
    path = tmp_path / "out"
    check_output(path)
    assert not list(tmp_path.iterdir())
    write_output(path, "old")
    check_output(path)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    check_output(None)
    for wrong, reason in ((tmp_path, "Is a directory"), (tmp_path / "no" / "x", "No such file"), (path / "x", "Not a")):
        for attempt in (check_output, lambda wrong: write_output(wrong, "new", "; kept")):
            with pytest.raises(UserError, match=f"^cannot write {wrong}: {reason}[^\n]*$"):
                attempt(wrong)


def test_links_pipes_and_devices_are_written_through(tmp_path: Path) -> None:
    """`--json /dev/stdout`: replacing it by a file would break it for every process that comes after."""
    target, link, pipe = tmp_path / "target", tmp_path / "link", tmp_path / "pipe"
    target.write_text("old")
    link.symlink_to(target)
    check_output(link)
    write_output(link, "new")
    assert link.is_symlink() and target.read_text() == "new"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    check_output(pipe)
    write_output(pipe, "through")
    assert os.read(reader, 100) == b"through" and pipe.is_fifo()
    os.close(reader)


def test_a_full_disk_is_one_line_and_keeps_the_last(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save(run, TrainState(step=1), *trained(), keep=1)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(UserError, match=f"No space left.*last good checkpoint is {folder}"):
        save(run, TrainState(step=2), *trained(), keep=1)
    assert [path.name for path in (run / "checkpoints").iterdir() if path.is_dir()] == [folder.name]


def test_no_best_yet(run: Path) -> None:
    save(run, TrainState(step=1), *trained(), keep=1)
    for use in (load_model, settings_of):
        with pytest.raises(UserError, match="checkpoints/best does not exist: the run has not been validated"):
            use(run / "checkpoints" / "best")


def test_a_run_may_be_called_best(run: Path) -> None:
    """Also beside something called `latest`, as a checkpoint is."""
    save(run, TrainState(step=1), *trained(), keep=1)
    run.rename(run.with_name("best"))
    run.with_name("latest").mkdir()
    load_model(run.with_name("best"))


def test_no_checkpoint_yet(run: Path) -> None:
    with pytest.raises(UserError, match="holds no checkpoint"):
        load_model(run)


def test_a_folder_that_is_no_run_is_never_touched(tmp_path: Path) -> None:
    """`--overwrite` with a mistyped `--out` must not cost anybody their files."""
    (tmp_path / "thesis.tex").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(UserError, match=r"thesis\.tex"):
            claim(tmp_path, resume=False, overwrite=overwrite)


def test_clear_deletes_the_run_and_nothing_else(run: Path) -> None:
    save(run, TrainState(step=1), *trained(), keep=1)
    (run / "metrics.jsonl").write_text("")
    (run / "notes.txt").write_text("mine")
    clear(run)
    assert [path.name for path in run.iterdir()] == ["notes.txt"]


def test_claims(run: Path, tmp_path: Path) -> None:
    claim(run, resume=False, overwrite=False)  # it has no results yet
    save(run, TrainState(step=1), *trained(), keep=1)
    with pytest.raises(UserError, match="already holds a run; continue it with --resume"):
        claim(run, resume=False, overwrite=False)
    claim(run, resume=True, overwrite=False)
    claim(run, resume=False, overwrite=True)
    with pytest.raises(UserError, match="exclude each other"):
        claim(run, resume=True, overwrite=True)
    with pytest.raises(UserError, match="nothing to resume"):
        claim(tmp_path / "new", resume=True, overwrite=False)
    claim(tmp_path / "new", resume=False, overwrite=False)
