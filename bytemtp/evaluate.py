"""Command: numbers about a run.  `python -m bytemtp.evaluate --help` lists the verbs.

Try:  python -m bytemtp.evaluate bpb RUN PATH
"""

from collections.abc import Sequence

from bytemtp.common import cli
from bytemtp.evaluation import bits_per_byte, choice, draft_shapes
from bytemtp.evaluation.code import execute, passk

VERBS: dict[str, type[cli.Command]] = {
    "bpb": bits_per_byte.Command,
    "passk": passk.Command,
    "execute": execute.Command,
    "tree": draft_shapes.Command,
    "choice": choice.Command,
}
EXAMPLE = "python -m bytemtp.evaluate bpb runs/demo heldout.tar.zst"


def main(arguments: Sequence[str] | None = None) -> None:
    """Hand the command line to its verb.  UserError for an unknown one."""
    cli.run_verb(VERBS, "bytemtp.evaluate", EXAMPLE, arguments)


if __name__ == "__main__":
    cli.run_main(main)
