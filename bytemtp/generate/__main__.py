"""Command: continue a prompt with a trained run.

Try:  python -m bytemtp.generate RUN --prompt "def add(" --max-bytes 200 --temperature 0.8
"""

import json
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

import tyro

from bytemtp.checkpoint import load_model
from bytemtp.errors import UserError
from bytemtp.generate import generate
from bytemtp.rundir import write_file
from bytemtp.runtime import command, pick_device
from bytemtp.settings_cli import normal, parse


@dataclass(frozen=True)
class Arguments:
    """Continue a prompt with a trained run.  Standard output is exactly the new bytes.

    Example:  python -m bytemtp.generate runs/demo --prompt "def add(" --max-bytes 200 --temperature 0.8
    """

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """run folder of `bytemtp.train`, or one of its checkpoints/step-* folders"""
    max_bytes: int
    """stop after this many new bytes"""
    prompt: tyro.conf.DisallowNone[str | None] = None
    """text to continue; "" starts a new document"""
    prompt_file: tyro.conf.DisallowNone[str | None] = None
    """file with the bytes to continue; - is standard input"""
    mode: Literal["ar"] = "ar"
    """ar: one byte a forward pass"""
    temperature: float = 0.0
    """0 takes the likeliest byte; above 0 draws from softmax(logits / temperature)"""
    seed: int = 0
    """of the draws"""
    stats: tyro.conf.DisallowNone[Path | None] = None
    """write what was measured to this JSON file"""
    device: str = "auto"
    """auto, cpu or cuda"""


def main() -> None:
    arguments = parse(
        Arguments,
        normal(sys.argv[1:]),
        Arguments(run=tyro.MISSING, max_bytes=tyro.MISSING),
        options=[field.name for field in fields(Arguments) if field.name != "run"],
        program="python -m bytemtp.generate",
    )
    prompt = read_prompt(arguments)
    model = load_model(arguments.run, pick_device(arguments.device).value)
    out = generate(model, prompt, arguments.max_bytes, temperature=arguments.temperature, seed=arguments.seed)
    sys.stdout.buffer.write(out.data)
    sys.stdout.buffer.flush()
    if arguments.stats:
        write_file(arguments.stats, json.dumps(out.stats, indent=2) + "\n")


def read_prompt(arguments: Arguments) -> bytes:
    """The bytes of --prompt or --prompt-file.  Command-line text keeps bytes that are no valid UTF-8."""
    if (arguments.prompt is None) == (arguments.prompt_file is None):
        raise UserError("give either --prompt TEXT or --prompt-file FILE (- for standard input)")
    if arguments.prompt is not None:
        return arguments.prompt.encode("utf-8", "surrogateescape")
    if arguments.prompt_file == "-":
        return sys.stdin.buffer.read()
    try:
        return Path(str(arguments.prompt_file)).read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {arguments.prompt_file}: {error.strerror}") from error


if __name__ == "__main__":
    command(main)
