"""What do eight heads cost head 1, and which schedule of their weight costs least?  See README.md.

The setting harm.init names a cell: the run starts from its weights, of the same seed.
"""

from typing import Any

from bytemtp.common.cli import run_main
from experiments import library
from experiments.grid import Cell, Experiment, cells_of, main, train


def score(cell: Cell) -> dict[str, Any]:
    if "harm.init" not in cell.settings:
        return library.score(cell)
    (first,) = cells_of(EXPERIMENT, cell.preset, [cell.seed], [cell.settings["harm.init"]])
    files = cell.options["train"]
    before, after = train(first, files), train(cell, files, init=first.folder)
    both = {name: before[name] + after[name] for name in before}
    return both | library.scores(cell)


EXPERIMENT = Experiment("harm", score, library.table, library.draw)

if __name__ == "__main__":
    run_main(lambda: main(EXPERIMENT))
