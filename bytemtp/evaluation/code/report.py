"""The report on pass@k: a table for the terminal, a figure, and an HTML page that stands alone.

The page loads nothing and runs no script; the figure is in it.  Whatever a model or a problem wrote is escaped.
"""

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bytemtp.common.errors import UserError
from bytemtp.common.files import write_file
from bytemtp.evaluation.code.problems import Problem

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Okabe & Ito's, which colour-blind readers can tell apart."""
SHOWN_FAILURES = 60
SHOWN_CHARACTERS = 600
"""Of a text by a model or a problem."""

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #16181c; background: #fff; margin: 2rem auto; max-width: 70rem;
  padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; }
th, td { padding: .25rem .8rem; border-bottom: 1px solid #d5d8dd; text-align: right; }
th:first-child, td:first-child { text-align: left; } th { font-weight: 600; }
.faint { color: #5c626b; } .oracle td { font-style: italic; background: #fff6e5; }
.bar { display: inline-block; height: .7rem; background: #0072b2; vertical-align: middle; margin-left: .6rem; }
.track { display: inline-block; width: 8rem; text-align: left; }
img { max-width: 100%; height: auto; }
details { border-bottom: 1px solid #d5d8dd; padding: .35rem 0; } summary { cursor: pointer; }
pre { background: #f4f5f7; padding: .7rem; overflow-x: auto; white-space: pre-wrap; overflow-wrap: anywhere; }
.new { background: #ffe3d9; }
"""


def ks_of(summary: dict[str, Any]) -> list[int]:
    """The k that are reported."""
    names = (name.removeprefix("pass@") for cell in summary["cells"] for name in cell if name.startswith("pass@"))
    return sorted({int(name) for name in names if name.isdigit()})


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
    return text + "; intervals: 95 %, bootstrap over problems"


def _with_interval(cell: dict[str, Any], k: int) -> str:
    if f"pass@{k}" not in cell:
        return "-"
    low, high = cell[f"pass@{k}_interval"]
    return f"{100 * cell[f'pass@{k}']:.1f} ({100 * low:.1f}-{100 * high:.1f})"


def _oracle_text(oracle: dict[str, Any], k: int) -> str:
    best = oracle.get(f"pass@{k}")
    return f"{100 * best['value']:.1f} at {best['temperature']:g}/{best['top_p']:g}" if best else "-"


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
        ax.set_ylabel("problems solved (%)")
        ax.grid(alpha=0.3)
        ax.legend(fontsize=8)
    return figure


def _draw_over_k(ax: Axes, summary: dict[str, Any]) -> None:
    for number, cell in enumerate(summary["cells"]):
        ks = [k for k in ks_of(summary) if f"pass@{k}" in cell]
        colour = COLOURS[number % len(COLOURS)]
        label = f"T = {cell['temperature']:g}, top-p {cell['top_p']:g}"
        ax.plot(ks, [100 * cell[f"pass@{k}"] for k in ks], "o-", color=colour, label=label)
        low, high = zip(*(cell[f"pass@{k}_interval"] for k in ks), strict=True)
        ax.fill_between(ks, [100 * x for x in low], [100 * x for x in high], color=colour, alpha=0.12, linewidth=0)
    ax.set_xscale("log")
    ax.set_xticks(ks_of(summary), [str(k) for k in ks_of(summary)])
    ax.minorticks_off()
    ax.set_xlabel("k, tries (bands: 95 % bootstrap over problems)")
    ax.set_title("pass@k", fontsize=10)


def _draw_over_temperature(ax: Axes, summary: dict[str, Any]) -> None:
    top_ps = sorted({cell["top_p"] for cell in summary["cells"]})
    dashes = ("-", "--", ":", "-.")
    for number, k in enumerate(ks_of(summary)):
        for style, top_p in enumerate(top_ps):
            cells = [cell for cell in summary["cells"] if cell["top_p"] == top_p and f"pass@{k}" in cell]
            cells.sort(key=lambda cell: cell["temperature"])
            label = f"pass@{k}" + (f", top-p {top_p:g}" if len(top_ps) > 1 else "")
            ax.plot(
                [cell["temperature"] for cell in cells],
                [100 * cell[f"pass@{k}"] for cell in cells],
                "o" + dashes[style % len(dashes)],
                color=COLOURS[number % len(COLOURS)],
                label=label,
            )
    ax.set_xlabel("temperature")
    ax.set_title("pass@k by temperature", fontsize=10)


def write_report(
    folder: Path, summary: dict[str, Any], results: Iterable[dict[str, Any]], problems: Sequence[Problem]
) -> None:
    """Write passk.png and report.html into `folder`.  UserError if they cannot be written."""
    picture = io.BytesIO()
    plot_passk(summary).savefig(picture, format="png")
    try:
        (folder / "passk.png").write_bytes(picture.getvalue())
        write_file(folder / "report.html", page(summary, results, problems, picture.getvalue()))
    except OSError as error:
        raise UserError(f"cannot write the report to {folder}: {error.strerror}") from error


def page(
    summary: dict[str, Any], results: Iterable[dict[str, Any]], problems: Sequence[Problem], picture: bytes
) -> str:
    """The HTML page."""
    encoded = base64.b64encode(picture).decode()
    parts = [
        "<h1>pass@k</h1>",
        f'<p class="faint">{escape(_counts(summary))}</p>',
        _cells_table(summary),
        f'<p><img alt="pass@k over k and temperature" src="data:image/png;base64,{encoded}"></p>',
        "<h2>By family</h2>",
        *(_family_table(cell, ks_of(summary)) for cell in summary["cells"]),
        "<h2>Verdicts</h2>",
        _verdict_table(summary["cells"]),
        "<h2>Samples that failed</h2>",
        _failures(list(results), problems),
    ]
    head = f'<meta charset="utf-8"><title>pass@k</title><style>{STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n' + "\n".join(parts) + "\n</body></html>\n"


def _html_table(header: Sequence[str], rows: Iterable[Sequence[str]], last: str = "") -> str:
    """Cells are HTML already; `last` is a row that has been made."""
    head = "".join(f"<th>{cell}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}{last}</table>"


def _cells_table(summary: dict[str, Any]) -> str:
    ks = ks_of(summary)
    rows = [
        [
            f"{cell['temperature']:g}",
            f"{cell['top_p']:g}",
            *(_with_interval(cell, k) for k in ks),
            f"{cell['samples']:,}",
        ]
        for cell in summary["cells"]
    ]
    header = ["temperature", "top-p", *(f"pass@{k}, %" for k in ks), "samples"]
    if "oracle" not in summary:
        return _html_table(header, rows)
    best = "".join(f"<td>{_oracle_text(summary['oracle'], k)}</td>" for k in ks)
    row = f'<tr class="oracle"><td>oracle</td><td></td>{best}<td></td></tr>'
    return _html_table(header, rows, row) + f'<p class="faint">oracle: {escape(summary["oracle"]["note"])}</p>'


def _family_table(cell: dict[str, Any], ks: Sequence[int]) -> str:
    rows = [
        [
            _foreign(family),
            str(scores["problems"]),
            *(f"{100 * scores[f'pass@{k}']:.1f} {_bar(scores[f'pass@{k}'])}" for k in ks if f"pass@{k}" in scores),
        ]
        for family, scores in cell["families"].items()
    ]
    title = f"<p>temperature {cell['temperature']:g}, top-p {cell['top_p']:g}</p>"
    return title + _html_table(["family", "problems", *(f"pass@{k}, %" for k in ks)], rows)


def _bar(share: float) -> str:
    return f'<span class="track"><span class="bar" style="width:{7 * share:.2f}rem"></span></span>'


def _verdict_table(cells: Sequence[dict[str, Any]]) -> str:
    names = sorted({name for cell in cells for name in cell["verdicts"]}, key=lambda name: (name != "passed", name))
    rows = [
        [f"{cell['temperature']:g}", f"{cell['top_p']:g}", *(f"{cell['verdicts'].get(name, 0):,}" for name in names)]
        for cell in cells
    ]
    return _html_table(["temperature", "top-p", *map(_foreign, names)], rows)


def _failures(results: Sequence[dict[str, Any]], problems: Sequence[Problem]) -> str:
    """The first failing sample of each problem, as far as there is room."""
    by_task: dict[str, dict[str, Any]] = {}
    for line in results:
        if not line["passed"]:
            by_task.setdefault(line["task_id"], line)
    shown = [(problem, by_task[problem.task_id]) for problem in problems if problem.task_id in by_task]
    note = f"The first failing sample of {min(len(shown), SHOWN_FAILURES)} of {len(shown)} problems that have one."
    return f'<p class="faint">{note}</p>' + "".join(_failure(*pair) for pair in shown[:SHOWN_FAILURES])


def _failure(problem: Problem, line: dict[str, Any]) -> str:
    title = f"<b>{_foreign(problem.task_id)}</b> {_foreign(line['result'])}"
    where = f'<span class="faint">temperature {line["temperature"]:g}, sample {line["index"]}</span>'
    code = f'{_foreign(problem.prompt)}<span class="new">{_foreign(line["completion"])}</span>'
    wanted = f"<p>wanted:</p><pre>{_foreign(problem.canonical)}</pre>" if problem.canonical else ""
    return f"<details><summary>{title} {where}</summary><pre>{code}</pre>{wanted}</details>"


def _foreign(text: str) -> str:
    """Text of a model or a problem as HTML: cut, escaped, and what would not be seen or be no UTF-8 as \\x escapes."""
    if len(text) > SHOWN_CHARACTERS:
        text = text[:SHOWN_CHARACTERS] + " ..."
    return escape("".join(c if c.isprintable() or c in "\n\t" else f"\\x{ord(c):02x}" for c in text))
