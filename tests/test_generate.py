"""The command: exact standard output, comparison, colours, statistics, and one line for every mistake."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import bytemtp
from bytemtp.decode import Generation
from bytemtp.show import coloured

ROOT = Path(__file__).parent.parent


def command(*arguments, stdin=b""):
    program = [sys.executable, "-m", "bytemtp.generate", *map(str, arguments)]
    return subprocess.run(program, cwd=ROOT, input=stdin, capture_output=True)


def test_standard_output_is_the_new_bytes_and_nothing_else(trained_run, tmp_path):
    stats = tmp_path / "stats.json"
    done = command(trained_run, "--prompt-file", "-", "--max-bytes", 20, "--stats", stats, stdin=b"\xff\x00abc")
    expected = bytemtp.generate(bytemtp.load(trained_run), b"\xff\x00abc", 20, mode="speculative")
    assert (done.returncode, done.stdout) == (0, expected.data)
    names = {"mode", "bytes", "forwards", "bytes_per_forward", "bytes_per_s", "accepted", "accept_rate_by_position"}
    assert names | {"stopped_by"} <= json.loads(stats.read_text()).keys()


def test_comparison_says_identical(trained_run):
    done = command(trained_run, "--prompt", "def ", "--max-bytes", 30, "--compare", "ar")
    assert b"identical: yes" in done.stderr and b"speed-up" in done.stderr


def test_every_mode_writes_the_same(trained_run, tmp_path):
    tree = tmp_path / "tree.json"
    tree.write_text("[[0], [1], [0, 0]]")
    common = (trained_run, "--prompt", "def ", "--max-bytes", 25)
    plain = command(*common, "--mode", "ar").stdout
    assert command(*common, "--mode", "speculative", "--heads", 2).stdout == plain
    assert command(*common, "--mode", "tree", "--tree", tree).stdout == plain
    assert command(*common, "--mode", "draft", "--draft", trained_run).stdout == plain


def test_one_head_says_that_nothing_is_drafted(one_head_run):
    done = command(one_head_run, "--prompt", "a", "--max-bytes", 3)
    assert done.returncode == 0 and b"nothing is drafted" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-bytes", "3"], "give either --prompt TEXT or --prompt-file FILE"),
        (["--prompt", "a", "--prompt-file", "b", "--max-bytes", "3"], "give either"),
        (["--prompt-file", "nowhere", "--max-bytes", "3"], "cannot read nowhere"),
        (["--prompt", "a", "--max-bytes", "-3"], "max_bytes is -3"),
        (["--prompt", "a", "--max-bytes", "3", "--temperature", "-1"], "temperature is -1.0"),
        (["--prompt", "a", "--max-bytes", "3", "--mode", "draft"], "needs a draft model"),
        (["--prompt", "a", "--max-bytes", "3", "--tree", "nowhere"], "cannot use the tree in nowhere"),
        (["--prompt", "a", "--max-bites", "3"], "did you mean '--max_bytes'"),
    ],
)
def test_mistakes_get_one_line(trained_run, arguments, message):
    done = command(trained_run, *arguments)
    text = done.stderr.decode()
    assert done.returncode == 2 and message in text and text.count("\n") == 1 and not done.stdout


def test_colours_follow_the_drafts_and_spare_characters():
    data = "aé€b".encode() + b"\xe2\x82"
    out = Generation(data, {}, [0, 1, 2, 0, 1, 1, 3, 0, 0])
    text = coloured(out).decode()
    assert re.sub(r"\x1b\[[0-9;]*m", "", text) == "aé€b\ufffd\n"
    assert text.count("\x1b[38") == 5
