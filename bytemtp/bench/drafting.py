"""`bench decode --run`: what drafting adds on trained runs, and transformers' `generate` on the same weights."""

import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from bytemtp.bench.generating import continued, llama_of
from bytemtp.bench.turns import machine, markdown_table
from bytemtp.common.errors import UserError
from bytemtp.common.runtime import log, pick_device
from bytemtp.decoding.generate import Generation, generate_batch
from bytemtp.model.checkpoint import load_model, settings_of
from bytemtp.model.model import ByteMTP
from bytemtp.reports.figures import describe, literal, save_picture

PEER_TEXTS = 8
"""Texts that transformers continues: it takes its time."""
SETTLE = 0.1
"""Seconds; torch's threads go on turning for some milliseconds, and would be in the way of who comes next."""
Report = dict[str, Any]


def bench_runs(
    runs: Sequence[Path],
    texts: Sequence[bytes],
    new: int,
    batches: Sequence[int],
    temperatures: Sequence[float],
    heads: Sequence[int],
) -> Report:
    """Trained runs continue texts: plainly, and by their first k heads for these (or all) k; one text at a time, and in
    batches by all heads; and transformers' `generate` beside it, if it is installed."""
    most = [settings_of(run).model.n_future for run in runs]  # also finds out whether all are runs
    if wrong := [k for k in heads if not 1 <= k <= max(most)]:
        raise UserError(f"heads is {wrong[0]}; the runs have up to {max(most)}")
    report = {"bench": "decode", "machine": machine(), "texts": len(texts), "new": new}
    return report | {"runs": [_bench_run(run, texts, new, batches, temperatures, heads) for run in runs]}


def _bench_run(
    run: Path,
    texts: Sequence[bytes],
    new: int,
    batches: Sequence[int],
    temperatures: Sequence[float],
    heads: Sequence[int],
) -> Report:
    model = load_model(run, pick_device().value)
    generate_batch(model, texts[:1], 16)  # compiles, packs
    rows, n = [], model.config.n_future
    some = [k for k in range(2, n + 1) if not heads or k in heads]
    for temperature in temperatures:
        for batch in batches:
            counts = [1, *(some if batch == batches[0] else [n] * (n > 1))]
            outs = _in_turn(model, texts, new, batch, counts, temperature)
            rows += [_row(temperature, batch, k, outs[0], out) for k, out in zip(counts, outs, strict=True)]
            log(f"{run}: temperature {temperature}, {batch} texts at a time: measured")
    peer = _transformers(model, texts[:PEER_TEXTS], new) if find_spec("transformers") else None
    what = {"topology": model.config.topology, "n_future": n, "parameters": model.num_parameters()}
    return {"run": str(run), **what, "rows": rows, "transformers": peer}


def _in_turn(
    model: ByteMTP, texts: Sequence[bytes], new: int, batch: int, counts: Sequence[int], temperature: float
) -> list[list[Generation]]:
    """By each number of heads.  They take turns at every batch, so that a slow minute of the machine is all's."""
    outs: list[list[Generation]] = [[] for _ in counts]
    for first in range(0, len(texts), batch):
        for k, out in zip(counts, outs, strict=True):
            how: dict[str, Any] = {"mode": "ar"} if k == 1 else {"mode": "speculative", "heads": k}
            out += generate_batch(model, texts[first : first + batch], new, temperature=temperature, **how)
    return outs


def _transformers(model: ByteMTP, texts: Sequence[bytes], new: int) -> dict[str, float]:
    """Greedy bytes a second of transformers' `generate` and of ours by all heads, and how many texts are the same."""
    llama = llama_of(model)
    continued(llama, texts[0], 8)
    theirs, ours, seconds = [], [], 0.0
    for text in texts:
        start = time.perf_counter()
        theirs.append(continued(llama, text, new))
        seconds += time.perf_counter() - start
        time.sleep(SETTLE)
        ours += generate_batch(model, [text], new, mode="speculative")
    return {
        "bytes_per_s": sum(map(len, theirs)) / seconds,
        "ours_bytes_per_s": sum(len(out.data) for out in ours) / sum(out.stats["seconds"] for out in ours),
        "identical": sum(a == b.data for a, b in zip(theirs, ours, strict=True)) / len(texts),
    }


def _row(temperature: float, batch: int, k: int, plain: list[Generation], fast: list[Generation]) -> dict[str, Any]:
    """Seconds are those of whole batches, so a batch counts its rows together.  What the first pass of a text takes and
    gives, which has read its prompt, is left out of `behind_prompt`; zeros where nothing else came."""

    def seconds(outs: list[Generation], name: str) -> float:
        return sum(outs[first].stats[name] for first in range(0, len(outs), batch))

    def rate(outs: list[Generation]) -> float:
        return sum(len(out.data) for out in outs) / seconds(outs, "seconds")

    def later_bytes(outs: list[Generation]) -> int:
        return sum(len(out.data[1:]) for out in outs)

    def later_rate(outs: list[Generation]) -> float:
        return later_bytes(outs) / (seconds(outs, "seconds") - seconds(outs, "prompt_seconds"))

    later_forwards = sum(out.stats["forwards"] - 1 for out in fast)
    return {
        "temperature": temperature,
        "batch": batch,
        "k": k,
        "bytes_per_s": rate(fast),
        "speed_up": rate(fast) / rate(plain),
        "behind_prompt": {
            "bytes_per_s": later_rate(fast),
            "bytes_per_forward": later_bytes(fast) / max(later_forwards, 1),
            "speed_up": later_rate(fast) / (later_rate(plain) or 1.0),
        },
        "identical": sum(a.data == b.data for a, b in zip(plain, fast, strict=True)) / len(fast),
        "exact": sum(out.stats["exact"] for out in fast),
    }


def print_runs(report: Report) -> None:
    for run in report["runs"]:
        what = f"{run['topology']}, n={run['n_future']}, {run['parameters'] / 1e6:.1f}M parameters"
        print(f"{run['run']} ({what}): {report['texts']} texts, up to {report['new']} new bytes each")
        _print_rows(run["rows"])
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
            row["k"],
            f"{row['bytes_per_s']:,.0f}",
            f"{row['speed_up']:.2f}x",
            f"{later['bytes_per_s']:,.0f}",
            f"{later['bytes_per_forward']:.2f}",
            f"{later['speed_up']:.2f}x",
            f"{later['speed_up'] / (later['bytes_per_forward'] or 1.0):.2f}",
            f"{row['identical']:.0%}" if row["temperature"] == 0 else "same law",
        ]
        for row in measured
        for later in [row["behind_prompt"]]
    ]
    header = ["temperature", "batch", "heads", "bytes/s", "speed-up"]
    later = ["behind the prompt: bytes/s", "bytes a pass", "speed-up", "speed-up / bytes a pass"]
    print(markdown_table(rows, [*header, *later, "same as plain"]))


def draw_runs(report: Report, out: Path) -> None:
    """Two panels over the number of heads: bytes a pass and speed-up, behind the prompt, a line for each run."""
    figure = Figure(figsize=(10, 4), dpi=150, layout="constrained")
    axes = figure.subplots(1, 2)
    for run in report["runs"]:
        first = run["rows"][0]
        rows = [
            row for row in run["rows"] if (row["temperature"], row["batch"]) == (first["temperature"], first["batch"])
        ]
        label = f"{literal(Path(run['run']).name)}: {run['topology']}, n={run['n_future']}"
        for axis, name in zip(axes, ("bytes_per_forward", "speed_up"), strict=True):
            axis.plot([row["k"] for row in rows], [row["behind_prompt"][name] for row in rows], "o-", label=label)
    describe(axes[0], "heads that draft and verify, k", "bytes a forward pass")
    describe(axes[1], "heads that draft and verify, k", "speed-up over plain decoding")
    axes[1].axhline(1, color="gray", linewidth=0.8)
    axes[0].legend(frameon=False, fontsize="small")
    save_picture(figure, out)
