"""Command: draw the curves of one run, or of several over each other, and print a table.

python -m bytemtp.report runs/demo                      # writes runs/demo/report.png
python -m bytemtp.report runs/n1 runs/n8 --out n.svg    # overlaid
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from bytemtp.common.cli import run, run_main
from bytemtp.common.errors import UserError
from bytemtp.reports.curves import plot_runs, read_history, run_table
from bytemtp.reports.figures import check_picture, save_picture


@dataclass(frozen=True)
class Command:
    """Draw the curves of one run, or of several over each other, and print a table.

    An example:

        python -m bytemtp.report runs/n1 runs/n8 --out comparison.png
    """

    runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN [RUN ...]")]
    """folders that `python -m bytemtp.train --out` wrote"""
    out: tyro.conf.DisallowNone[Path | None] = None
    """file to write, .png, .svg or .pdf; report.png in the first RUN unless given"""

    def main(self) -> None:
        if not self.runs:
            raise UserError("no RUN given; name the folder of a run")
        out = self.out or self.runs[0] / "report.png"
        histories = [read_history(run) for run in self.runs]
        check_picture(out)
        save_picture(plot_runs(histories), out)
        print(run_table(histories))
        print(f"\npicture: {out}")


def main(arguments: Sequence[str] | None = None) -> None:
    run(Command, "python -m bytemtp.report", arguments)


if __name__ == "__main__":
    run_main(main)
