"""Settings: presets, TOML and command line say the same things in the same way, and a mistake is told in one line."""

import contextlib
import dataclasses
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from bytemtp.common.errors import UserError
from bytemtp.common.files import write_file
from bytemtp.common.jsonl import read_lines
from bytemtp.common.presets import PRESETS
from bytemtp.common.settings import (
    DataConfig,
    ModelConfig,
    Settings,
    TrainConfig,
    changed,
    flatten,
    load_settings,
    to_toml,
    unflatten,
)
from bytemtp.train import read_command

NAMES = list(flatten(Settings()))


def read(*arguments: str) -> Settings:
    return read_command(["corpus", "--out", "run", *arguments]).settings


def harmless_values() -> st.SearchStrategy[dict[str, Any]]:
    """Values of some settings that are allowed whatever the others are."""
    values: dict[str, st.SearchStrategy[Any]] = {
        "model.ffn_dim": st.integers(1, 10**6),
        "model.rope_theta": st.floats(1, 1e6),
        "train.steps": st.integers(0, 10**9),
        "train.lr": st.floats(1e-9, 10),
        "train.weight_decay": st.floats(0, 1),
        "train.dtype": st.sampled_from(["auto", "float32", "bfloat16"]),
        "train.activation_checkpointing": st.booleans(),
        "data.decompress": st.booleans(),
        "data.valid_paths": st.lists(st.text("ab/*", min_size=1), max_size=3).map(tuple),
        "data.text_field": st.text(min_size=1).filter(lambda text: text.isprintable()),
    }
    return st.fixed_dictionaries({}, optional=values)


@given(harmless_values())
def test_toml_and_command_line_agree(tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any]) -> None:
    """The same values through a TOML file, through arguments and set directly are the same settings."""
    path = tmp_path_factory.mktemp("toml") / "settings.toml"
    tables: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        section, _, key = name.partition(".")
        tables.setdefault(section, {})[key] = value
    path.write_text(tomli_w.dumps(tables), encoding="utf-8")
    directly = changed(PRESETS["tiny"], **values)
    assert read("--config", str(path)) == directly
    arguments = []
    for name, value in values.items():
        arguments += [f"--{name}", *value] if isinstance(value, tuple) else [f"--{name}={value}"]
    assert read(*arguments) == directly


@given(harmless_values(), st.sampled_from(sorted(PRESETS)))
def test_saved_settings_come_back(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any], preset: str
) -> None:
    path = tmp_path_factory.mktemp("saved") / "config.toml"
    settings = changed(PRESETS[preset], **values)
    path.write_text(to_toml(settings, {"paths": ["a"]}), encoding="utf-8")
    assert load_settings(path) == (settings, {"paths": ["a"]})


def test_a_run_can_be_the_config_of_another(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(to_toml(PRESETS["nano"], {"paths": ["a"], "parameters": 3}))
    assert read("--config", str(path)) == PRESETS["nano"]


def test_dashes_and_underscores_are_alike(tmp_path: Path) -> None:
    assert read("--train.batch-size", "4") == read("--train.batch_size=4") == read("--train.batch-size=4")
    path = tmp_path / "settings.toml"
    path.write_text("[train]\nbatch-size = 4")
    assert read("--config", str(path)).train.batch_size == 4


def test_flatten_is_undone() -> None:
    for settings in PRESETS.values():
        assert unflatten(flatten(settings)) == settings


def test_command_line_beats_toml_beats_preset(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text("[train]\nsteps = 7\nlr = 1\n")
    settings = read("--preset", "nano", "--config", str(path), "--train.steps", "9")
    assert settings.train.steps == 9
    assert settings.train.lr == 1.0
    assert settings.model == PRESETS["nano"].model


@pytest.mark.parametrize("spelling", ["false", "False", "FALSE"])
@pytest.mark.parametrize("form", ["--data.decompress={}", "--data.decompress {}"])
def test_booleans(form: str, spelling: str) -> None:
    assert read(*form.format(spelling).split(" ")).data.decompress is False


@given(st.sampled_from(NAMES), st.data())
def test_a_misspelt_setting_is_named_with_the_right_one(name: str, data: st.DataObject) -> None:
    """Two neighbouring letters swapped, as fingers do."""
    place = data.draw(st.integers(name.index(".") + 1, len(name) - 2))
    wrong = name[:place] + name[place + 1] + name[place] + name[place + 2 :]
    if wrong in NAMES:
        return  # "pp": nothing is misspelt
    with pytest.raises(UserError, match=f"unknown setting '--{wrong}'.*did you mean '--{name}'"):
        read(f"--{wrong}", "1")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--train.steps", "x"], "--train.steps.*'x'"),
        (["--train.steps"], "--train.steps"),
        (["--train.steps", "-1"], "^train.steps is -1; it must be 0 or more$"),
        (["--train.dtype", "fp8"], "fp8.*--train.dtype.*bfloat16"),
        (["--data.decompress", "maybe"], "--data.decompress.*'maybe'"),
        (["--preset", "tny"], "unknown preset 'tny'; choose from nano, tiny"),
        (["--preset", ""], "unknown preset ''; choose from nano, tiny"),
        (["--config", "/no/such.toml"], "cannot read /no/such.toml"),
        (["--out"], "--out"),
        (["--overwite"], "'--overwite'.*'--overwrite'"),
        (["--data.valid-paths", "a", "-"], "^data.valid_paths holds -, but standard input can only be trained on"),
        (["--train.epochs", "2", "--train.minutes", "1.5"], "^train.minutes is 1.5 and train.epochs 2; a run has one"),
        (["--train.epochs", "0.5"], "--train.epochs.*'0.5'"),
        (["--train.epochs", "-1"], "^train.epochs is -1; it must be 0 or more$"),
        (["--train.valid_bytes", "0"], "^train.valid_bytes is 0; it must be at least 1$"),
        (["--train.valid_batches", "8"], "unknown setting '--train.valid_batches'.*'--train.valid_bytes'"),
        (["--model.n_future", "33"], "^model.n_future is 33; it must be from 1 to 32$"),
    ],
)
def test_mistakes_on_the_command_line(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        read(*arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[train]\nstepz = 7", "unknown setting 'train.stepz' in .*toml; did you mean 'train.steps'"),
        ("steps = 7", "unknown setting 'steps'"),
        ("[train]\nsteps = [7]", r"settings.toml: train.steps is \[7\]; it must be of type int"),
        ("[train]\nsteps = 7.5", "settings.toml: train.steps is 7.5; it must be of type int"),
        ("[train]\nvalid_batches = 8", "unknown setting 'train.valid_batches' in .*did you mean 'train.valid_bytes'"),
        ('[data]\nvalid_paths = "a"', "settings.toml: data.valid_paths is 'a'; it must be a list of strings"),
        ("[data]\nvalid_paths = [1]", r"settings.toml: data.valid_paths is \[1\]; it must be a list of strings"),
        ("[train", "is not valid TOML"),
        ("[nonsense]\nx = 1", "unknown setting 'nonsense.x'"),
    ],
)
def test_mistakes_in_toml(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "settings.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read("--config", str(path))


BEYOND = {float: ("inf", "-inf", "nan", "1e17"), int: (str(2**64), "9" * 400, "-1")}
NUMBERS = [
    (f"{table.name}.{field.name}", text)
    for table in dataclasses.fields(Settings)
    for field in dataclasses.fields(get_type_hints(Settings)[table.name])
    for text in BEYOND.get(get_type_hints(get_type_hints(Settings)[table.name])[field.name], ())
]


@pytest.mark.parametrize(("name", "text"), NUMBERS, ids=[f"{name}={text[:20]}" for name, text in NUMBERS])
def test_no_setting_takes_a_number_that_nothing_can_be_computed_with(tmp_path: Path, name: str, text: str) -> None:
    """On the command line and in TOML: one line that names the setting."""
    section, _, key = name.partition(".")
    (tmp_path / "settings.toml").write_text(f"[{section}]\n{key} = {text}\n")
    for arguments in ([f"--{name}={text}"], ["--config", str(tmp_path / "settings.toml")]):
        with pytest.raises(UserError, match=re.escape(name)) as error:
            read(*arguments)
        assert "\n" not in str(error.value)


def test_the_largest_numbers_that_can_be_used(tmp_path: Path) -> None:
    assert changed(Settings(), **{"train.seed": 2**64 - 1, "train.steps": 2**31 - 1}).train.seed == 2**64 - 1
    path = tmp_path / "settings.toml"
    for digits in ("1" * 5000, "1" * 400):
        path.write_text(f"[train]\nlr = {digits}\n")
        with pytest.raises(UserError, match=r"not valid TOML|train\.lr is inf"):
            read("--config", str(path))
    with pytest.raises(UserError, match=r"say it with --train\.minutes"):
        read("--preset", "auto", "--train.minutes", "inf")


def test_a_saved_file_that_was_edited_badly(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    for text, message in [
        ('[train]\nsteps = "7"', "train.steps is '7'; it must be of type int"),
        ('[train]\ndtype = "fp8"', "train.dtype is 'fp8'; choose from auto"),
    ]:
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            load_settings(path)


def test_every_setting_is_explained() -> None:
    """The help is made from the docstrings: a field without one would be a flag without a word."""
    help_text = " ".join(run_train("--help").stdout.split())
    for name in NAMES:
        assert f"--{name}" in help_text
    assert "python -m bytemtp.train corpora/tiny.txt --out" in help_text
    for kind in (ModelConfig, TrainConfig, DataConfig):
        for field in dataclasses.fields(kind):
            hint = get_type_hints(kind)[field.name]
            for choice in get_args(hint) if get_origin(hint) is Literal else ():
                assert choice in help_text


def test_a_run_needs_a_folder() -> None:
    with pytest.raises(UserError, match="--out is missing"):
        read_command(["corpus"])


def test_dashes_in_values_stay() -> None:
    assert read("--data.text-field=c-d").data.text_field == read("--data.text_field", "c-d").data.text_field == "c-d"


def test_wrong_usage_exits_with_2_and_one_line(tmp_path: Path) -> None:
    result = run_train("corpus", "--out", str(tmp_path / "run"), "--model.n_futrue", "8")
    assert result.returncode == 2
    assert result.stderr == (
        "error: unknown setting '--model.n_futrue' in the command line; did you mean '--model.n_future'?\n"
    )
    assert not (tmp_path / "run").exists()


def run_train(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "bytemtp.train", *arguments], capture_output=True, text=True)


@pytest.mark.parametrize(
    ("module", "verb"),
    [
        ("generate", []),
        ("train", []),
        ("report", []),
        ("export", []),
        *(("evaluate", [verb]) for verb in ("bpb", "passk", "execute", "choice", "tree")),
        *(("bench", [verb]) for verb in ("train", "heads", "memory", "data", "decode", "execute")),
    ],
)
def test_every_help_has_a_worked_example(module, verb, capsys):
    """tyro takes what follows a line "Examples:" for a section of its own and leaves it out."""
    name = f"bytemtp.{module}.__main__" if module in ("generate", "bench") else f"bytemtp.{module}"
    with contextlib.suppress(SystemExit):
        importlib.import_module(name).main([*verb, "--help"])
    command = " ".join(["python -m", f"bytemtp.{module}", *verb])
    examples = [line for line in capsys.readouterr().out.splitlines() if command in line and "[OPTIONS]" not in line]
    assert any(len(line.partition(command)[2].split()) > 1 for line in examples), examples


def test_byte_order_mark(tmp_path: Path) -> None:
    """Editors of Windows put one in front."""
    path = tmp_path / "settings.toml"
    path.write_bytes(b"\xef\xbb\xbf[train]\r\nsteps = 7\r\n")
    assert read("--config", str(path)).train.steps == 7
    (tmp_path / "lines.jsonl").write_bytes(b'\xef\xbb\xbf{"a": 1}\n{"a": 2}\n')
    assert read_lines(tmp_path / "lines.jsonl") == [{"a": 1}, {"a": 2}]


def test_paths_that_are_no_utf_8_come_back(tmp_path: Path) -> None:
    info = {"paths": [os.fsdecode(b"/caf\xe9/*.txt")]}
    settings = changed(PRESETS["nano"], **{"data.valid_paths": [os.fsdecode(b"\xff")]})
    write_file(tmp_path / "config.toml", to_toml(settings, info))
    assert load_settings(tmp_path / "config.toml") == (settings, info)
    (tmp_path / "own.toml").write_bytes(b'[data]\ntext_field = "caf\xe9"')
    with pytest.raises(UserError, match=r"own\.toml is not valid TOML: 'utf-8' codec can't decode"):
        read("--config", str(tmp_path / "own.toml"))
