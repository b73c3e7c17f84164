"""Contestants in turn: A B C A B C ..., each in a fresh process, medians at the end."""

import dataclasses
import json
import platform
import statistics
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import torch

from bytemtp.bench.shapes import Shape
from bytemtp.common.errors import UserError
from bytemtp.common.runtime import log

Contestant = tuple[str, Shape, dict[str, Any]]
"""worker's name, shape, and its keyword arguments"""


def take_turns(contestants: Mapping[str, Contestant], rounds: int) -> dict[str, dict[str, Any]]:
    """Medians over the rounds of everything each contestant measures, with the spread of its step time."""
    results: dict[str, list[dict[str, Any]]] = {label: [] for label in contestants}
    for turn in range(rounds):
        for label, (worker, shape, arguments) in contestants.items():
            result = measure(worker, shape, arguments)
            results[label].append(result)
            log(f"round {turn + 1}/{rounds}  {label}: {json.dumps({k: round(v, 4) for k, v in result.items()})}")
    return {label: medians(measured) for label, measured in results.items()}


def measure(worker: str, shape: Shape, arguments: dict[str, Any]) -> dict[str, Any]:
    """One run of one worker.  UserError with the worker's last words if it fails."""
    spec = json.dumps({"shape": dataclasses.asdict(shape), **arguments})
    command = [sys.executable, "-W", "ignore", "-m", "bytemtp.bench.worker", worker, spec]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        told = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]  # killed for memory, perhaps
        raise UserError(f"measuring {worker} failed: {told[-1]}")
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def medians(measured: list[dict[str, Any]]) -> dict[str, Any]:
    out = {name: statistics.median(result[name] for result in measured) for name in measured[0]}
    if "step_s" in out:
        times = [result["step_s"] for result in measured]
        out |= {"step_s_min": min(times), "step_s_max": max(times)}
    return out


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else torch.cpu.get_capabilities()["cpu_name"]
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def markdown_table(rows: list[list[Any]], header: list[str]) -> str:
    """A Markdown table, columns aligned."""
    cells = [header, ["---"] * len(header), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    return "\n".join("| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in cells)
