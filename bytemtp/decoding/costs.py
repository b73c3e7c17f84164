"""What passes cost on this machine: measured once, then read from the user's cache folder.

Mode "auto" weighs drafts by these times.  They are kept in a file, because a choice that rested on today's clock would
make draws with one seed differ from those of yesterday.  They are times of the whole loop and not of the engine alone:
with many texts or small models, what is done for a draft outside the engine is a good part of it.

Try:  python -c "import bytemtp; from bytemtp.decoding.costs import *; print(costs_of(bytemtp.load('RUN'), 1, 'auto'))"
"""

import hashlib
import json
import platform
import random
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float64

from bytemtp.common.files import alone, cache_folder, write_file
from bytemtp.common.vocab import EOT
from bytemtp.decoding.chains import CopiedChain
from bytemtp.decoding.chooser import Costs
from bytemtp.decoding.copies import Copies
from bytemtp.decoding.corpus_index import CorpusIndex
from bytemtp.decoding.engines.native.choices import CompiledJunk
from bytemtp.decoding.engines.native.library import library
from bytemtp.decoding.engines.recorded import RecordedEngine
from bytemtp.decoding.engines.select import ENGINES, engine_kind
from bytemtp.decoding.loop import Drafting, VerifyLoop
from bytemtp.decoding.loops import loop_kind
from bytemtp.decoding.row import Row
from bytemtp.decoding.sampling import Rule
from bytemtp.decoding.tree import chain
from bytemtp.model.model import ByteMTP

DRAFTS = (0, 1, 2, 3, 5, 7, 11, 15, 23, 31)
"""Drafts of the passes that are timed; between them costs are taken to grow evenly.  Mode "auto" makes no more."""
BEFORE = 192
"""Ids that stand before those passes, as far as the model looks back: what attention costs grows with them."""
PASSES = 6
"""That are timed in a row, alone or in bursts: other work on the machine interrupts some, and the fastest count."""
ROUNDS = 8
"""Of which the medians count: whole stretches of time are faster or slower than others."""
ENOUGH = 3.0
"""Seconds after which no further round is begun.  In one, 16 texts had so few that a look seemed six times as dear."""
ENDLESS = 1 << 13
"""More bytes than a measurement writes: room for them is made at once where the model looks back without a limit."""
METHOD = 9
"""Raised when passes are measured in another way, or take another time: what is kept is measured anew."""


def costs_of(
    model: ByteMTP,
    rows: int,
    engine: str,
    *,
    greedy: bool = True,
    index: CorpusIndex | None = None,
    anew: bool = False,
) -> Costs:
    """Costs of decoding so many rows together; engine: a name of `Options.engine`; index: that is looked in, too.

    anew: measure them now, and keep that in place of what is known.
    """
    kind = engine_kind(engine, model)
    path = cache_folder() / f"pass-costs-{fingerprint(model, rows, ENGINES[kind], greedy=greedy, index=index)}.json"
    if anew:
        path.unlink(missing_ok=True)
    with suppress(*UNKNOWN):
        return read_costs(path)
    with alone(path.with_suffix(".lock")):
        with suppress(*UNKNOWN):
            return read_costs(path)  # measured by another process meanwhile
        # To compile passes on a CPU would take longer than it is worth.
        is_compiled = kind is RecordedEngine and model.device.type == "cpu"
        costs = measure(model, rows, "torch" if is_compiled else engine, greedy=greedy, index=index)
        with suppress(OSError):  # a full disk: then they are measured again
            write_file(path, json.dumps(asdict(costs)))
        return costs


UNKNOWN = (OSError, ValueError, KeyError, TypeError)
"""Of a file that is not there yet, or damaged: both are mended by measuring."""


def read_costs(path: Path) -> Costs:
    known = json.loads(path.read_text(encoding="utf-8"))
    costs = Costs(tuple(map(float, known["passes"])), *(float(known[name]) for name in ("heads", "head", "look")))
    if not (len(costs.passes) == 1 + DRAFTS[-1] and min(costs.passes) > 0):
        raise ValueError
    return costs


def fingerprint(model: ByteMTP, rows: int, engine: str, *, greedy: bool, index: CorpusIndex | None) -> str:
    """Of all that costs depend on."""
    where = [str(model.device), torch.get_num_threads(), platform.node(), platform.machine(), torch.__version__]
    if model.device.type == "cuda":
        where.append(torch.cuda.get_device_name(model.device))
    if engine == "native":
        where.append(library().name)  # that of its file: of the code, the compiler and the processor
    what = [
        METHOD,
        asdict(model.config),
        model.reach,
        str(model.dtype),
        str(model.embed.weight.dtype),
        rows,
        engine,
        greedy,
        len(index) if index else 0,
    ]
    return hashlib.sha256(json.dumps([where, what]).encode()).hexdigest()[:16]


def measure(model: ByteMTP, rows: int, engine: str, *, greedy: bool, index: CorpusIndex | None = None) -> Costs:
    """Time passes of all kinds in turn, several times."""
    heads, most = model.config.n_future, DRAFTS[-1]
    kinds = [Drafting(copied=count) for count in DRAFTS]
    tries = Costs([1.0, *[1e9] * most], heads=-0.25, look=-0.25)  # to look and to ask always pays, and drafts never do
    kinds.append(Drafting(copied=most, costs=tries, index=index))
    kinds += [replace(kinds[-1], shape=chain(heads - 1)), Drafting(chain(heads - 1))] if heads > 1 else []
    typical = seconds_by_kind(model, rows, engine, kinds, greedy=greedy) / rows
    # More drafts are never cheaper: where it seems so, the passes with fewer were interrupted.
    copying = np.minimum.accumulate(typical[: len(DRAFTS)][::-1])[::-1]
    every = np.interp(np.arange(1 + most), DRAFTS, copying)
    looked, *by_heads = typical[len(DRAFTS) :].tolist()
    asked, drafted = by_heads or (looked, every[heads - 1])
    ask = max(0.0, asked - looked)
    each = max(0.0, float(drafted - every[heads - 1]) - ask) / max(1, heads - 1)
    return Costs(tuple(every.tolist()), ask, each, max(0.0, float(looked - every[0])))


def seconds_by_kind(
    model: ByteMTP, rows: int, engine: str, kinds: Sequence[Drafting], *, greedy: bool
) -> Float64[np.ndarray, " kinds"]:
    """Of a pass of all rows with each kind of drafts: the median of rounds in which all take their turn."""
    begun, longest = time.perf_counter(), Drafting(chain(model.config.n_future - 1), copied=DRAFTS[-1])
    times, bursts = list[list[float]](), [1] * len(kinds)
    while not times or (len(times) < 1 + ROUNDS and time.perf_counter() - begun < ENOUGH):
        times.append([])
        for number, kind in enumerate(kinds):
            loop = endless(model, rows, engine, longest, greedy=greedy)  # anew, for texts grow meanwhile
            times[-1].append(seconds_a_pass(loop, kind, bursts[number]))
            bursts[number] = loop.burst  # as in decoding: longer where passes are short
            del loop  # its caches are the next one's
    return np.median(times[1:] or times, axis=0)  # the first round warms caches


def endless(model: ByteMTP, rows: int, engine: str, drafting: Drafting, *, greedy: bool) -> VerifyLoop:
    """A loop over texts that do not end, behind BEFORE ids."""
    rule, prompt = Rule(0.0 if greedy else 1.0), random.Random(0).randbytes(min(BEFORE, (model.reach or BEFORE) - 1))
    texts: list[Row] = [Endless(prompt, number, ENDLESS, rule, 0, (), False) for number in range(rows)]
    return loop_kind(engine, model, texts, drafting)(model, texts, drafting, engine=engine)


class Endless(Row):
    """A text that an end of document does not end."""

    def append(self, id_: int, draft: int) -> None:
        super().append(id_ % EOT, draft)


class Junk(Copies):
    """Drafts that are hardly ever right."""

    def __init__(self) -> None:
        self.random = random.Random(0)

    def extend(self, data: bytes) -> None:
        pass

    def continuation(self, count: int) -> tuple[int, bytes]:
        return count, self.random.randbytes(count)


def seconds_a_pass(loop: VerifyLoop, drafting: Drafting, burst: int) -> float:
    """Of the fastest pass of all rows with such drafts."""
    # Where others have a share of the cores, a pass of milliseconds is always interrupted: the native engine's calling
    # thread, which waits for others by turning, does not count that.  Those of PyTorch and CUDA may sleep.
    clock = time.thread_time if loop.is_compiled else time.perf_counter
    passes = loop.passes()
    next(passes)  # over the prompt
    loop.drafting, loop.burst = drafting, burst
    loop.trees = [loop.tree(row) for row in loop.rows]
    for tree in loop.trees:
        if isinstance(tree, CopiedChain):
            tree.copies = CompiledJunk() if loop.is_compiled else Junk()
    next(passes)  # drafts for the next one
    times = list[float]()
    for _ in range(max(2, PASSES // loop.burst)):
        begun, wall, before = clock(), time.perf_counter(), loop.rows[0].passes
        next(passes)
        spent = clock() - begun or time.perf_counter() - wall  # some systems count a thread's time in ticks
        times.append(spent / (loop.rows[0].passes - before))
    return min(times)
