"""What a resumed run may change, and warnings where the result will not be that of one run without a stop."""

import platform
from collections.abc import Iterable, Iterator, Sequence
from operator import ne
from pathlib import Path
from typing import Any

import torch

import bytemtp
from bytemtp.common.errors import UserError
from bytemtp.common.runtime import log
from bytemtp.common.settings import (
    Settings,
    TrainConfig,
    changed,
    flatten,
    head_weights,
    load_settings,
    scheduled_weights,
    unflatten,
)
from bytemtp.data.sources import absolute
from bytemtp.model.checkpoint import TrainState, latest, load_state
from bytemtp.model.model import ByteMTP
from bytemtp.training.batches import far_rows_at, for_drafts_at, seq_len_at, share_done, with_steps_of_epochs
from bytemtp.training.distributed import World, is_restarted, job
from bytemtp.training.optimizer import learning_rate
from bytemtp.training.repeats import repeating_rows
from bytemtp.training.run_folder import on_disk
from bytemtp.training.sharding import is_split
from bytemtp.training.start import for_frozen_trunk

MAY_CHANGE = frozenset(
    f"train.{name}"
    for name in (
        "steps",
        "minutes",
        "epochs",
        "log_every",
        "valid_every",
        "checkpoint_every",
        "keep_checkpoints",
        "sample_bytes",
        "tensorboard",
        "compile",
        "parallel",
        "shards",
        "context_parallel",
    )
) | {"data.on_change", "data.on_corrupt"}
"""Settings that a resumed run may change: they decide how long it is, what it tells and how fast, not what it computes
but for rounding.  (What a damaged file would have added to it, nobody knows.)"""


OPEN = {"train.dtype": "auto", "train.compile": "auto", "train.parallel": "auto", "data.sweeps": 0}
"""Values that a run resolves when it begins."""


def check_resumable(run: Path, settings: Settings, info: dict[str, Any]) -> tuple[Settings, dict[str, Any]]:
    """The settings to go on with, and the run's `[run]` table.

    What is left open stays what it was resolved to: "auto", `data.sweeps` 0, the number of steps in `train.epochs`.
    UserError if a setting differs from the run's that must not.
    """
    saved, saved_info = load_settings(run / "config.toml")
    saved = for_frozen_trunk(saved)  # in runs of older versions presets stand as they are
    old, new = flatten(with_absolute_paths(saved)), flatten(settings)
    new |= {name: old[name] for name, value in OPEN.items() if new[name] == value}
    for name, value in new.items():
        if value != old[name] and name not in MAY_CHANGE:
            raise UserError(
                f"{name} is {value!r} but the run was made with {old[name]!r}; leave it out to resume, "
                "or start a new run"
            )
    info = saved_info | {name: value for name, value in info.items() if value}
    if "paths" not in info:
        raise UserError(f"{run / 'config.toml'} is damaged: it has no paths under [run]; name PATH again")
    settings = with_new_length(run, saved.train, unflatten(new), info["paths"])
    warn_of_schedule(run, saved, settings)
    return settings, info


def goes_on(run: Path) -> bool:
    """Whether `run` is what this very torchrun job was at before its processes were started again."""
    config = run / "config.toml"
    return is_restarted() and config.exists() and load_settings(config)[1].get("job") == job()


def with_absolute_paths(settings: Settings) -> Settings:
    """The settings as they can be read from any folder."""
    return changed(settings, **{"data.valid_paths": [*map(absolute, settings.data.valid_paths)]})


def with_new_length(run: Path, old: TrainConfig, new: Settings, paths: Sequence[str]) -> Settings:
    """Other `train.epochs` become steps anew; the same ones keep the steps that they have become."""
    if new.train.epochs != old.epochs:
        return with_steps_of_epochs(new, on_disk(paths, run))
    if new.train.minutes and new.train.steps != old.steps:
        log(f"the run ends by train.minutes {new.train.minutes:g}; to go by train.steps, set train.minutes to 0, too")
    if old.epochs and new.train.steps != old.steps:
        log(f"train.steps stays {old.steps}, by train.epochs {old.epochs}; to change it, set train.epochs to 0, too")
        return changed(new, **{"train.steps": old.steps})
    return new


def warn_of_schedule(run: Path, old: Settings, new: Settings) -> None:
    """Say so if the steps done were others than a run with the new settings would have made them.

    In time they are taken to have been evenly spaced.
    """
    folder = latest(run)
    state = load_state(folder) if folder else TrainState()
    times = [(step, state.elapsed_s * step / state.step) for step in range(state.step)]
    if any(map(ne, schedule(old, times), schedule(new, times))):
        log(
            f"warning: the {state.step} steps done followed the schedule of the old train.steps or train.minutes; "
            "the result will not be that of one long run, though rows stay as long as they are.  To pause a run and "
            "keep its schedule, use --stop-after"
        )


def schedule(
    settings: Settings, times: Iterable[tuple[int, float]]
) -> Iterator[tuple[float, int, int, float, bool, list[float]]]:
    """Learning rate, length of rows, how many of a batch repeat, the share of rows that far heads learn from, whether
    to be accepted as drafts, and weights of heads, at each (step, seconds)."""
    train = settings.train
    weights = head_weights(train.head_weights, settings.model.n_future)
    for time in times:
        done = share_done(train, *time)
        of_heads = scheduled_weights(weights, train.head_schedule, done)
        repeating = repeating_rows(train, train.batch_size, done)
        is_far = settings.model.has_far_heads
        far_rows, for_drafts = far_rows_at(train, done) * is_far, is_far and for_drafts_at(train, done)
        yield learning_rate(train, *time), seq_len_at(train, *time), repeating, far_rows, for_drafts, of_heads


def warn_if_elsewhere(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Say so if something has changed that bit-for-bit equality hangs on."""
    for name in ("device", "threads", "processes", "context_parallel", "compiled", "sharded", "torch"):
        if before.get(name, now[name]) != now[name]:
            log(f"warning: the run had {name} {before[name]} and goes on with {now[name]}: not bit for bit")


def facts(model: ByteMTP, world: World) -> dict[str, Any]:
    """What the weights depend on beside the settings, for `config.toml`."""
    return {
        "parameters": model.num_parameters(),
        "device": str(model.device),
        "threads": torch.get_num_threads(),
        "processes": world.size,
        "context_parallel": world.context,
        "compiled": model.compiled,
        "sharded": is_split(model),
        "bytemtp": bytemtp.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
