"""Train and score the cells of a grid of recipe.toml, and print the table of all that is finished.

python -m experiments.recipe library --seeds 0 1 2 --jobs 2
python -m experiments.recipe library --only far:0.02 n=1

A cell is one `python -m bytemtp.train` in a process of its own and one score on held-out files.  Finished cells are
read from results.jsonl.  `--jobs J` trains J cells at a time with as many threads each as that leaves: where a run goes
by minutes this is a smaller machine for all of them alike.
"""

import argparse
import json
import os
import statistics
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bytemtp.bench.quality import train_and_score
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
        name = self.name.replace(".", "_").replace(" ", "").replace(",", "-")
        return Path("runs/recipe") / f"{self.grid}-{name}-seed{self.seed}"

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
    threads = max(1, len(os.sched_getaffinity(0)) // options.jobs)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(lambda cell: run(cell, grid, threads), [cell for cell in todo if cell.key not in done]))
    print(table(options.grid))


def finished() -> Iterator[dict[str, Any]]:
    if RESULTS.exists():
        yield from map(json.loads, RESULTS.read_text(encoding="utf-8").splitlines())


def run(cell: Cell, grid: dict[str, Any], threads: int) -> None:
    """Train, score, and append the result."""
    settings = [f"--{name}={value}" for name, value in cell.settings.items()]
    cell.folder.parent.mkdir(parents=True, exist_ok=True)
    seed = f"--train.seed={cell.seed}"
    measured = train_and_score(cell.folder, [grid["train"]], [grid["heldout"]], *settings, seed)
    result = {name: measured[name] for name in ("steps", "bytes_seen", "bpb", "bpb_per_head")}
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"key": cell.key, "threads": threads, **result}) + "\n")


def table(grid: str) -> str:
    """Means over the seeds, and each seed."""
    cells: dict[str, list[dict[str, Any]]] = {}
    for line in finished():
        if line["key"]["grid"] == grid:
            cells.setdefault(line["key"]["cell"], []).append(line)
    rows = [row(name, lines) for name, lines in cells.items()]
    return markdown_table(rows, ["cell", "seeds", "steps", "MB seen", "bpb, head 1", "each seed", "head 2"])


def row(name: str, lines: list[dict[str, Any]]) -> list[str]:
    def mean(key: str) -> float:
        return statistics.mean(line[key] for line in lines)

    second = [line["bpb_per_head"][1] for line in lines if len(line["bpb_per_head"]) > 1]
    return [
        name,
        " ".join(str(line["key"]["seed"]) for line in lines),
        f"{mean('steps'):,.0f}",
        f"{mean('bytes_seen') / 1e6:.2f}",
        f"{mean('bpb'):.4f}",
        " ".join(f"{line['bpb']:.4f}" for line in lines),
        f"{statistics.mean(second):.3f}" if second else "",
    ]


if __name__ == "__main__":
    run_main(main)
