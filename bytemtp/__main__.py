"""`python -m bytemtp` lists the commands; `python -m bytemtp train ...` is `python -m bytemtp.train ...`."""

import runpy
import sys

from bytemtp.common.checks import check_known
from bytemtp.common.cli import run_main, usage

COMMANDS = {
    "train": "train a model on raw files, or go on with a run",
    "generate": "continue a prompt with a trained run",
    "compress": "a file to few bytes, with a trained run as the model of an arithmetic coder",
    "decompress": "and back, bit for bit",
    "evaluate": "bits per byte, pass@k, multiple choice, the fastest drafts",
    "index": "the text of files, for drafts that are copied from it",
    "plan": "memory, FLOPs and days of a run on many GPUs, without any",
    "report": "curves of one run, or of several over each other",
    "export": "a Hugging Face folder that transformers loads",
    "bench": "speed, memory and quality beside the peers",
}


EXAMPLE = "python -m bytemtp train corpora/tiny.txt --out runs/first --preset nano"


def main() -> None:
    """Hand the command line to the command that it begins with.  UserError for an unknown one."""
    name, *rest = sys.argv[1:] or ["--help"]
    if name in ("--help", "-h"):
        print(usage("bytemtp", "command", COMMANDS, EXAMPLE))
        return
    check_known(name, COMMANDS, f"command {name!r}")
    sys.argv[1:] = rest
    runpy.run_module(f"bytemtp.{name}", run_name="__main__", alter_sys=True)


def console() -> None:
    """The console script `bytemtp`."""
    run_main(main)


if __name__ == "__main__":
    console()
