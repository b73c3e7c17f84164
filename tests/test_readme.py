"""The README is true: its quickstart and its example run; and it is short.  Its links and options: test_docs.py."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")

SHORT = {"bytemtp.train": ["--train.steps", "4", "--train.compile", "false"]}
"""What makes a command short enough for a test: added to those of that module."""


def fenced_commands(text: str, tag: str) -> list[str]:
    """The lines of code blocks opened by ```bash TAG, with continued lines joined."""
    blocks = re.findall(rf"^```bash {tag}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]


def test_quickstart_runs(tmp_path):
    for name in ("bytemtp", "corpora", "experiments"):
        (tmp_path / name).symlink_to(ROOT / name)
    commands = fenced_commands(README, "quickstart")
    assert len(commands) >= 4
    for command in commands:
        python, flag, module, *arguments = shlex.split(command)
        assert (python, flag) == ("python", "-m")
        program = [sys.executable, "-m", module, *arguments, *SHORT.get(module, [])]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        outcome = subprocess.run(program, cwd=tmp_path, env=environment, capture_output=True)
        assert outcome.returncode == 0, f"{command}\n{outcome.stderr.decode()}"
        assert outcome.stdout or module == "bytemtp.train", f"{command} printed nothing"


def test_python_example_runs(trained_run, tmp_path, monkeypatch, capsys):
    (example,) = re.findall(r"^```python\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/first").symlink_to(trained_run)
    (tmp_path / "corpora").symlink_to(ROOT / "corpora")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(example, names)
    assert "'bytes': 100" in capsys.readouterr().out or names["out"].stats["stopped_by"] == "endoftext"
    assert names["logits"].shape == (names["model"].config.n_future, 8, 512, 264)


def test_readme_is_short():
    assert len(README.splitlines()) <= 200


@pytest.mark.parametrize("target", re.findall(r"`make ([a-z-]+)`", README))
def test_make_targets_exist(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
