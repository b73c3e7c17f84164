"""Command: numbers about a run.  `python -m bytemtp.evaluate --help` lists the verbs.

The processes of a torchrun job share the work of `bpb` and `passk`; the first one prints and writes what one process
alone would.

Try:  python -m bytemtp.evaluate bpb RUN PATH
"""

from collections.abc import Sequence

from bytemtp.common import cli
from bytemtp.common.errors import UserError
from bytemtp.evaluation import answers, bits_per_byte, choice, draft_shapes
from bytemtp.evaluation.code import execute, passk
from bytemtp.training.distributed import World, joined

VERBS: dict[str, type[cli.Command]] = {
    "bpb": bits_per_byte.Command,
    "passk": passk.Command,
    "execute": execute.Command,
    "tree": draft_shapes.Command,
    "choice": choice.Command,
    "answers": answers.Command,
}
EXAMPLE = "python -m bytemtp.evaluate bpb runs/demo heldout.tar.zst"


def main(arguments: Sequence[str] | None = None) -> None:
    """Hand the command line to its verb.  UserError for an unknown one."""
    with joined() as world:
        command = cli.read_verb(VERBS, "bytemtp.evaluate", EXAMPLE, arguments)
        if command is not None:
            run(command, world)


def run(command: cli.Command, world: World) -> None:
    """UserError if several processes would do what only one can."""
    if isinstance(command, bits_per_byte.Command | passk.Command):
        command.main(world)
    elif world.size > 1:
        shared = "only bpb and passk share their work among processes"
        raise UserError(f"{world.size} processes would do the same: {shared}; start this verb without torchrun")
    else:
        command.main()


if __name__ == "__main__":
    cli.run_main(main)
