"""Command: numbers about a run.  `python -m bytemtp.evaluate --help` lists the verbs.

Each verb is a module with `main(arguments)`; its docstring's first line is its line in the help.

Try:  python -m bytemtp.evaluate bpb RUN PATH
"""

import sys
from collections.abc import Sequence
from types import ModuleType

from bytemtp import bpb, choice, execute, passk, tree_fit
from bytemtp.runtime import command, unknown_verb

VERBS: dict[str, ModuleType] = {"bpb": bpb, "passk": passk, "execute": execute, "tree": tree_fit, "choice": choice}


def main(arguments: Sequence[str] | None = None) -> None:
    """Hand the command line to its verb.  UserError for an unknown one."""
    verb, *rest = (sys.argv[1:] if arguments is None else list(arguments)) or ["--help"]
    if verb in ("--help", "-h"):
        print(usage())
    elif verb in VERBS:
        VERBS[verb].main(rest)
    else:
        raise unknown_verb(verb, VERBS, "bytemtp.evaluate")


def usage() -> str:
    lines = [f"  {name:9} {str(module.__doc__).splitlines()[0]}" for name, module in VERBS.items()]
    return "\n".join(
        [
            "usage: python -m bytemtp.evaluate VERB ...",
            "",
            *lines,
            "",
            "Example:  python -m bytemtp.evaluate bpb runs/demo heldout.tar.zst",
            "Each verb explains itself:  python -m bytemtp.evaluate bpb --help",
        ]
    )


if __name__ == "__main__":
    command(main)
