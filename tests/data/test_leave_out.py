"""What lies in a corpus and is none of it: litter, runs and other outputs, held-out files, what a pattern says."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import fsspec
import pytest

from bytemtp.common.errors import UserError
from bytemtp.common.settings import Settings, to_toml
from bytemtp.data.leave_out import LeaveOut, held_out_paths
from bytemtp.data.sources import SkipLog, absolute, find
from bytemtp.data.stream import stream


def keys(*paths: str | Path, log: SkipLog | None = None, held_out: tuple[str, ...] = (), **options: Any) -> list[str]:
    leave_out = LeaveOut(held_out=held_out_paths(held_out), **options)
    return [source.key for source in find([*map(str, paths)], log or SkipLog("error"), leave_out)]


def make(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("content")
    return folder


def make_run(folder: Path) -> Path:
    make(folder, "metrics.jsonl", "checkpoints/step-00000001/model.safetensors", "stdin.bytes")
    (folder / "config.toml").write_text(to_toml(Settings(), {"paths": ["a"]}))
    return folder


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder as people have it: text, litter, and outputs of our commands of every kind."""
    project = make(tmp_path / "project", "a.txt", "src/b.txt", "src/b.log", "runs/notes.txt", ".env")
    make(project, ".git/HEAD", "src/.DS_Store", "src/__pycache__/b.pyc", "src/._b.txt", "half.partial")
    make_run(project / "runs/a")
    make_run(project / "b")
    make(project, "step/model.safetensors", "step/state.json", "exported/model.safetensors", "judged/results.jsonl")
    (project / "exported/config.json").write_text('{"vocab_size": 257}')
    (project / "judged/summary.json").write_text('{"pass@1": 0.5, "problems": 2, "samples": 4}')
    (project / "judged/settings.json").write_text("{")
    return project


CORPUS = [".env", "a.txt", "runs/notes.txt", "src/b.log", "src/b.txt"]


def test_litter_and_outputs_are_left_out_and_counted(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = SkipLog("error")
    assert keys(project, log=log) == CORPUS
    assert log.left_out == {
        ".git": 1, ".DS_Store": 1, "__pycache__": 1, "._*": 1, "*.partial": 1,
        "run folder": 2, "checkpoint": 1, "exported model": 1, "folder of judged samples": 1,
    }  # fmt: skip
    assert keys(f"file://{project}") == CORPUS
    assert keys(project / "*") == sorted(set(CORPUS) - {".env"}), "a shell's star matches no hidden files"
    assert keys(project / "**/*") == sorted(set(CORPUS) - {".env"})
    monkeypatch.chdir(project)
    assert keys(".") == CORPUS
    assert keys("**/*.txt") == ["a.txt", "runs/notes.txt", "src/b.txt"]
    assert len(keys(project, defaults=False)) > 20


def test_a_run_that_is_about_to_begin(tmp_path: Path) -> None:
    make(tmp_path, "a.txt", "runs/a/lock", "runs/a/stdin.partial/stdin.bytes", "locked/lock", "locked/key")
    assert keys(tmp_path) == ["a.txt", "locked/key", "locked/lock"]


def test_files_of_a_run_can_be_named(project: Path) -> None:
    run = project / "runs/a"
    assert keys(run / "stdin.bytes", project / ".git/HEAD") == ["stdin.bytes", "HEAD"]
    for path in (run, run / "*", project / "runs/a*", f"file://{run}"):
        with pytest.raises(UserError, match=r"no file to read in .* but what is left out: .*run folder; name one that"):
            keys(path)
    assert keys(run, project / "a.txt") == ["a.txt"], "`*` of a shell names runs, too"


@pytest.mark.parametrize("text", ['model = "b"', "[run]\nx = 1", "[model", '[model]\n[train]\nrun = "3"'])
def test_another_config_makes_no_run(tmp_path: Path, text: str) -> None:
    make(tmp_path, "checkpoints/notes.txt", "metrics.jsonl")
    (tmp_path / "config.toml").write_text(text)
    (tmp_path / "config.json").write_text("[]")
    (tmp_path / "summary.json").write_text(json.dumps({"problems": 3}))
    assert len(keys(tmp_path)) == 5


def test_what_cannot_be_read_is_no_output(tmp_path: Path) -> None:
    make(tmp_path, "a.txt", "b/c.txt")
    (tmp_path / "b/config.toml").symlink_to(tmp_path / "nothing")
    log = SkipLog("skip")
    assert [source.key for source in find([tmp_path], log)] == ["a.txt", "b/c.txt"]
    assert log.listed == [(str(tmp_path / "b/config.toml"), "is a symbolic link to nothing")]
    (tmp_path / "settings.json").write_text("[" * 100_000)
    (tmp_path / "config.toml").write_text("x = " + "1" * 5000)
    assert keys(tmp_path / "*.*") == ["a.txt", "config.toml", "settings.json"]


PATTERNS = {
    "*.log": [".env", "a.txt", "runs/notes.txt", "src/b.txt"],
    "src": [".env", "a.txt", "runs/notes.txt"],
    "src/": [".env", "a.txt", "runs/notes.txt"],
    "./src/**": [".env", "a.txt", "runs/notes.txt"],
    "src/*.txt": [".env", "a.txt", "runs/notes.txt", "src/b.log"],
    "**/b.*": [".env", "a.txt", "runs/notes.txt"],
    "project/src": [".env", "a.txt", "runs/notes.txt"],
    "*/notes.txt": [".env", "a.txt", "src/b.log", "src/b.txt"],
    "[ab].txt": [".env", "runs/notes.txt", "src/b.log"],
    "A.TXT": CORPUS,
}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns(project: Path, pattern: str) -> None:
    log = SkipLog("error")
    assert keys(project, patterns=(pattern,), log=log) == PATTERNS[pattern]
    assert (pattern in log.left_out) == (PATTERNS[pattern] != CORPUS)
    assert keys(f"file://{project}", patterns=(pattern,)) == PATTERNS[pattern]
    visible = [key for key in PATTERNS[pattern] if key != ".env"]
    assert keys(project / "**/*", patterns=(pattern,)) == visible


def test_patterns_hold_for_files_that_a_shell_names(project: Path) -> None:
    assert keys(project / "src/b.log", project / "src/b.txt", patterns=("*.log",)) == ["b.txt"]
    memory = fsspec.filesystem("memory")
    memory.pipe({"/corpus/a.txt": b"a", "/corpus/a.log": b"a", "/corpus/.git/x": b"a"})
    try:
        assert keys("memory://corpus", patterns=("*.log",)) == ["a.txt"]
        assert keys("memory://corpus", held_out=("memory://corpus/a.log",)) == ["a.txt"]
        assert keys("memory://corpus/a.log", "memory://corpus/a.txt", patterns=("*.log",)) == ["a.txt"]
    finally:
        memory.rm("/corpus", recursive=True)


def test_held_out_paths_inside_are_left_out(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project.parent)
    for named in ("project/src", str(project / "src"), "project/src/", "project/../project/s*"):
        assert keys("project", held_out=(named,)) == [".env", "a.txt", "runs/notes.txt"]
        assert keys(project / "**", held_out=(named,)) == ["a.txt", "runs/notes.txt"]
    assert keys("project", held_out=("project/**/*.txt",)) == [".env", "src/b.log"]
    log = SkipLog("error")
    assert keys(project, held_out=("project/a.txt", "memory://else"), log=log) == sorted(set(CORPUS) - {"a.txt"})
    assert log.left_out["held out by data.valid_paths"] == 1
    batches = stream("project", 64, held_out=["project/src", "project/runs", "project/.env"], n_future=1)
    [batch] = batches
    assert batches.left_out["held out by data.valid_paths"] == 3
    assert bytes(batch.octets[0, :7].tolist()) == b"content" and batch.lengths.tolist() == [8]


def test_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "x", "a.txt", "deep/b.txt")
    monkeypatch.chdir(tmp_path / "x")
    for path in (".", "a.txt", "*.txt", "**/*.txt", "deep/", "../x", "-", "memory://a/b"):
        whole = absolute(path)
        assert whole == path if path in ("-", "memory://a/b") else os.path.isabs(whole)
        if ":" not in path:
            assert keys(whole) == keys(path)
    (tmp_path / "x/link").symlink_to(tmp_path / "x/deep")
    assert keys(absolute("link/../a.txt")) == keys("link/../a.txt") == ["a.txt"]
    (tmp_path / "[x]").mkdir()
    monkeypatch.chdir(make(tmp_path / "[x]", "c.txt"))
    assert keys(absolute("*.txt")) == keys(absolute("c.txt")) == ["c.txt"]


def test_names_that_are_no_utf_8(tmp_path: Path) -> None:
    """Linux takes any bytes for a name; they come back as they were, in cursors, messages and splits."""
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(folder)
    for name in (b"a\xff.txt", b"b.txt", b"\xfe.gz"):
        with open(folder + b"/" + name, "wb") as file:
            file.write(b"abc" * 100)
    program = (
        "import bytemtp, sys\n"
        "options = dict(on_corrupt='skip', exclude=[sys.argv[2]], split='train', valid_fraction=.1)\n"
        "kept = bytemtp.stream(sys.argv[1], 32, 2, **options)\n"
        "first = next(kept)\n"
        "print(kept.skipped_count + len(list(kept)) > 2, len(first.cursor.corpus))\n"
        "list(bytemtp.stream(sys.argv[1], 32))\n"
    )
    command = [sys.executable, "-c", program, folder, b"a\xff*"]
    result = subprocess.run(command, capture_output=True, cwd=Path(__file__).parents[2])
    assert result.stdout == b"True 16\n"
    assert b"UserError" in result.stderr or b"Damaged" in result.stderr
    assert b"UnicodeEncodeError" not in result.stderr
