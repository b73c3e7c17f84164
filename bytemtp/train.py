"""Command: train a model on raw files, or go on with a run.

    python -m bytemtp.train corpora/tiny.txt --out runs/first --preset nano

The loop is in `bytemtp.training.trainer`; here are the command line and the sample that is printed at each validation.
"""

import argparse
import math
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from bytemtp.common.cli import named_settings, parse, peek, run_main, with_texts_marked
from bytemtp.common.errors import UserError
from bytemtp.common.presets import AUTO, DEFAULT_PRESET, PRESETS, preset
from bytemtp.common.runtime import in_a_row, log, pick_device
from bytemtp.common.settings import MAX_FUTURE, Settings, load_settings, read_toml
from bytemtp.decoding.generate import generate
from bytemtp.index import index_run
from bytemtp.model.checkpoint import best
from bytemtp.model.initial import source_config, with_path_of
from bytemtp.model.model import ByteMTP
from bytemtp.training.auto import pick_preset
from bytemtp.training.distributed import ALONE, World, joined
from bytemtp.training.start import with_layers_for_heads
from bytemtp.training.trainer import TrainOutcome, train

SAMPLE_TEMPERATURE = 0.8


@dataclass(frozen=True)
class Command:
    """Train a byte-level multi-token prediction model on raw files.

    Example, a minute on two cores, with a pause:

        python -m bytemtp.train corpora/tiny.txt --out runs/first --preset nano --stop-after 100
        python -m bytemtp.train --out runs/first --resume
        python -m bytemtp.generate runs/first --prompt "The " --max-bytes 200

    Ctrl-C saves a checkpoint and exits.  A resumed run needs no settings, they are in OUT/config.toml, and ends with
    the same weights as one that nobody stopped, unless it goes by train.minutes: then the clock decides.
    """

    paths: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="[PATH ...]")]
    """what to train on: files, folders (recursive), globs, - for standard input, fsspec URLs; plain or .zst .gz .xz
    .bz2, .tar, .zip (a document each member), .jsonl (each line)"""
    out: Annotated[Path, tyro.conf.arg(help_behavior_hint="(required)")] = Path()
    """folder of the run"""
    config: tyro.conf.DisallowNone[Path | None] = None
    """TOML file of settings; those on the command line are stronger"""
    preset: Annotated[str, tyro.conf.arg(metavar="{" + ",".join([AUTO, *PRESETS]) + "}")] = DEFAULT_PRESET
    """settings to start from; auto chooses what is best in train.minutes on this machine"""
    init: tyro.conf.DisallowNone[Path | None] = None
    """start from the weights of a run (the newest, or RUN2/checkpoints/best) or of a Hugging Face folder of bytes; its
    shape goes before the preset's, the heads may be others"""
    resume: tyro.conf.FlagCreatePairsOff[bool] = False
    """go on with the run in OUT from its newest checkpoint"""
    overwrite: tyro.conf.FlagCreatePairsOff[bool] = False
    """replace the run in OUT"""
    stop_after: int = 0
    """pause after this step, with a checkpoint; the learning rate still follows train.steps.  0 means train on"""
    index: tyro.conf.FlagCreatePairsOff[bool] = False
    """at the end, make OUT/train.index of the files (see `bytemtp.index`), from which `bytemtp.generate OUT` copies"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N"""
    settings: Annotated[tyro.conf.FlagConversionOff[Settings], tyro.conf.arg(name="")] = PRESETS[DEFAULT_PRESET]

    def main(self, world: World = ALONE) -> None:
        outcome = train(
            self.settings,
            self.paths,
            self.out,
            device=self.device,
            resume=self.resume,
            overwrite=self.overwrite,
            stop_after=self.stop_after,
            preset=self.preset,
            init=self.init,
            sample=lambda model: show(model, self.settings),
            world=world,
        )
        if self.index and outcome.finished and world.is_first:
            log(index_run(self.out))
        report(outcome, self.out)
        if outcome.signal and not outcome.finished:
            sys.exit(128 + outcome.signal)


def main(arguments: Sequence[str] | None = None) -> None:
    with joined() as world:
        read_command(sys.argv[1:] if arguments is None else arguments).main(world)


def read_command(arguments: Sequence[str]) -> Command:
    """Parse on top of what the preset, or the run to resume, and the TOML file say."""
    words = with_texts_marked(Command, arguments)
    asked = peek(words, "--config", "--preset", "--out", "--init", "--device", "--train.minutes", flags=["--resume"])
    base, name = starting_point(asked)
    source = None if asked.init is None or asked.resume else source_config(Path(asked.init))
    start = base.model if source is None else source
    named = named_settings(words, asked.config)
    has_room = source is not None or (not asked.resume and "model.topology" in named)
    if has_room:
        # Room for any heads while they are not known yet; then `layers` follows from the source or the preset.
        base = replace(base, model=replace(start, layers=start.layers + MAX_FUTURE))
    if asked.config:
        base, _ = load_settings(Path(asked.config), base)
    options = parse(Command, "python -m bytemtp.train", words, Command(paths=(), preset=name, settings=base))
    if asked.out is None:
        raise UserError("--out is missing; name the folder that the run is to be written to")
    if has_room and "model.layers" not in named:
        model = options.settings.model
        model = with_path_of(model, source) if source is not None else with_layers_for_heads(model, start.layers)
        options = replace(options, settings=replace(options.settings, model=model))
    return replace(options, preset=name)


def starting_point(asked: argparse.Namespace) -> tuple[Settings, str]:
    """The settings before anything is changed, and the name of their preset."""
    if not asked.resume or asked.out is None or not (Path(asked.out) / "config.toml").exists():
        name = DEFAULT_PRESET if asked.preset is None else asked.preset
        return (preset(name), name) if name != AUTO else preset_for_minutes(asked)
    saved, info = load_settings(Path(asked.out) / "config.toml")
    name = info.get("preset", "")
    if asked.preset not in (None, name):
        raise UserError(
            f"the run in {asked.out} started from preset {name!r}, not {asked.preset!r}; leave --preset out to resume"
        )
    return saved, name


def preset_for_minutes(asked: argparse.Namespace) -> tuple[Settings, str]:
    """What `--preset auto` stands for on this machine."""
    values = read_toml(Path(asked.config))[0] if asked.config else {}
    given = vars(asked)["train.minutes"] or values.get("train.minutes", 0)
    try:
        minutes = float(given)
    except (TypeError, ValueError):
        raise UserError(f"train.minutes is {given!r}; it must be a number") from None
    if not 0 < minutes < math.inf:
        raise UserError("--preset auto chooses a model for the time there is; say it with --train.minutes M")
    choice = pick_preset(minutes, pick_device(asked.device or "auto").value)
    log(f"preset: {choice}")
    return preset(choice.value), choice.value


def show(model: ByteMTP, settings: Settings) -> bytes:
    """A sample from the start of a document."""
    train = settings.train
    return generate(model, b"", train.sample_bytes, temperature=SAMPLE_TEMPERATURE, seed=train.seed).data


def report(outcome: TrainOutcome, out: Path) -> None:
    """Say how it ended and what to do next."""
    step, run = outcome.state.step, shlex.quote(str(out))
    if not outcome.finished:
        log(f"stopped at step {step}, saved in {outcome.checkpoint}")
        log(f"go on with: python -m bytemtp.train --out {run} --resume")
        return
    if outcome.valid is not None:
        log(f"validation, bits per byte by head: {in_a_row(outcome.valid.bits_per_byte)}")
    log(f"finished at step {step}, saved in {outcome.checkpoint}")
    if (folder := best(out)) not in (None, outcome.checkpoint):
        log(f"validation was best at {folder.name}, kept too: {out / 'checkpoints' / 'best'}")
    log(f'next: python -m bytemtp.generate {run} --prompt "The " --max-bytes 200')
    log(f"      python -m bytemtp.evaluate bpb {run} PATH...")


if __name__ == "__main__":
    run_main(main)
