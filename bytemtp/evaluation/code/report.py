"""The report on pass@k: a table for the terminal, a figure, and an HTML page that stands alone.

The page loads nothing and runs no script; the figure is in it.  Whatever a model or a problem wrote is escaped.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bytemtp.common.errors import UserError
from bytemtp.common.files import write_file
from bytemtp.evaluation.code.problems import Problem
from bytemtp.reports.figures import COLOURS, describe, inline_svg
from bytemtp.reports.html import render

SHOWN_FAILURES = 60
SHOWN_CHARACTERS = 600
"""Of a text by a model or a problem."""


def ks_of(summary: dict[str, Any]) -> list[int]:
    """The k that are reported."""
    names = (name.removeprefix("pass@") for name in summary["cells"][0] if name.startswith("pass@"))
    return sorted(int(name) for name in names if name.isdigit())


def passk_table(summary: dict[str, Any]) -> str:
    """One row a cell, scores in percent with their 95 % intervals."""
    ks = ks_of(summary)
    rows = [["temperature", "top-p", *(f"pass@{k}" for k in ks)]]
    for cell in summary["cells"]:
        rows.append([f"{cell['temperature']:g}", f"{cell['top_p']:g}", *(_with_interval(cell, k) for k in ks)])
    if "oracle" in summary:
        rows.append(["oracle*", "", *(_oracle_text(summary["oracle"], k) for k in ks)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    notes = [f"* {summary['oracle']['note']}"] if "oracle" in summary else []
    return "\n".join([*lines, *notes, "", _counts(summary)])


def _counts(summary: dict[str, Any]) -> str:
    text = f"{summary['problems']} problems, {summary['samples']:,} samples"
    if "programs_per_s" in summary:
        text += f", executed in {summary['seconds']:.1f} s at {summary['programs_per_s']:.1f} programs/s"
    if summary.get("not_judged"):
        text += f"; {len(summary['not_judged'])} problems could not be judged (not_judged in summary.json)"
    return text + "; intervals: 95 %, bootstrap over problems"


def _with_interval(cell: dict[str, Any], k: int) -> str:
    low, high = cell[f"pass@{k}_interval"]
    return f"{100 * cell[f'pass@{k}']:.1f} ({100 * low:.1f}-{100 * high:.1f})"


def _oracle_text(oracle: dict[str, Any], k: int) -> str:
    best = oracle[f"pass@{k}"]
    return f"{100 * best['value']:.1f} at {best['temperature']:g}/{best['top_p']:g}"


def plot_passk(summary: dict[str, Any]) -> Figure:
    """pass@k over k, a line a cell, and over temperature, a line a k, where there are several temperatures."""
    several = len({cell["temperature"] for cell in summary["cells"]}) > 1
    figure = Figure(figsize=(10 if several else 5.5, 4), dpi=130, layout="constrained")
    axes = figure.subplots(1, 1 + several, squeeze=False)[0]
    _draw_over_k(axes[0], summary)
    if several:
        _draw_over_temperature(axes[1], summary)
    for ax in axes:
        ax.set_ylim(bottom=0)
        ax.legend(frameon=False, fontsize=8)
    return figure


def _draw_over_k(ax: Axes, summary: dict[str, Any]) -> None:
    ks = ks_of(summary)
    for number, cell in enumerate(summary["cells"]):
        colour = COLOURS[number % len(COLOURS)]
        label = f"T = {cell['temperature']:g}, top-p {cell['top_p']:g}"
        ax.plot(ks, [100 * cell[f"pass@{k}"] for k in ks], "o-", color=colour, label=label)
        low, high = zip(*(cell[f"pass@{k}_interval"] for k in ks), strict=True)
        ax.fill_between(ks, [100 * x for x in low], [100 * x for x in high], color=colour, alpha=0.12, linewidth=0)
    ax.set_xscale("log")
    ax.set_xticks(ks, [str(k) for k in ks])
    ax.minorticks_off()
    describe(ax, "k, tries (bands: 95 % bootstrap over problems)", "problems solved (%)", "pass@k")


def _draw_over_temperature(ax: Axes, summary: dict[str, Any]) -> None:
    top_ps = sorted({cell["top_p"] for cell in summary["cells"]})
    dashes = ("-", "--", ":", "-.")
    for number, k in enumerate(ks_of(summary)):
        for style, top_p in enumerate(top_ps):
            cells = [cell for cell in summary["cells"] if cell["top_p"] == top_p]
            cells.sort(key=lambda cell: cell["temperature"])
            label = f"pass@{k}" + (f", top-p {top_p:g}" if len(top_ps) > 1 else "")
            ax.plot(
                [cell["temperature"] for cell in cells],
                [100 * cell[f"pass@{k}"] for cell in cells],
                "o" + dashes[style % len(dashes)],
                color=COLOURS[number % len(COLOURS)],
                label=label,
            )
    describe(ax, "temperature", "problems solved (%)", "pass@k by temperature")


def write_report(
    folder: Path, summary: dict[str, Any], results: Iterable[dict[str, Any]], problems: Sequence[Problem]
) -> None:
    """Write passk.png and report.html into `folder`.  UserError if they cannot be written."""
    try:
        plot_passk(summary).savefig(folder / "passk.png")
        write_file(folder / "report.html", page(summary, results, problems))
    except OSError as error:
        raise UserError(f"cannot write the report to {folder}: {error.strerror}") from error


def page(summary: dict[str, Any], results: Iterable[dict[str, Any]], problems: Sequence[Problem]) -> str:
    """The HTML page."""
    verdicts = {name for cell in summary["cells"] for name in cell["verdicts"]}
    ks = ks_of(summary)
    return render(
        "passk.html",
        title="pass@k",
        summary=summary,
        ks=ks,
        scores=[f"pass@{k}, %" for k in ks],
        counts=_counts(summary),
        with_interval=_with_interval,
        oracle_text=_oracle_text,
        figure=inline_svg(plot_passk(summary), "pass@k over k and temperature"),
        verdicts=sorted(verdicts, key=lambda name: (name != "passed", name)),
        failures=_first_failures(results, problems),
        room=SHOWN_FAILURES,
        characters=SHOWN_CHARACTERS,
    )


def _first_failures(
    results: Iterable[dict[str, Any]], problems: Sequence[Problem]
) -> list[tuple[Problem, dict[str, Any]]]:
    """Each problem that has a failing sample, and the first of these."""
    by_task: dict[str, dict[str, Any]] = {}
    for line in results:
        if not line["passed"]:
            by_task.setdefault(line["task_id"], line)
    return [(problem, by_task[problem.task_id]) for problem in problems if problem.task_id in by_task]
