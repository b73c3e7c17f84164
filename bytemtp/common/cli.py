"""From a command line to a frozen dataclass, by tyro, and on to its `main` method.

Every mistake is a UserError of one line, and exit statuses are the contract's: 0 success, 2 bad input, 130 Ctrl-C.  In
names `-` and `_` are alike; booleans among the settings are written `true` or `false`.

Try:  python -m bytemtp.evaluate bpb --help
"""

import dataclasses
import difflib
import io
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import redirect_stderr
from typing import Any, Protocol, TypeVar, get_type_hints, runtime_checkable

import tyro

from bytemtp.common.errors import UserError
from bytemtp.common.settings import check_names

T = TypeVar("T")
REGISTRY = tyro.constructors.ConstructorRegistry()
POSITIONAL = tyro.conf.Positional[int].__metadata__[0]  # type: ignore[attr-defined]


@runtime_checkable
class Command(Protocol):
    """A dataclass whose fields are the options of a command."""

    def main(self) -> None:
        """Do it."""


def run_main(main: Callable[[], None]) -> None:
    """Call `main` and exit as the contract says, with one line on standard error for bad input."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our standard output (say, `head`) has gone; there is nobody left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


def run(kind: type[Command], program: str, arguments: Sequence[str] | None = None) -> None:
    """Read the command line (sys.argv unless given) as a `kind` and do what it says."""
    parse(kind, program, sys.argv[1:] if arguments is None else arguments).main()


def run_verb(
    verbs: Mapping[str, type[Command]], program: str, example: str, arguments: Sequence[str] | None = None
) -> None:
    """Hand the command line to the verb that it begins with.  UserError for an unknown one."""
    verb, *rest = (sys.argv[1:] if arguments is None else list(arguments)) or ["--help"]
    if verb in ("--help", "-h"):
        lines = {name: str(kind.__doc__).splitlines()[0].split("  ")[0] for name, kind in verbs.items()}
        print(usage(program, "verb", lines, example))
        return
    check_known(verb, verbs, f"verb {verb!r} of {program}")
    run(verbs[verb], f"python -m {program} {verb}", rest)


def check_known(name: str, known: Iterable[str], what: str) -> None:
    """UserError for a name that is not known, with the nearest one or all of them."""
    if name not in (names := list(known)):
        near = difflib.get_close_matches(name, names, n=1)
        raise UserError(
            f"unknown {what}; " + (f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(names)}")
        )


def usage(program: str, kind: str, names: Mapping[str, str], example: str) -> str:
    """A line a name.  kind: what they are called, as verb."""
    lines = [f"  {name:9} {what}" for name, what in names.items()]
    explained = f"Each {kind} explains itself:  python -m {program} {next(iter(names))} --help"
    return "\n".join(
        [f"usage: python -m {program} {kind.upper()} ...", "", *lines, "", f"Example:  {example}", explained]
    )


def parse(kind: type[T], program: str, arguments: Sequence[str], default: T = tyro.MISSING_NONPROP) -> T:
    """`arguments` as a `kind`; its docstrings make the help, `default` what is not given.

    UserError for an unknown name (with the nearest known one) or a bad value.
    """
    names = [argument[2:].partition("=")[0].replace("-", "_") for argument in arguments if argument.startswith("--")]
    check_names([f"--{name}" for name in names], [*option_names(kind), "--help"], "the command line")
    printed = io.StringIO()
    try:
        with redirect_stderr(printed):
            return tyro.cli(
                kind, args=arguments, default=default, prog=program, registry=REGISTRY, use_underscores=True
            )
    except SystemExit as stop:
        if not stop.code:
            raise  # --help has been printed
        raise UserError(one_line(printed.getvalue())) from None


def option_names(kind: type[Any], prefix: str = "--") -> Iterator[str]:
    """All that `--` may introduce: fields that are not positional, and those of inner dataclasses as outer.inner."""
    hints = get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        marks = getattr(hints[field.name], "__metadata__", ())
        inner: Any = getattr(hints[field.name], "__origin__", hints[field.name])
        if isinstance(inner, type) and dataclasses.is_dataclass(inner):
            nameless = any(getattr(mark, "name", None) == "" for mark in marks)
            yield from option_names(inner, prefix if nameless else f"{prefix}{field.name}.")
        elif POSITIONAL not in marks:
            yield prefix + field.name


def one_line(box: str) -> str:
    """What tyro says in a frame, as one line: the text above the first rule."""
    lines = [line.strip("│ ") for line in box.splitlines() if line.startswith("│")]
    rule = next((i for i, line in enumerate(lines) if line.startswith("─")), len(lines))
    return re.sub(r"^Error parsing settings(\.\w+)?: ", "", " ".join(lines[:rule]))


@REGISTRY.primitive_rule
def _true_or_false(
    info: tyro.constructors.PrimitiveTypeInfo,
) -> tyro.constructors.PrimitiveConstructorSpec[bool] | None:
    """tyro itself reads `True` and `False` only; TOML and the contract say `true` and `false`."""
    if info.type is not bool:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="{true,false}",
        instance_from_str=lambda words: _boolean(words[0]),
        is_instance=lambda value: isinstance(value, bool),
        str_from_instance=lambda value: [str(value).lower()],
    )


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(f"{text!r} is neither true nor false")
    return text.lower() == "true"
