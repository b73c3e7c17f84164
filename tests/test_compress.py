"""`python -m bytemtp.compress` and `python -m bytemtp.decompress`, from end to end."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import bytemtp
from bytemtp.common.errors import UserError
from bytemtp.compress.__main__ import main as compress
from bytemtp.decompress.__main__ import main as decompress

TEXT = b"a rose is a rose is a rose\n" * 20 + bytes(range(256))


@pytest.fixture
def files(tmp_path):
    """A text, and where it goes."""
    (tmp_path / "text").write_bytes(TEXT)
    return [str(tmp_path / name) for name in ("text", "text.bmtp", "again")]


def command(name, *arguments) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", f"bytemtp.{name}", *map(str, arguments)]
    return subprocess.run(program, capture_output=True, text=True)


def test_a_file_there_and_back(trained_run, files, capsys):
    text, small, again = files
    compress([str(trained_run), text, "--out", small])
    decompress([str(trained_run), small, "--out", again])
    assert Path(again).read_bytes() == TEXT
    size, model = Path(small).stat().st_size, bytemtp.load(trained_run)
    assert bytemtp.decompress(model, Path(small).read_bytes()) == TEXT
    assert bytemtp.compress(model, TEXT) == Path(small).read_bytes()
    said = rf"796 bytes, compressed {size}, \d+\.\d{{3}} bits a byte, [\d,]+ bytes/s, \d+\.\d\d a pass"
    there, back = capsys.readouterr().err.splitlines()
    assert re.fullmatch(rf"written: {small} \({said}\)", there) and re.fullmatch(rf"written: {again} \({said}\)", back)


def test_an_empty_file(trained_run, files, capsys):
    text, small, again = files
    Path(text).write_bytes(b"")
    compress([str(trained_run), text, "--out", small])
    decompress([str(trained_run), small, "--out", again])
    assert Path(again).read_bytes() == b""
    assert "(0 bytes, compressed 31)" in capsys.readouterr().err


def test_a_pipe_there_and_back(trained_run):
    """Of bytes alone: what is said about them goes to standard error."""
    there = [sys.executable, "-m", "bytemtp.compress", trained_run, "-", "--out", "/dev/stdout"]
    back = [sys.executable, "-m", "bytemtp.decompress", trained_run, "-", "--out", "/dev/stdout"]
    small = subprocess.run(there, input=TEXT, capture_output=True, check=True).stdout
    assert subprocess.run(back, input=small, capture_output=True, check=True).stdout == TEXT


def test_exit_statuses(trained_run, one_head_run, files):
    text, small, again = files
    done = command("compress", trained_run, text, "--out", small)
    assert (done.returncode, done.stdout) == (0, "") and done.stderr.startswith(f"written: {small} (")
    refused = command("decompress", one_head_run, small, "--out", again)
    assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (2, "", 1)
    assert refused.stderr.startswith(f"error: {small} was compressed with another model")
    assert not Path(again).exists() and [path.name for path in Path(again).parent.iterdir()].count("text.bmtp") == 1


def test_another_run_is_refused_before_an_older_output_is_touched(trained_run, one_head_run, files):
    text, small, again = files
    compress([str(trained_run), text, "--out", small])
    Path(again).write_bytes(b"older")
    with pytest.raises(UserError, match="another model"):
        decompress([str(one_head_run), small, "--out", again])
    assert Path(again).read_bytes() == b"older"


def test_a_damaged_file_is_told_and_nothing_is_written(trained_run, files):
    text, small, again = files
    compress([str(trained_run), text, "--out", small])
    whole = Path(small).read_bytes()
    for wrong in (whole[:-1], whole[:50] + b"?" + whole[51:], b"", b"text"):
        Path(small).write_bytes(wrong)
        with pytest.raises(UserError, match=f"^{small} is (damaged or cut off|no compressed file)"):
            decompress([str(trained_run), small, "--out", again])
    assert not Path(again).exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["none", "--out", "x"], "cannot read none: No such file or directory"),
        ([".", "--out", "x"], "cannot read .: Is a directory"),
        (["text", "--out", "none/x"], "cannot write none/x: No such file"),
        (["text", "--out", "."], "cannot write .: Is a directory"),
        (["text"], "--out PATH"),
        (["--out", "x"], "FILE"),
    ],
)
@pytest.mark.parametrize("main", [compress, decompress])
def test_mistakes_are_one_line(trained_run, tmp_path, monkeypatch, main, words, said):
    monkeypatch.chdir(tmp_path)
    Path("text").write_bytes(TEXT)
    with pytest.raises(UserError) as raised:
        main([str(trained_run), *words])
    assert said in str(raised.value) and "\n" not in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["text"]


def test_an_unknown_device_is_told(trained_run, files):
    with pytest.raises(UserError, match="unknown device 'gpu'"):
        compress([str(trained_run), files[0], "--out", files[1], "--device", "gpu"])
