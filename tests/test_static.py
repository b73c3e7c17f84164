"""Linter, format and types: what a tool can see, no reviewer should have to."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("tool", ["ruff check", "ruff format --check", "mypy"])
def test_tool_has_no_complaint(tool):
    outcome = subprocess.run([sys.executable, "-m", *tool.split()], cwd=ROOT, capture_output=True, text=True)
    assert outcome.returncode == 0, f"{tool}:\n{outcome.stdout}{outcome.stderr}"
