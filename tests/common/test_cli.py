"""Command lines: which words are values, whatever they look like."""

import errno
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pytest
import tyro
from hypothesis import given
from hypothesis import strategies as st

from bytemtp.common.cli import OPTION, parse, run_main
from bytemtp.common.errors import UserError
from bytemtp.decoding.generate import generate
from bytemtp.evaluation.choice import Command as Choice
from bytemtp.generate.__main__ import Command as Generate
from bytemtp.generate.__main__ import main as generate_main
from bytemtp.model.checkpoint import load_model
from bytemtp.train import read_command


@dataclass(frozen=True)
class Everything:
    """One option of each kind."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """run"""
    text: str = ""
    """text"""
    maybe: tyro.conf.DisallowNone[str | None] = None
    """text or nothing"""
    texts: tuple[str, ...] = ()
    """texts"""
    out: tyro.conf.DisallowNone[Path | None] = None
    """path"""
    kind: Literal["a", "b"] = "a"
    """choice"""
    top_k: int = 0
    """number"""
    utf8: tyro.conf.FlagCreatePairsOff[bool] = False
    """flag"""


def read(*words: str) -> Everything:
    return parse(Everything, "test", ["RUN", *words])


SPECIAL = [
    *("--", "-", "-e", "-- x", "---", "-1", "=", "-=-"),
    *("--text", "--top-k=3", "--help", "-h", "--utf8", "--no"),
]
WORDS = st.text(st.characters(exclude_characters="\0"), max_size=8) | st.sampled_from(SPECIAL)
"""What a shell can pass; bytes that are no UTF-8 come as surrogates."""


@given(text=WORDS)
def test_any_word_after_an_option_for_a_text_is_its_value(text):
    for words in (["--text", text], [f"--text={text}"]):
        assert read(*words, "--top-k", "3") == Everything(Path("RUN"), text=text, top_k=3)
    assert read("--maybe", text, "--utf8") == Everything(Path("RUN"), maybe=text, utf8=True)


def is_option(word: str) -> bool:
    return word in ("-h", "--help") or word.partition("=")[0] in ("--text", "--top-k", "--top_k", "--utf8")


@given(first=WORDS.filter(lambda word: not is_option(word)), others=st.lists(WORDS, max_size=3))
def test_a_list_of_texts_ends_where_the_next_option_is(first, others):
    others = [word for word in others if not is_option(word) and not OPTION.match(word)]
    expected = Everything(Path("RUN"), texts=(first, *others), top_k=3)
    assert read("--texts", first, *others, "--top_k", "3") == expected
    assert read("--top_k=3", f"--texts={first}", *others) == expected
    assert read("--texts", "--top_k", "3").texts == (), "an empty list"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "--utf8"], "--out"),
        (["--texts", "a", "--uft8"], "unknown setting '--uft8' in the command line; did you mean '--utf8'"),
        (["--texts", "a", "--text"], "--text"),
        (["--top_k", "-e"], "--top_k"),
        (["--kind", "-e"], "--kind"),
        (["--text"], "--text"),
        (["--text", "a", "--b"], "unknown setting '--b' in the command line"),
        (["-e"], "-e"),
        (["--texts", "a", "--out", "b", "--texts=c"], "--texts is given twice; name all that it takes behind one"),
    ],
)
def test_what_is_none_is_told(words, message):
    with pytest.raises(UserError, match=message) as error:
        read(*words)
    assert "\n" not in str(error.value) and "\0" not in str(error.value)


def test_a_path_may_begin_with_a_dash():
    assert read("--out", "-x.json").out == read("--out=-x.json").out == Path("-x.json")


def test_options_of_real_commands(tmp_path):
    arguments = ["RUN", "--max-bytes", "3", "--prompt", "-- x", "--stop", "--", "-e", "--mode", "ar"]
    command = parse(Generate, "test", arguments)
    assert (command.prompt, command.stop, command.mode) == ("-- x", ("--", "-e"), "ar")
    assert parse(Choice, "test", ["RUN", "--tasks", "t", "--between", "--"]).between == "--"
    words = [
        "--data.valid_paths",
        "-e",
        "--x",
        "--data.text-field",
        "--resume",
        "corpus",
        "--out",
        str(tmp_path / "out"),
    ]
    with pytest.raises(UserError, match="unknown setting '--x'"):
        read_command(words)
    words.remove("--x")
    assert read_command(words).settings.data.text_field == "--resume"
    assert read_command(words).settings.data.valid_paths == ("-e",)
    assert read_command(words).resume is False
    assert read_command(["corpus", "--out", "-run"]).out == Path("-run")


def test_a_prompt_of_dashes_is_continued(trained_run, capsysbinary):
    generate_main([str(trained_run), "--prompt", "-- x", "--max-bytes", "3", "--stop", "--"])
    assert capsysbinary.readouterr().out == generate(load_model(trained_run), b"-- x", 3, stop=[b"--"]).data


def test_a_folder_that_nobody_may_read_is_one_line(capsys):
    def refuse():
        raise PermissionError(errno.EACCES, "Permission denied", "of another/run")

    with pytest.raises(SystemExit, match="2"):
        run_main(refuse)
    assert capsys.readouterr().err == "error: of another/run: Permission denied\n"


def test_streams_that_the_caller_has_closed():
    """Python has None for them, which no print to standard error and no progress bar expects."""
    said = "print(sys.stdin.read() + chr(0xDC80), file=sys.stderr); print('out'); sys.stderr.isatty()"
    program = f"import sys; from bytemtp.common.cli import run_main; run_main(lambda: exec({said!r}))"
    for closed in ("<&-", "2>&-", "<&- >&- 2>&-"):
        done = subprocess.run(["sh", "-c", f'"$0" -c "$1" {closed}', sys.executable, program], stdin=subprocess.DEVNULL)
        assert done.returncode == 0
