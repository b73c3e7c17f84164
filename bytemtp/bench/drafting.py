"""`bench decode --run`: what drafting adds on trained runs, and transformers' `generate` on the same weights.

A contestant is a mode of decoding in an arithmetic.  In each round all of them continue a batch of texts in turn, then
the next batch, so that a slow minute of the machine is everybody's.  Of a batch the median round counts.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any, Literal

import torch

from bytemtp.bench.generating import continued, llama_of, read_rate
from bytemtp.bench.shapes import Shape
from bytemtp.bench.turns import machine
from bytemtp.common.errors import UserError
from bytemtp.common.runtime import log, pick_device
from bytemtp.decoding.corpus_index import CorpusIndex
from bytemtp.decoding.costs import costs_of
from bytemtp.decoding.generate import Generation, Mode, generate_batch
from bytemtp.model.checkpoint import load_model, settings_of
from bytemtp.model.model import ByteMTP

PEER_TEXTS = 8
"""Texts that transformers continues: it takes its time."""
SETTLE = 0.1
"""Seconds; torch's threads go on turning for some milliseconds, and would be in the way of who comes next."""
WARM_UP = 16
"""Bytes that each contestant writes before it is timed: that compiles, packs weights, reads the index."""
Dtype = Literal["float32", "bfloat16", "int8"]
Report = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What is measured on each run."""

    new: int = 256
    """bytes to write, at most"""
    batches: tuple[int, ...] = (1, 4, 16)
    temperatures: tuple[float, ...] = (0.0, 0.8)
    heads: tuple[int, ...] = ()
    """for mode "speculative", as far as a run has them; none: all numbers at the first batch size, then all heads"""
    dtypes: tuple[Dtype, ...] = ("float32",)
    index: CorpusIndex | None = None
    """for the modes "copy" and "auto", which are also measured without it"""
    rounds: int = 3

    @property
    def indices(self) -> tuple[CorpusIndex | None, ...]:
        return (None,) if self.index is None else (None, self.index)

    def contestants(self, n: int, batch: int) -> list["Contestant"]:
        """On a run with n heads; the first of each arithmetic is plain decoding."""
        some = self.heads or (range(2, n + 1) if batch == self.batches[0] else (n,))
        return [
            contestant
            for dtype in self.dtypes
            for contestant in (
                Contestant(dtype, "ar", 1),
                *(Contestant(dtype, "speculative", k) for k in some if 2 <= k <= n),
                *(Contestant(dtype, "copy", 1, index) for index in self.indices),
                *(Contestant(dtype, "auto", n, index) for index in self.indices),
            )
        ]


@dataclass(frozen=True)
class Contestant:
    """How to decode."""

    dtype: Dtype
    mode: Mode
    k: int
    """heads that verify and draft, at most"""
    index: CorpusIndex | None = None

    def write(self, model: ByteMTP, texts: Sequence[bytes], new: int, temperature: float) -> list[Generation]:
        """Continue the texts together."""
        model.use(dtype=getattr(torch, self.dtype))
        heads = self.k if self.mode in ("speculative", "auto") else 0
        return generate_batch(model, texts, new, mode=self.mode, heads=heads, index=self.index, temperature=temperature)


@dataclass(frozen=True)
class Measured:
    """What a contestant wrote: for each batch of texts, the round that took the median time.

    Seconds are those of whole batches.  What the first pass of a text takes and gives, which has read its prompt, is
    left out of what is `later`; zeros where nothing else came.
    """

    batches: list[list[Generation]]

    @property
    def outs(self) -> list[Generation]:
        return [out for batch in self.batches for out in batch]

    @property
    def rate(self) -> float:
        """Bytes a second."""
        return sum(len(out.data) for out in self.outs) / self._seconds("seconds")

    @property
    def later_bytes(self) -> int:
        return sum(len(out.data[1:]) for out in self.outs)

    @property
    def later_rate(self) -> float:
        return self.later_bytes / (self._seconds("seconds") - self._seconds("prompt_seconds"))

    @property
    def later_passes(self) -> int:
        return sum(out.stats["forwards"] - 1 for out in self.outs)

    def _seconds(self, name: str) -> float:
        return sum(batch[0].stats[name] for batch in self.batches)


def bench_runs(runs: Sequence[Path], texts: Mapping[str, Sequence[bytes]], plan: Plan) -> Report:
    """Trained runs continue texts of each kind: plainly, by their first k heads, by copies, and as mode "auto" chooses;
    and transformers' `generate` beside it, if it is installed."""
    most = [settings_of(run).model.n_future for run in runs]  # also finds out whether all are runs
    if wrong := [k for k in plan.heads if not 1 <= k <= max(most)]:
        raise UserError(f"heads is {wrong[0]}; the runs have up to {max(most)}")
    first = next(iter(texts.values()))
    report = {"bench": "decode", "machine": machine(), "texts": len(first), "new": plan.new, "rounds": plan.rounds}
    return report | {"runs": [_bench_run(run, texts, plan) for run in runs]}


def _bench_run(run: Path, texts: Mapping[str, Sequence[bytes]], plan: Plan) -> Report:
    model, rows = load_model(run, pick_device().value), list[Report]()
    costs = _measure_costs(model, texts, plan)
    for kind, some in texts.items():
        for temperature in plan.temperatures:
            for batch in plan.batches:
                rows += _rows(model, kind, some, plan, temperature, batch)
                log(f"{run}: {kind}, temperature {temperature}, {batch} texts at a time: measured")
    model.use()
    held_out = texts.get("held-out", ())[:PEER_TEXTS]
    peer = _transformers(model, held_out, plan.new) if held_out and find_spec("transformers") else None
    what = {
        "topology": model.config.topology,
        "n_future": model.config.n_future,
        "parameters": model.num_parameters(),
    }
    return {"run": str(run), **what, "rows": rows, "costs": costs, "transformers": peer}


def _parts(texts: Sequence[bytes], batch: int) -> list[Sequence[bytes]]:
    return [texts[first : first + batch] for first in range(0, len(texts), batch)]


def _measure_costs(model: ByteMTP, texts: Mapping[str, Sequence[bytes]], plan: Plan) -> list[Report]:
    """What passes cost, for mode "auto", measured anew: a busy minute may have left what is in the cache folder."""
    sizes = {len(part) for some in texts.values() for batch in plan.batches for part in _parts(some, batch)}
    rules, found = {temperature == 0 for temperature in plan.temperatures}, []
    for dtype in plan.dtypes:
        model.use(dtype=getattr(torch, dtype))
        for size, greedy, index in product(sorted(sizes), sorted(rules), plan.indices):
            costs = costs_of(model, size, "auto", greedy=greedy, index=index, anew=True)
            what = {"dtype": dtype, "batch": size, "greedy": greedy, "index": index is not None}
            found.append(what | asdict(costs))
    return found


def _rows(
    model: ByteMTP, kind: str, texts: Sequence[bytes], plan: Plan, temperature: float, batch: int
) -> list[Report]:
    """A row for each contestant.  Before they start: how fast memory is read now, which differs from hour to hour."""
    memory = read_rate(Shape())["bytes_per_s"]
    time.sleep(SETTLE)
    contestants = plan.contestants(model.config.n_future, batch)
    measured = _in_turn(model, contestants, _parts(texts, batch), plan, temperature)
    plain = {each.dtype: got for each, got in zip(contestants, measured, strict=True) if each.mode == "ar"}
    where = {"kind": kind, "texts": len(texts), "temperature": temperature, "batch": batch}
    rows = [
        where | _row(each, got, plain) | {"read_bytes_per_s": memory}
        for each, got in zip(contestants, measured, strict=True)
    ]
    return [row | {"of_best_fixed": _of_best_fixed(row, rows)} for row in rows]


def _in_turn(
    model: ByteMTP, contestants: Sequence[Contestant], parts: list[Sequence[bytes]], plan: Plan, temperature: float
) -> list[Measured]:
    for each in contestants:
        each.write(model, parts[0], min(plan.new, WARM_UP), temperature)
    rounds = [
        [[each.write(model, part, plan.new, temperature) for each in contestants] for part in parts]
        for _ in range(plan.rounds)
    ]
    return [
        Measured([_median([turns[part][number] for turns in rounds]) for part in range(len(parts))])
        for number in range(len(contestants))
    ]


def _median(rounds: list[list[Generation]]) -> list[Generation]:
    """The round that took the median time; of an even number, the faster one of the two in the middle."""
    return sorted(rounds, key=lambda outs: outs[0].stats["seconds"])[(len(rounds) - 1) // 2]


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


def _row(each: Contestant, got: Measured, plain: Mapping[Dtype, Measured]) -> Report:
    """`speed_up` is over plain decoding in the same arithmetic, `over_float32` over plain decoding in float32."""
    own = plain[each.dtype]
    return {
        "mode": each.mode,
        "k": each.k,
        "index": each.index is not None,
        "dtype": each.dtype,
        "engine": got.outs[0].stats["engine"],
        "bytes_per_s": got.rate,
        "speed_up": _ratio(got.rate, own.rate),
        "over_float32": _ratio(got.rate, plain["float32"].rate) if "float32" in plain else None,
        "behind_prompt": {
            "bytes_per_s": got.later_rate,
            "bytes_per_forward": got.later_bytes / max(got.later_passes, 1),
            "speed_up": _ratio(got.later_rate, own.later_rate),
        },
        "identical": sum(a.data == b.data for a, b in zip(own.outs, got.outs, strict=True)) / len(got.outs),
        "exact": sum(out.stats["exact"] for out in got.outs),
    }


def _ratio(a: float, b: float) -> float:
    return a / (b or 1.0)


def _of_best_fixed(row: Report, rows: list[Report]) -> float | None:
    """Of mode "auto": its bytes a second without prefill as a share of those of the best other mode that has no more
    than it has: the same arithmetic, and an index only if it has one."""
    if row["mode"] != "auto":
        return None
    fixed = [r for r in rows if r["mode"] != "auto" and r["dtype"] == row["dtype"] and r["index"] <= row["index"]]
    best = max(r["behind_prompt"]["bytes_per_s"] for r in fixed)
    return _ratio(row["behind_prompt"]["bytes_per_s"], best)
