"""Tables and picture of `bench decode --run`."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from bytemtp.bench.drafting import Report
from bytemtp.bench.turns import markdown_table
from bytemtp.reports.figures import describe, literal, save_picture


def print_runs(report: Report) -> None:
    for run in report["runs"]:
        what = f"{run['topology']}, n={run['n_future']}, {run['parameters'] / 1e6:.1f}M parameters"
        for kind in dict.fromkeys(row["kind"] for row in run["rows"]):
            rows = [row for row in run["rows"] if row["kind"] == kind]
            print(f"{run['run']} ({what}): {rows[0]['texts']} {kind} texts, up to {report['new']} new bytes each")
            memory = [row["read_bytes_per_s"] / 1e9 for row in rows]
            read = f"memory was read at {min(memory):.1f} to {max(memory):.1f} GB/s"
            print(f"{read}; rounds: {report['rounds']}, of which the median counts")
            _print_rows(rows)
            print()
        if peer := run["transformers"]:
            theirs, ours, same = peer["bytes_per_s"], peer["ours_bytes_per_s"], peer["identical"]
            print(f"transformers' generate, greedy, a text at a time: {theirs:,.0f} bytes/s")
            print(f"ours by all heads: {ours:,.0f} bytes/s, {ours / theirs:.1f}x; {same:.0%} of the texts are the same")
            print()


def _print_rows(measured: list[Report]) -> None:
    rows = [
        [
            row["temperature"],
            row["batch"],
            row["dtype"],
            row["mode"] + " + index" * row["index"],
            row["k"] if row["mode"] == "speculative" else "",
            f"{row['bytes_per_s']:,.0f}",
            f"{row['speed_up']:.2f}x",
            "" if row["dtype"] == "float32" or row["over_float32"] is None else f"{row['over_float32']:.2f}x",
            f"{later['bytes_per_s']:,.0f}",
            f"{later['bytes_per_forward']:.2f}",
            f"{later['speed_up']:.2f}x",
            f"{later['speed_up'] / (later['bytes_per_forward'] or 1.0):.2f}",
            "" if row["of_best_fixed"] is None else f"{row['of_best_fixed']:.2f}",
            f"{row['identical']:.0%}" if row["temperature"] == 0 else "same law",
        ]
        for row in measured
        for later in [row["behind_prompt"]]
    ]
    header = ["temperature", "batch", "dtype", "mode", "heads", "bytes/s", "speed-up", "over plain float32"]
    later = ["without prefill: bytes/s", "bytes a pass", "speed-up", "speed-up / bytes a pass", "of best fixed mode"]
    print(markdown_table(rows, [*header, *later, "same as plain"]))


def draw_runs(report: Report, out: Path) -> None:
    """Two panels over the number of heads: bytes a pass and speed-up, without prefill, a line for each run."""
    figure = Figure(figsize=(10, 4), dpi=150, layout="constrained")
    axes = figure.subplots(1, 2)
    for run in report["runs"]:
        first = run["rows"][0]
        rows = [
            row for row in run["rows"] if row["mode"] in ("ar", "speculative") and _together(row) == _together(first)
        ]
        label = f"{literal(Path(run['run']).name)}: {run['topology']}, n={run['n_future']}"
        for axis, name in zip(axes, ("bytes_per_forward", "speed_up"), strict=True):
            axis.plot([row["k"] for row in rows], [row["behind_prompt"][name] for row in rows], "o-", label=label)
    describe(axes[0], "heads that draft and verify, k", "bytes a forward pass")
    describe(axes[1], "heads that draft and verify, k", "speed-up over plain decoding")
    axes[1].axhline(1, color="gray", linewidth=0.8)
    axes[0].legend(frameon=False, fontsize="small")
    save_picture(figure, out)


def _together(row: Report) -> list[Any]:
    """What rows have in common that can be compared."""
    return [row[name] for name in ("kind", "temperature", "batch", "dtype")]
