"""From a command line to a frozen dataclass, by tyro, and on to its `main` method.

Every mistake is a UserError of one line, and exit statuses are the contract's: 0 success, 2 bad input, 130 Ctrl-C.  In
names `-` and `_` are alike; booleans among the settings are written `true` or `false`.  A text may begin with a dash:
`--prompt "-- x"`, `--stop -e --`.

Try:  python -m bytemtp.evaluate bpb --help
"""

import argparse
import dataclasses
import errno
import io
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Annotated, Any, Protocol, TypeVar, get_args, get_origin, get_type_hints, runtime_checkable

import tyro

from bytemtp.common.checks import check_known
from bytemtp.common.errors import UserError
from bytemtp.common.settings import check_names, read_toml

T = TypeVar("T")
REGISTRY = tyro.constructors.ConstructorRegistry()
POSITIONAL = tyro.conf.Positional[int].__metadata__[0]  # type: ignore[attr-defined]
OPTION = re.compile(r"--[^\W\d_]")
"""What looks like an option."""
TEXT = "\0"
"""Before a word that is a value though it looks like an option.  A command line cannot hold it."""


@runtime_checkable
class Command(Protocol):
    """A dataclass whose fields are the options of a command."""

    def main(self) -> None:
        """Do it."""


def run_main(main: Callable[[], None]) -> None:
    """Call `main` and exit as the contract says, with one line on standard error for bad input."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by the caller, as by `2>&-`
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8", errors="surrogateescape"))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # names of files that are no text are printed as they are
    try:
        main()
        sys.stdout.flush()  # here, where what goes wrong can be said
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our standard output (say, `head`) has gone; there is nobody left to tell.
        discard_output()
        sys.exit(0)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EACCES, errno.ENAMETOOLONG):
            raise
        print(f"error: {error.filename or 'cannot write'}: {error.strerror}", file=sys.stderr)
        if error.errno == errno.ENOSPC:
            discard_output()
        sys.exit(2)


def discard_output() -> None:
    """Of what is still to be written at exit nothing can go wrong."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run(kind: type[Command], program: str, arguments: Sequence[str] | None = None) -> None:
    """Read the command line (sys.argv unless given) as a `kind` and do what it says."""
    parse(kind, program, sys.argv[1:] if arguments is None else arguments).main()


def read_verb(
    verbs: Mapping[str, type[Command]], program: str, example: str, arguments: Sequence[str] | None = None
) -> Command | None:
    """The command of the verb that the command line begins with; None where it asks for help, which has been printed.

    UserError for an unknown verb.
    """
    verb, *rest = (sys.argv[1:] if arguments is None else list(arguments)) or ["--help"]
    if verb in ("--help", "-h"):
        lines = {name: str(kind.__doc__).splitlines()[0].split("  ")[0] for name, kind in verbs.items()}
        print(usage(program, "verb", lines, example))
        return None
    check_known(verb, verbs, f"verb {verb!r} of {program}")
    return parse(verbs[verb], f"python -m {program} {verb}", rest)


def usage(program: str, kind: str, names: Mapping[str, str], example: str) -> str:
    """A line a name.  kind: what they are called, as verb."""
    lines = [f"  {name:10} {what}" for name, what in names.items()]
    explained = f"Each {kind} explains itself:  python -m {program} {next(iter(names))} --help"
    return "\n".join(
        [f"usage: python -m {program} {kind.upper()} ...", "", *lines, "", f"Example:  {example}", explained]
    )


def parse(kind: type[T], program: str, arguments: Sequence[str], default: T = tyro.MISSING_NONPROP) -> T:
    """`arguments` as a `kind`; its docstrings make the help, `default` what is not given.

    UserError for an unknown name (with the nearest known one) or a bad value.
    """
    words = with_texts_marked(kind, arguments)
    check_lists(kind, words)
    check_names(map(option_of, filter(OPTION.match, words)), [*option_names(kind), "--help"], "the command line")
    printed = io.StringIO()
    try:
        with redirect_stderr(printed):
            return tyro.cli(kind, args=words, default=default, prog=program, registry=REGISTRY, use_underscores=True)
    except SystemExit as stop:
        if not stop.code:
            raise  # --help has been printed
        raise UserError(one_line(printed.getvalue()).replace(TEXT, "")) from None


def peek(words: Sequence[str], *options: str, flags: Sequence[str] = ()) -> argparse.Namespace:
    """What these options say, None where they say nothing: for a command whose defaults hang on them.

    words: as `with_texts_marked` gives them.  Nothing is checked; `parse` finds what is wrong.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in options:
        parser.add_argument(name, nargs="?", type=unmarked)
    for name in flags:
        parser.add_argument(name, nargs="?", const=True)  # a value does not belong there
    return parser.parse_known_args(words)[0]


def check_lists(kind: type[Any], words: Sequence[str]) -> None:
    """UserError for an option that takes several words and is there twice: only those behind the last would count."""
    given = [option_of(word) for word in words if OPTION.match(word)]
    for name, hint in typed_options(kind):
        hint = get_args(hint)[0] if get_origin(hint) is Annotated else hint
        if get_origin(hint) is tuple and given.count(name) > 1:
            raise UserError(f"{name} is given twice; name all that it takes behind one, as in {name} A B")


def with_texts_marked(kind: type[Any], words: Sequence[str]) -> list[str]:
    """The command line with TEXT before every word that is a value though it begins with a dash.

    After an option that takes a text, the next word is one, whatever it is.  After one that takes a path or a list it
    is not if it is an option itself (`--out --resume` lacks a path), and in a list none but the first is if it looks
    like one, `--` and a letter, for it may be misspelt.  What stands behind `=` is a value anyhow.
    """
    options = dict(typed_options(kind))
    marked: list[str] = []
    takes: frozenset[type] = frozenset()
    is_first = True
    for word in words:
        is_option, is_pair = option_of(word) in options or word in ("--help", "-h"), "=" in word
        if takes == {str} or (takes and not is_option and (is_first or not OPTION.match(word))):
            marked.append(TEXT + word if word.startswith("-") and word != "-" else word)
            takes, is_first = takes if tuple in takes else frozenset(), False
        else:
            marked.append(word)
            takes, is_first = texts_of(options.get(option_of(word))), not is_pair
            takes = takes if tuple in takes or not is_pair else frozenset()
    return marked


def texts_of(hint: Any) -> frozenset[type]:
    """Of an option's type: str or Path if it takes such words, with tuple if it takes several; else nothing."""
    if get_origin(hint) is Annotated:
        return texts_of(get_args(hint)[0])
    if not get_args(hint):
        return frozenset({hint} & {str, Path})
    inside = frozenset[type]().union(*map(texts_of, get_args(hint)))
    return inside | {tuple} if inside and get_origin(hint) is tuple else inside


def option_of(word: str) -> str:
    """`--max-bytes=3` -> --max_bytes"""
    name = word.partition("=")[0]
    return "--" + name[2:].replace("-", "_") if name.startswith("--") else name


def named_settings(words: Sequence[str], config: str | None) -> set[str]:
    """The settings that the user names, on the command line or in the TOML file."""
    options = {option_of(word)[2:] for word in words if word.startswith("--")}
    return options | set(read_toml(Path(config))[0] if config else ())


def option_names(kind: type[Any]) -> Iterator[str]:
    """All that `--` may introduce: fields that are not positional, and those of inner dataclasses as outer.inner."""
    return (name for name, _ in typed_options(kind))


def typed_options(kind: type[Any], prefix: str = "--") -> Iterator[tuple[str, Any]]:
    """The options with their types."""
    hints = get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        marks = getattr(hints[field.name], "__metadata__", ())
        inner: Any = getattr(hints[field.name], "__origin__", hints[field.name])
        if isinstance(inner, type) and dataclasses.is_dataclass(inner):
            nameless = any(getattr(mark, "name", None) == "" for mark in marks)
            yield from typed_options(inner, prefix if nameless else f"{prefix}{field.name}.")
        elif POSITIONAL not in marks:
            yield prefix + field.name, hints[field.name]


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


@REGISTRY.primitive_rule
def _text(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec[Any] | None:
    """As tyro reads them, without the mark of `with_texts_marked`."""
    kind = info.type
    if kind is not str and kind is not Path:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar=kind.__name__.upper(),
        instance_from_str=lambda words: kind(unmarked(words[0])),
        is_instance=lambda value: isinstance(value, kind),
        str_from_instance=lambda value: [str(value)],
    )


def unmarked(word: str) -> str:
    return word.removeprefix(TEXT)


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(f"{text!r} is neither true nor false")
    return text.lower() == "true"
