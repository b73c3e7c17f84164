"""What passes over 1 to 32 ids cost on this machine: measured once, then read from the user's cache folder.

Mode "auto" weighs drafts by these times.  They are kept in a file, because a choice that rested on today's clock would
make draws with one seed differ from those of yesterday.

Try:  python -c "import bytemtp; from bytemtp.decoding.costs import *; print(costs_of(bytemtp.load('RUN'), 1, 'auto'))"
Shapes:  b rows, c ids of a pass.
"""

import hashlib
import json
import platform
import time
from contextlib import suppress
from dataclasses import asdict

import numpy as np
import torch

from bytemtp.common.files import cache_folder, write_file
from bytemtp.decoding.chooser import Costs
from bytemtp.decoding.engines.engine import Engine
from bytemtp.decoding.engines.select import ENGINES, make_engine
from bytemtp.model.model import ByteMTP

SIZES = (1, 2, 3, 4, 6, 8, 12, 16)
"""Ids of the passes that are timed; between them costs are taken to grow evenly."""
BEFORE = 48
"""Ids that stand before those passes."""
ROUNDS = 5
ENOUGH = 0.5
"""Seconds after which no further round is begun."""


def costs_of(model: ByteMTP, rows: int, engine: str, *, anew: bool = False) -> Costs:
    """Costs of decoding so many rows together; engine: a name of `Options.engine`.

    anew: measure them now, and keep that in place of what is known.
    """
    runner = make_engine(engine, model, rows, BEFORE + max(SIZES), max(SIZES))
    path = cache_folder() / f"costs-{fingerprint(model, rows, ENGINES[type(runner)])}.json"
    if anew:
        path.unlink(missing_ok=True)
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        return Costs(tuple(map(float, known["passes"])), float(known["heads"]))
    except (OSError, ValueError, KeyError, TypeError):  # not there yet, or damaged: both are mended by measuring
        costs = measure(runner, rows, model.config.n_future)
        with suppress(OSError):  # a full disk: then they are measured again
            write_file(path, json.dumps(asdict(costs)))
        return costs


def fingerprint(model: ByteMTP, rows: int, engine: str) -> str:
    """Of all that costs depend on."""
    where = [str(model.device), torch.get_num_threads(), platform.node(), platform.machine(), torch.__version__]
    if model.device.type == "cuda":
        where.append(torch.cuda.get_device_name(model.device))
    what = [asdict(model.config), model.reach, str(model.dtype), str(model.embed.weight.dtype), rows, engine]
    return hashlib.sha256(json.dumps([where, what]).encode()).hexdigest()[:16]


def measure(engine: Engine, rows: int, heads: int) -> Costs:
    """Time passes in turn, and take the fastest round of each size: other work on the machine only slows them."""
    start, ids = np.full(rows, BEFORE), np.arange(rows * (BEFORE + max(SIZES))).reshape(rows, -1) % 256
    engine.verify(np.zeros_like(start), ids[:, :BEFORE], start)
    list(engine.drafts(np.zeros_like(start), start, heads, ids))

    def verify(count: int) -> float:
        begun = time.perf_counter()
        engine.verify(start, ids[:, BEFORE : BEFORE + count], np.full(rows, count))
        return time.perf_counter() - begun

    def draft() -> float:
        begun = time.perf_counter()
        list(engine.drafts(start, np.ones_like(start), heads, ids))
        return time.perf_counter() - begun

    times: list[list[float]] = []
    begun = time.perf_counter()
    while len(times) < 2 or (len(times) < 1 + ROUNDS and time.perf_counter() - begun < ENOUGH):
        times.append([*map(verify, SIZES), draft()])
    *passes, drafting = np.min(times[1:], axis=0) / rows  # the first round warms caches
    every = np.interp(np.arange(1, 1 + max(SIZES)), SIZES, np.maximum.accumulate(passes))
    return Costs(tuple(every.tolist()), float(drafting) if heads > 1 else 0.0)
