"""Checkpoints that a kill at any moment cannot break.

    RUN/checkpoints/
        step-00000100/      model.safetensors  optimizer.safetensors  rng.safetensors  state.json
        latest              name of the newest complete checkpoint
        best                name of the one that was best in validation; not there before the first validation

A checkpoint is written into `step-00000100.partial`, every file is synced to the disk, and then the folder is renamed;
`latest` and then `best` are replaced by renames as well.  Renames are atomic, so what they name is always complete.
Where a disk or a hand has spoilt that, the newest checkpoint that is whole is taken, and a line says so.

Try:  python -c "from bytemtp.model.checkpoint import load_model; print(load_model('RUN'))"
"""

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from bytemtp.common.errors import UserError
from bytemtp.common.files import PARTIAL, new_folder, remove_folder, write_file
from bytemtp.common.runtime import log
from bytemtp.common.settings import Settings, load_settings
from bytemtp.common.shards import split_like
from bytemtp.common.vocab import PADDED_VOCAB_SIZE
from bytemtp.model.model import ByteMTP


@runtime_checkable
class OptimizerStates(Protocol):
    """What a checkpoint needs of an optimizer."""

    def states(self) -> Iterator[tuple[str, Tensor, dict[str, Any], tuple[str, ...]]]:
        """Name, parameter, state (to be read and written to) and that state's names, of every parameter."""


@runtime_checkable
class Weights(Protocol):
    """What a checkpoint needs of a model."""

    def state_dict(self) -> dict[str, Any]:
        """Weights by name."""


@dataclass(frozen=True)
class TrainState:
    """What training needs beside tensors to go on exactly where it was (`state.json`)."""

    step: int = 0
    """optimiser steps done"""
    bytes_seen: int = 0
    """input bytes of those steps"""
    elapsed_s: float = 0.0
    """seconds of training, validation and saving included"""
    cursor: dict[str, Any] | None = None
    """fields of the data cursor after the last batch; None before the first (if shuffled, the first of its length)"""
    grad_norm: float | None = None
    """gradient norm of the last step"""
    unlogged: dict[str, Any] = field(default_factory=dict)
    """losses summed since the last line of metrics.jsonl: the fields of `HeadLosses`"""
    best_step: int = 0
    """step of the best validation so far; its checkpoint is kept"""
    best_bpb: float | None = None
    """bits per byte of that validation, or, with a frozen trunk, the share of drafts that were refused; None before the
    first"""
    seq_len: int = 0
    """bytes of the rows that the cursor is for; 0 in checkpoints from before rows could grow"""
    epochs_before: int = 0
    """whole passes over the data in shorter rows; those of longer rows count anew, if rows are shuffled"""
    far_heads: bool = False
    """whether heads 2 to n have begun to learn"""

    @property
    def is_best(self) -> bool:
        """Whether the validation of this very step was the best so far."""
        return self.best_bpb is not None and self.best_step == self.step


def load_model(path: Path | str, device: torch.device | str = "cpu") -> ByteMTP:
    """The model of a RUN (its newest checkpoint), of one `RUN/checkpoints/step-*` folder or of `RUN/checkpoints/best`.

    In eval mode.  If the newest checkpoint of a RUN is not the best in validation, a line on standard error says so.
    UserError if there is no checkpoint, or if it or the run's config.toml is damaged; it names the file.
    """
    folder = checkpoint_of(path)
    settings = settings_of(path)
    model = ByteMTP(settings.model, seed=None)
    grown = load_state(folder).seq_len if (folder / STATE).exists() else 0
    model.trained_length = grown or settings.train.seq_len
    _load_weights(model, folder / WEIGHTS)
    return model.to(device).eval()


def checkpoint_of(path: Path | str) -> Path:
    """The step folder that `path` stands for: see `load_model`.  UserError if there is none."""
    path = Path(path)
    if (named := _named_by(path)) is not None:
        return named
    folder = find_latest(path, (WEIGHTS,))
    if folder is None:
        lack = f"holds no checkpoint ({WEIGHTS} or checkpoints/latest)" if path.exists() else "does not exist"
        raise UserError(f"{path} {lack}; {GIVE_A_RUN}")
    _tell_of_best(path, folder)
    return folder


def settings_of(path: Path | str) -> Settings:
    """Settings of a RUN, or of the run that a step folder belongs to.  UserError names the file that is amiss."""
    config = run_folder(Path(path)) / "config.toml"
    if not config.exists():
        raise UserError(f"{path} is not a run: there is no {config}; {GIVE_A_RUN}")
    return load_settings(config)[0]


def run_folder(path: Path) -> Path:
    """RUN of a RUN, or of one of its step folders; UserError for a pointer that names none."""
    folder = _named_by(path)
    is_step = folder is not None and not (folder / "config.toml").exists()
    return path.resolve().parent.parent if is_step else path


def _named_by(path: Path) -> Path | None:
    """The step folder, if `path` is one or is a file beside it that names one; None for a run."""
    if path.name in POINTERS and path.is_file():
        if (folder := _target(path)) is None:
            raise UserError(f"{path} names no folder beside it; write the name of a step folder into it")
        return folder
    if path.name == "best" and not path.exists() and (path.parent / "latest").is_file():
        raise UserError(
            f"{path} does not exist: the run has not been validated; give the run for its newest checkpoint"
        )
    return path if (path / WEIGHTS).exists() else None


def _tell_of_best(run: Path, newest: Path) -> None:
    folder = best(run)
    if folder is not None and folder != newest and folder.exists():
        log(f"taking {newest.name}, the newest; validation was best at {folder.name}: {folder.with_name('best')}")


def latest(run: Path, names: tuple[str, ...] | None = None) -> Path | None:
    """Folder of the newest checkpoint whose files (all, or these) are whole; None if there is no checkpoint yet.

    It is the one that `checkpoints/latest` names, if that is whole, or if none is: loading it then says what is wrong.
    """
    named = _target(run / "checkpoints" / "latest")
    if named is not None and is_whole(named, names):
        return named
    return next((path for path in reversed(step_folders(run)) if is_whole(path, names)), named)


def find_latest(run: Path, names: tuple[str, ...] | None = None) -> Path | None:
    """`latest`; a line on standard error says so where it is not what `checkpoints/latest` names."""
    folder, pointer = latest(run, names), run / "checkpoints" / "latest"
    if folder != _target(pointer):
        log(f"warning: {pointer} does not name a whole checkpoint; going on with {folder}, the newest that is")
    return folder


def is_whole(folder: Path, names: tuple[str, ...] | None = None) -> bool:
    """Whether the files of a checkpoint are there and none is cut; what is in the tensors is not looked at."""
    try:
        for name in names or FILES:
            if name == STATE:
                _state_of(folder / name)
            else:
                safe_open(folder / name, "pt").__exit__(None, None, None)
    except (OSError, ValueError, RecursionError, SafetensorError):
        return False
    return True


def best(run: Path) -> Path | None:
    """Folder of the checkpoint that was best in validation; None if there is none."""
    return _target(run / "checkpoints" / "best")


def step_folder(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:08d}"


def step_folders(run: Path) -> list[Path]:
    """Step folders in order."""
    folders = [path for path in (run / "checkpoints").glob("step-*") if STEP.fullmatch(path.name)]
    return sorted(folders, key=step_of)


def step_of(folder: Path) -> int:
    """The steps behind a step folder."""
    return int(folder.name.removeprefix("step-"))


def _target(pointer: Path) -> Path | None:
    """The step folder that a pointer names; None if it names none."""
    try:
        name = pointer.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return pointer.parent / name if STEP.fullmatch(name) and (pointer.parent / name).is_dir() else None


def save(run: Path, state: TrainState, model: Weights, optimizer: OptimizerStates, keep: int) -> Path:
    """Write the checkpoint of `state.step`, name it in `latest`, then delete all but the newest `keep` and the best.

    UserError if the disk does not take it; the checkpoints before it are then still there.
    """
    folder = step_folder(run, state.step)
    try:
        if _target(folder.with_name("latest")) == folder and is_whole(folder):
            # Training is deterministic: the same step is the same checkpoint, but for a validation of it since.
            there = load_state(folder)
            if there.best_bpb != state.best_bpb:
                now = replace(there, best_step=state.best_step, best_bpb=state.best_bpb)
                write_file(folder / STATE, _text_of(now))
            _point_to_best(run, state)  # a kill may have come between `latest` and `best`
            return folder
        with new_folder(folder) as new:
            # One of that name is complete but was never named by `latest`: a kill came between the two renames.
            _write_files(new, state, model, optimizer)
        write_file(folder.parent / "latest", folder.name + "\n")
        _point_to_best(run, state)
        _prune(run, folder, keep)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write {folder}: {error}; {last_good(run)}") from error
    return folder


def load_training(folder: Path, model: ByteMTP, optimizer: OptimizerStates) -> TrainState:
    """Put weights, optimiser and random generators back as they were at a checkpoint.  UserError if it is damaged."""
    _load_weights(model, folder / WEIGHTS)
    _load_optimizer(optimizer, folder / OPTIMIZER)
    _restore_generators(folder / GENERATORS)
    return load_state(folder)


def load_state(folder: Path) -> TrainState:
    """UserError if it is damaged."""
    path = folder / STATE
    try:
        record = _state_of(path)
        record.setdefault("unlogged", record.pop("window", {}))  # its name until version 0.1
        return TrainState(**record)
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {error}; {ANOTHER}") from error


def _state_of(path: Path) -> dict[str, Any]:
    """ValueError for what tells of no step.

    Fields of later versions are let pass: else a run would go on from an older checkpoint, or begin anew.
    """
    record = json.loads(path.read_text(encoding="utf-8"))
    if not (isinstance(record, dict) and isinstance(record.get("step"), int)):
        raise ValueError("it tells of no step")
    return record


def last_good(run: Path) -> str:
    """Half a sentence for error messages."""
    folder = latest(run)
    return f"the last good checkpoint is {folder}" if folder else "there is no checkpoint yet"


WEIGHTS, OPTIMIZER, GENERATORS, STATE = FILES = (
    "model.safetensors",
    "optimizer.safetensors",
    "rng.safetensors",
    "state.json",
)
STEP = re.compile(r"step-\d+")
POINTERS = ("latest", "best")
GIVE_A_RUN = "give a folder that `python -m bytemtp.train --out` wrote"
ANOTHER = "use another checkpoint: write its folder's name into checkpoints/latest"


def _write_files(folder: Path, state: TrainState, model: Weights, optimizer: OptimizerStates) -> None:
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / WEIGHTS)
    save_file(_optimizer_tensors(optimizer), folder / OPTIMIZER)
    save_file(_generator_states(), folder / GENERATORS)
    (folder / STATE).write_text(_text_of(state), encoding="utf-8")


def _text_of(state: TrainState) -> str:
    return json.dumps(asdict(state), indent=1) + "\n"


def _point_to_best(run: Path, state: TrainState) -> None:
    """Let `best` name the checkpoint that `state` says, if it is still there and not named yet."""
    folder = step_folder(run, state.best_step)
    if state.best_bpb is not None and folder.exists() and best(run) != folder:
        write_file(folder.parent / "best", folder.name + "\n")


def _prune(run: Path, newest: Path, keep: int) -> None:
    """Keep `newest`, the `keep - 1` checkpoints before it, and the best."""
    folders, spared = step_folders(run), best(run)
    before = folders[: folders.index(newest)]
    for folder in before[: max(0, len(before) - (keep - 1))]:
        if folder != spared:
            # Renamed first: a kill while deleting must not leave half a checkpoint under a whole one's name.
            remove_folder(folder.rename(folder.with_name(folder.name + PARTIAL)))


def _load_weights(model: ByteMTP, path: Path) -> None:
    weights, expected = load_tensors(path), model.state_dict()
    if missing := sorted(expected.keys() - weights.keys()):
        raise UserError(f"{path} lacks {missing[0]} (and {len(missing) - 1} more); {OTHER_MODEL}")
    if unknown := sorted(weights.keys() - expected.keys()):
        raise UserError(f"{path} holds {unknown[0]} (and {len(unknown) - 1} more), unknown to the model; {OTHER_MODEL}")
    rows = weights["embed.weight"].shape[0] if weights["embed.weight"].dim() else 0
    if rows != PADDED_VOCAB_SIZE:
        raise UserError(f"{path}: embed.weight has {rows} rows, {VOCABULARY}")
    for name, tensor in expected.items():
        if weights[name].shape != tensor.shape:
            raise UserError(
                f"{path}: {name} has shape {list(weights[name].shape)}, the model {list(tensor.shape)}; {OTHER_MODEL}"
            )
    model.load_state_dict({name: split_like(weights[name], tensor) for name, tensor in expected.items()})


VOCABULARY = f"not the {PADDED_VOCAB_SIZE} of our vocabulary (bytes, end of text, padding): no model of bytemtp"
OTHER_MODEL = "the config.toml of the run does not describe this checkpoint"


def _optimizer_tensors(optimizer: OptimizerStates) -> dict[str, Tensor]:
    """State as `<parameter>/<name>`: independent of the order in which parameters were registered."""
    return {f"{name}/{key}": tensor for name, _, state, _ in optimizer.states() for key, tensor in state.items()}


def _load_optimizer(optimizer: OptimizerStates, path: Path) -> None:
    tensors = load_tensors(path)
    if not tensors:
        return  # saved before the first step, by an earlier version
    for name, parameter, state, keys in optimizer.states():
        for key in keys:
            tensor = tensors.get(f"{name}/{key}")
            shape = torch.Size() if key == "step" else parameter.shape
            if tensor is None or tensor.shape != shape:
                raise UserError(f"{path} holds no {key} of {name} with shape {list(shape)}; {OTHER_MODEL}")
            state[key] = tensor.to(parameter.device) if key == "step" else split_like(tensor, parameter)


def _generator_states() -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _restore_generators(path: Path) -> None:
    states = load_tensors(path)
    try:
        torch.set_rng_state(states["cpu"])
        if torch.cuda.is_available() and "cuda" in states:
            torch.cuda.set_rng_state(states["cuda"])
    except (KeyError, RuntimeError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); {ANOTHER}") from error


def load_tensors(path: Path, hint: str = ANOTHER) -> dict[str, Tensor]:
    """Of a safetensors file.  UserError that ends with the hint if it does not exist or is damaged."""
    try:
        return load_file(path)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; {hint}") from None
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is damaged ({error}); {hint}") from error
