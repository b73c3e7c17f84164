"""From a command line to frozen dataclasses, by tyro; every mistake is a UserError of one line.

Order of strength: preset < `--config FILE.toml` < command line.  A TOML file becomes arguments that stand before the
user's own, so both go through one parser and get the same messages.  In names `-` and `_` are alike; booleans among the
settings are written `true` or `false`.

Try:  python -c "from bytemtp.settings_cli import *; print(toml_arguments(Path('RUN/config.toml')))"
"""

import io
import re
from collections.abc import Iterable, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import TypeVar

import tyro

from bytemtp.config import PRESETS, Settings, check_names, read_toml
from bytemtp.errors import UserError

T = TypeVar("T")

REGISTRY = tyro.constructors.ConstructorRegistry()


def parse(kind: type[T], arguments: Sequence[str], default: T, *, options: Iterable[str], program: str) -> T:
    """`arguments` (see `normal`) as a `kind`; its docstrings make the help, `default` what is not given.

    options: all that `--` may introduce.  UserError for an unknown name (with the nearest known one) or a bad value.
    """
    given = [argument.partition("=")[0] for argument in arguments if argument.startswith("--")]
    check_names(given, [*(f"--{name}" for name in options), "--help"], "the command line")
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


def normal(arguments: Sequence[str]) -> list[str]:
    """Names with `_` throughout: `--train.batch-size=8` -> `--train.batch_size=8`; values stay as they are."""
    return [re.sub(r"^--[^=]+", lambda name: "--" + name[0][2:].replace("-", "_"), argument) for argument in arguments]


def value_of(option: str, arguments: Sequence[str]) -> str | None:
    """The last value that `arguments` give to an option, before they are parsed; None if there is none."""
    value = None
    for argument, following in zip(arguments, [*arguments[1:], None], strict=True):
        if argument == f"--{option}":
            value = following
        elif argument.startswith(f"--{option}="):
            value = argument.partition("=")[2]
    return value


def toml_arguments(path: Path) -> list[str]:
    """The settings in a TOML file as command-line arguments, without the `[run]` table that a RUN/config.toml has."""
    values, _ = read_toml(path)
    for name, value in values.items():
        if not isinstance(value, bool | int | float | str):
            raise UserError(f"{name} in {path} is {value!r}; a setting is one number, text or true or false")
    return [f"--{name}={str(value).lower() if isinstance(value, bool) else value}" for name, value in values.items()]


def preset(name: str) -> Settings:
    """UserError for a name that is no preset."""
    if name not in PRESETS:
        raise UserError(f"unknown preset {name!r}; choose from {', '.join(PRESETS)}")
    return PRESETS[name]


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
