"""Command: train a model on raw files, or go on with a run.

    python -m bytemtp.train corpora/tiny.txt --out runs/first --preset nano

The loop itself is in `bytemtp.trainer`; here are the command line and the sample that is printed at each validation.
"""

import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

import tyro

from bytemtp.config import PRESETS, Settings, flatten, load_settings
from bytemtp.decode import generate
from bytemtp.errors import UserError
from bytemtp.model import ByteMTP
from bytemtp.runtime import command, log
from bytemtp.settings_cli import normal, parse, preset, toml_arguments, value_of
from bytemtp.trainer import Outcome, train

DEFAULT_PRESET = "tiny"
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
    .bz2, .tar (each member a document), .jsonl (each line a document)"""
    out: Annotated[Path, tyro.conf.arg(help_behavior_hint="(required)")] = Path()
    """folder of the run"""
    config: tyro.conf.DisallowNone[Path | None] = None
    """TOML file of settings; those on the command line are stronger"""
    preset: Annotated[str, tyro.conf.arg(metavar="{" + ",".join(PRESETS) + "}")] = DEFAULT_PRESET
    """settings to start from"""
    resume: tyro.conf.FlagCreatePairsOff[bool] = False
    """go on with the run in OUT from its newest checkpoint"""
    overwrite: tyro.conf.FlagCreatePairsOff[bool] = False
    """replace the run in OUT"""
    stop_after: int = 0
    """pause after this step, with a checkpoint; the learning rate still follows train.steps.  0 means train on"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N"""
    settings: Annotated[tyro.conf.FlagConversionOff[Settings], tyro.conf.arg(name="")] = PRESETS[DEFAULT_PRESET]


def main(arguments: list[str] | None = None) -> None:
    options = read_command(sys.argv[1:] if arguments is None else arguments)
    outcome = train(
        options.settings,
        options.paths,
        options.out,
        device=options.device,
        resume=options.resume,
        overwrite=options.overwrite,
        stop_after=options.stop_after,
        preset=options.preset,
        sample=lambda model: show(model, options.settings),
    )
    report(outcome, options.out)
    if outcome.signal and not outcome.finished:
        sys.exit(128 + outcome.signal)


def read_command(arguments: list[str]) -> Command:
    """Parse on top of what the preset, or the run to resume, and the TOML file say."""
    arguments = normal(arguments)
    base, name = starting_point(arguments)
    config = value_of("config", arguments)
    from_file = toml_arguments(Path(config)) if config else []
    own = [field.name for field in fields(Command) if field.name not in ("paths", "settings")]
    options = parse(
        Command,
        [*from_file, *arguments],
        Command(paths=(), preset=name, settings=base),
        options=[*own, *flatten(base)],
        program="python -m bytemtp.train",
    )
    if value_of("out", arguments) is None:
        raise UserError("--out is missing; name the folder that the run is to be written to")
    return options


def starting_point(arguments: list[str]) -> tuple[Settings, str]:
    """The settings before anything is changed, and the name of their preset."""
    asked, out = value_of("preset", arguments), value_of("out", arguments)
    if "--resume" not in arguments or out is None or not (Path(out) / "config.toml").exists():
        name = asked or DEFAULT_PRESET
        return preset(name), name
    saved, info = load_settings(Path(out) / "config.toml")
    name = info.get("preset", "")
    if asked not in (None, name):
        raise UserError(f"the run in {out} started from preset {name!r}, not {asked!r}; leave --preset out to resume")
    return saved, name


def show(model: ByteMTP, settings: Settings) -> bytes:
    """A sample from the start of a document."""
    train = settings.train
    return generate(model, b"", train.sample_bytes, temperature=SAMPLE_TEMPERATURE, seed=train.seed).data


def report(outcome: Outcome, out: Path) -> None:
    """Say how it ended and what to do next."""
    step = outcome.state.step
    if not outcome.finished:
        log(f"stopped at step {step}, saved in {outcome.checkpoint}")
        log(f"go on with: python -m bytemtp.train --out {out} --resume")
        return
    if outcome.valid is not None:
        log(f"validation, bits per byte by head: {' '.join(f'{bits:.3f}' for bits in outcome.valid.bits_per_byte)}")
    log(f"finished at step {step}, saved in {outcome.checkpoint}")
    log(f'next: python -m bytemtp.generate {out} --prompt "The " --max-bytes 200')
    log(f"      python -m bytemtp.evaluate bpb {out} PATH...")


if __name__ == "__main__":
    command(main)
