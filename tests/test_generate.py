"""The command: exact standard output, comparison, colours, statistics, and one line for every mistake."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import bytemtp
from bytemtp.common.errors import UserError
from bytemtp.decoding.generate import Generation
from bytemtp.generate import __main__ as module
from bytemtp.model.checkpoint import load_model
from bytemtp.reports.terminal import coloured

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
    done = command(one_head_run, "--prompt", "a", "--max-bytes", 3, "--mode", "speculative")
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
        (["--prompt", "a"], "max_bytes"),
        (["--prompt", "a", "--max-bites", "3"], "did you mean '--max_bytes'"),
    ],
)
def test_mistakes_get_one_line(trained_run, arguments, message):
    done = command(trained_run, *arguments)
    text = done.stderr.decode()
    assert done.returncode == 2 and message in text and text.count("\n") == 1 and not done.stdout


PLAIN = ["--prompt", "a", "--max-bytes", "3"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt-file", ".", "--max-bytes", "3"], "cannot read .: Is a directory"),
        ([*PLAIN, "--mode", "tree", "--tree", "nowhere"], "cannot use the tree in nowhere: No such file"),
        ([*PLAIN, "--mode", "tree", "--tree", "."], "cannot use the tree in .: Is a directory"),
        ([*PLAIN, "--tree", "tree"], "--tree is for --mode tree, but the mode is auto"),
        ([*PLAIN, "--draft", "run"], "--draft is for --mode draft, but the mode is auto"),
        ([*PLAIN, "--mode", "ar", "--draft", "run"], "--draft is for --mode draft, but the mode is ar"),
        ([*PLAIN, "--mode", "draft"], "needs a draft model"),
        ([*PLAIN, "--heads", "4"], "heads is 4; it must be from 1 to 3, or 0 for all"),
        ([*PLAIN, "--mode", "ar", "--heads", "4"], "heads is 4; it must be from 1 to 3, or 0 for all"),
        ([*PLAIN, "--temperature", "nan"], "temperature is nan"),
        ([*PLAIN, "--top-p", "2"], "top_p is 2.0"),
        ([*PLAIN, "--dtype", "float16"], "'float16'"),
        ([*PLAIN, "--device", "gpu"], "unknown device 'gpu'; use auto, cpu, cuda or cuda:N"),
        ([*PLAIN, "--device", "meta"], "device 'meta' is not supported"),
        ([*PLAIN, "--device", "cuda:99"], "device 'cuda:99' is not available"),
    ],
)
def test_more_mistakes(trained_run, arguments, message):
    with pytest.raises(UserError) as error:
        module.main([str(trained_run), *arguments])
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "it has no node"),
        ("[1, 2]", "no list of paths of ranks"),
        ('{"a": 1}', "no list of paths of ranks"),
        ("[[1]]", "without its parent or the rank before it"),
        ("[[0]", "Expecting"),
        ("[" * 100_000, "no list of paths of ranks"),
    ],
)
def test_a_bad_tree_is_named(tmp_path, text, message):
    path = tmp_path / "tree.json"
    path.write_text(text)
    with pytest.raises(UserError, match=f"^cannot use the tree in {path}: .*{message}"):
        module.read_tree(path)


def test_a_run_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=f"^{tmp_path}/none does not exist; give a folder"):
        module.main([str(tmp_path / "none"), *PLAIN])


@pytest.mark.parametrize("option", ["--html", "--stats"])
def test_a_place_that_cannot_be_written_is_found_before_anything_is_loaded(tmp_path, monkeypatch, option):
    monkeypatch.setattr(module, "load_model", lambda *_: pytest.fail("it came to loading"))
    for path, reason in ((tmp_path / "no" / "file", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(UserError, match=f"^cannot write {path}: {reason}"):
            module.main(["run", *PLAIN, option, str(path)])


def test_no_bytes_at_all(trained_run, tmp_path):
    outputs = ["--stats", tmp_path / "stats.json", "--html", tmp_path / "page.html"]
    done = command(trained_run, "--prompt", "a", "--max-bytes", 0, "--compare", "ar", *outputs)
    assert (done.returncode, done.stdout) == (0, b"") and b"identical: yes" in done.stderr
    assert json.loads((tmp_path / "stats.json").read_text())["bytes"] == 0


@pytest.mark.parametrize(
    ("engine", "answers"),
    [("native", "yes"), ("torch", r"yes|no, first difference at byte \d+; .* differ by \S+ in float64 logits")],
)
def test_bfloat16_is_for_both_models(trained_run, tmp_path, monkeypatch, engine, answers):
    """In any engine, and in the native one modes are equal.  The page has the answer of `--compare ar` as well."""
    used, logged = [], []

    def load(run, device):
        used.append(load_model(run, device))
        return used[-1]

    monkeypatch.setattr(module, "load_model", load)
    monkeypatch.setattr(module, "write", lambda *_: None)
    monkeypatch.setattr(module, "log", logged.append)
    outputs = ["--stats", str(tmp_path / "stats.json"), "--html", str(tmp_path / "page.html"), "--compare", "ar"]
    draft = ["--mode", "draft", "--draft", str(trained_run)]
    text = ["--prompt", "a", "--max-bytes", "60"]
    module.main([str(trained_run), *text, "--dtype", "bfloat16", "--engine", engine, *outputs, *draft])
    assert [model.dtype for model in used] == [torch.bfloat16] * 2
    stats = json.loads((tmp_path / "stats.json").read_text())
    assert (stats["engine"], stats["dtype"]) == (engine, "bfloat16")
    answer = logged[-1].splitlines()[-1].removeprefix("identical: ")
    assert re.fullmatch(answers, answer)
    assert re.sub("^(yes|no)", r"<strong>\1</strong>", answer) in (tmp_path / "page.html").read_text()


def test_colours_follow_the_drafts_and_spare_characters():
    data = "aé€b".encode() + b"\xe2\x82"
    out = Generation(data, {}, [0, 1, 2, 0, 1, 1, 3, 0, 0])
    text = coloured(out).decode()
    assert re.sub(r"\x1b\[[0-9;]*m", "", text) == "aé€b\ufffd\n"
    assert text.count("\x1b[38") == 5
