"""Experiments whose models write programs: pass@k on held-out problems, by `python -m bytemtp.evaluate passk`.

A preset names files of problems (problems), and says how many samples each problem gets (samples), for which numbers of
tries it is scored (tries), at which temperature (temperature), and how long a sample may become (max_bytes).
"""

import json
from pathlib import Path
from typing import Any

from bytemtp.bench.quality import run_module
from bytemtp.evaluation.code.problems import read_problems
from experiments.grid import Cell

TIMEOUT = 10
"""Seconds for a program: other cells are at work beside it."""


def passk(cell: Cell) -> dict[str, float]:
    """Of a trained cell, `tiny code pass@1` and so on, from 0 to 1.  UserError if the command fails."""
    return {
        f"{name} pass@{k}": summary[f"pass@{k}"]
        for name, path in cell.options["problems"].items()
        for summary in [summary_of(cell, name, path)]
        for k in cell.options["tries"]
    }


def summary_of(cell: Cell, name: str, path: str) -> dict[str, Any]:
    """summary.json of the command, whose folder is kept, so that a killed one goes on."""
    out, options = Path(f"{cell.folder}.{cell.experiment}-{name.replace(' ', '-')}"), cell.options
    run_module(
        *(cell.folder, "bytemtp.evaluate", "passk", str(cell.folder), "--problems", path, "--out", str(out)),
        *("--samples", str(options["samples"]), "--k", *map(str, options["tries"])),
        *("--temperature", str(options["temperature"]), "--max-bytes", str(options["max_bytes"])),
        *("--workers", "1", "--timeout", str(TIMEOUT)),
    )
    summary: dict[str, Any] = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    return summary


def prompts(cell: Cell, count: int) -> list[bytes]:
    """Of the first problems."""
    path = next(iter(cell.options["problems"].values()))
    return [problem.prompt.encode() for problem in read_problems(Path(path))[:count]]
