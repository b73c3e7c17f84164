"""`python -m bytemtp` lists the commands; `python -m bytemtp train ...` is `python -m bytemtp.train ...`."""

import difflib
import runpy
import sys

from bytemtp.common.cli import run_main
from bytemtp.common.errors import UserError

COMMANDS = {
    "train": "train a model on raw files, or go on with a run",
    "generate": "continue a prompt with a trained run",
    "evaluate": "bits per byte, pass@k, multiple choice, the fastest drafts",
    "report": "curves of one run, or of several over each other",
    "export": "a Hugging Face folder that transformers loads",
    "bench": "speed and memory beside the peers",
}


def main() -> None:
    """Hand the command line to the command that it begins with.  UserError for an unknown one."""
    name, *rest = sys.argv[1:] or ["--help"]
    if name in ("--help", "-h"):
        print(usage())
        return
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(COMMANDS)}"
        raise UserError(f"unknown command {name!r}; {hint}")
    sys.argv[1:] = rest
    runpy.run_module(f"bytemtp.{name}", run_name="__main__", alter_sys=True)


def usage() -> str:
    lines = [f"  {name:9} {what}" for name, what in COMMANDS.items()]
    example = "python -m bytemtp train corpora/tiny.txt --out runs/first --preset nano"
    explained = "Each command explains itself:  python -m bytemtp train --help"
    return "\n".join(["usage: python -m bytemtp COMMAND ...", "", *lines, "", f"Example:  {example}", explained])


def console() -> None:
    """The console script `bytemtp`."""
    run_main(main)


if __name__ == "__main__":
    console()
