"""Train and score the cells of a grid of recipe.toml, and print the table of all that is finished.

python -m experiments.recipe library --seeds 0 1 2 --jobs 2
python -m experiments.recipe tinycode --only far:0.02 n=1

A cell is one `python -m bytemtp.train` in a process of its own and one score on held-out files.  Finished cells are
read from results.jsonl.  `--jobs J` trains J cells at a time with as many threads each as that leaves: where a run goes
by minutes this is a smaller machine for all of them alike.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bytemtp.bench.turns import markdown_table
from bytemtp.common.cli import run_main

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results.jsonl"


@dataclass(frozen=True)
class Cell:
    """One training run."""

    grid: str
    name: str
    seed: int
    settings: dict[str, Any]

    @property
    def folder(self) -> Path:
        return Path("runs/recipe") / f"{self.grid}-{self.name}-seed{self.seed}"

    @property
    def key(self) -> dict[str, Any]:
        return {"grid": self.grid, "cell": self.name, "seed": self.seed, "settings": self.settings}


def main() -> None:
    grids = tomllib.loads((FOLDER / "recipe.toml").read_text(encoding="utf-8"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("grid", choices=list(grids))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="+", metavar="CELL", help="these cells; all unless given")
    parser.add_argument("--jobs", type=int, default=1, help="cells at a time")
    options = parser.parse_args()
    grid = grids[options.grid]
    if unknown := set(options.only or ()) - set(grid["cells"]):
        parser.error(f"unknown cell {sorted(unknown)[0]!r}; choose from {', '.join(grid['cells'])}")
    done = [line["key"] for line in finished()]
    todo = [
        Cell(options.grid, name, seed, grid["common"] | changes)
        for seed in options.seeds
        for name, changes in grid["cells"].items()
        if options.only is None or name in options.only
    ]
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(lambda cell: run(cell, grid, options.jobs), [cell for cell in todo if cell.key not in done]))
    print(table(options.grid))


def finished() -> Iterator[dict[str, Any]]:
    if RESULTS.exists():
        yield from map(json.loads, RESULTS.read_text(encoding="utf-8").splitlines())


def run(cell: Cell, grid: dict[str, Any], jobs: int) -> None:
    """Train, score, and append the result."""
    threads = max(1, len(os.sched_getaffinity(0)) // jobs)
    settings = [f"--{name}={value}" for name, value in cell.settings.items()]
    seed = f"--train.seed={cell.seed}"
    module("bytemtp.train", threads, grid["train"], "--out", cell.folder, "--overwrite", *settings, seed)
    measured = json.loads((latest_step(cell.folder) / "state.json").read_text(encoding="utf-8"))
    result = {"steps": measured["step"], "bytes_seen": measured["bytes_seen"], "threads": threads}
    if "heldout" in grid:
        score = cell.folder / "bpb.json"
        module("bytemtp.evaluate", threads, "bpb", cell.folder, grid["heldout"], "--json", score)
        bits = json.loads(score.read_text(encoding="utf-8"))
        result |= {name: bits[name] for name in ("bpb", "bpb_per_head")}
    if "problems" in grid:
        out = cell.folder / "passk"
        arguments = ["--problems", grid["problems"], "--out", out, *map(str, grid["passk"])]
        module("bytemtp.evaluate", threads, "passk", cell.folder, *arguments)
        summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
        result |= {name: value for name, value in summary.items() if name.startswith("pass@")}
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"key": cell.key, **result}) + "\n")


def module(name: str, threads: int, *arguments: object) -> None:
    """One command of bytemtp, its output in a log beside its folder."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", name, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")


def latest_step(folder: Path) -> Path:
    checkpoints = folder / "checkpoints"
    return checkpoints / (checkpoints / "latest").read_text(encoding="utf-8").strip()


def table(grid: str) -> str:
    """Means over the seeds, and each seed."""
    cells: dict[str, list[dict[str, Any]]] = {}
    for line in finished():
        if line["key"]["grid"] == grid:
            cells.setdefault(line["key"]["cell"], []).append(line)
    rows = [row(name, lines) for name, lines in cells.items()]
    return markdown_table(
        rows, ["cell", "seeds", "steps", "MB seen", "bpb, head 1", "each seed", "head 2", "pass@1, %"]
    )


def row(name: str, lines: list[dict[str, Any]]) -> list[str]:
    def mean(key: str) -> float:
        return statistics.mean(line[key] for line in lines)

    heads = [line["bpb_per_head"] for line in lines if len(line.get("bpb_per_head", [])) > 1]
    has_bits, has_programs = "bpb" in lines[0], "pass@1" in lines[0]
    return [
        name,
        " ".join(str(line["key"]["seed"]) for line in lines),
        f"{mean('steps'):,.0f}",
        f"{mean('bytes_seen') / 1e6:.2f}",
        f"{mean('bpb'):.4f}" if has_bits else "",
        " ".join(f"{line['bpb']:.4f}" for line in lines) if has_bits else "",
        f"{statistics.mean(bits[1] for bits in heads):.3f}" if heads else "",
        " ".join(f"{100 * line['pass@1']:.1f}" for line in lines) if has_programs else "",
    ]


if __name__ == "__main__":
    run_main(main)
