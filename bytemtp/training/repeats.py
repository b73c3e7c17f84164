"""Rows that repeat themselves, from which a model learns to copy from its context.

To predict a byte by what followed the last time (an induction head: Olsson et al. 2022, arXiv 2209.11895) pays only
once it works over a distance, so a small model finds it late, after most of a short run.  Where random bytes repeat,
nothing else predicts them; periods are mostly short, since these are learnt first (NOTES.md).  Sabry & Belz 2025
(arXiv 2509.22947) mix copies in, too, and find nothing gained by models of 0.13B parameters and more.

    a row         import os\\nimport sys\\n
    is made       |itmroitmroitmroitmroi        bytes drawn from the row over and over, behind an end of a document

Try:  python -c "from bytemtp.training.repeats import repeating_places; print(repeating_places(4, 16, (0, 0)))"
"""

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int64

from bytemtp.common.settings import TrainConfig
from bytemtp.data.stream import Batch
from bytemtp.training.distributed import ALONE, World
from bytemtp.training.loss import rows_of

SHORTEST = 3
"""Bytes of a period; the longest have half a row."""


def repeating_rows(train: TrainConfig, rows: int, done: float) -> int:
    """How many of a batch's rows repeat when the share `done` of the run is over; never all of them."""
    repeats = train.repeat_rows > 0 and done < train.repeat_until
    return min(rows - 1, rows_of(rows, train.repeat_rows)) if repeats else 0


def with_repeats(batch: Batch, count: int, parts: int, seed: tuple[int, int], world: World = ALONE) -> Batch:
    """The batch with rows that repeat themselves in place of the last ones of its micro-batches.

    The last ones, since heads 2 to n learn from the first (`train.far_rows`).
    count: rows of the batch of all processes.  parts: micro-batches.  seed: of the run, and the step.
    Processes make of their shares what one makes of the whole.
    """
    rows, width = batch.octets.shape
    numbers = torch.arange(world.reader, rows * world.readers, world.readers)  # of the rows in the whole batch
    size = rows * world.readers // parts
    turn = (size - 1 - numbers % size) * parts + numbers // size  # one row of each micro-batch after another
    chosen = turn < count
    places = torch.from_numpy(repeating_places(count, width, seed))[turn[chosen]]
    is_byte = torch.ones_like(batch.octets)
    is_byte[tuple(batch.eots.T)] = 0
    bytes_first = is_byte[chosen].argsort(dim=1, descending=True, stable=True)  # ends of documents are no bytes
    places = bytes_first.gather(1, places % is_byte[chosen].sum(1, keepdim=True).clamp_min(1))
    octets = batch.octets.clone()
    octets[chosen] = octets[chosen].gather(1, places)
    octets[chosen, 0] = 0
    begins = F.pad(chosen.nonzero(), (0, 1))  # in column 0
    eots = torch.cat([batch.eots[~chosen[batch.eots[:, 0]]], begins])
    if batch.octets.is_pinned():  # else a CUDA device would be waited for
        octets, eots = octets.pin_memory(), eots.pin_memory()
    return replace(batch, octets=octets, eots=eots)


def repeating_places(rows: int, width: int, seed: tuple[int, int]) -> Int64[np.ndarray, "b w"]:
    """For each row places in it that are drawn at random and repeat; as many periods from 4 to 8 as from 8 to 16."""
    random = np.random.default_rng(seed)
    longest = max(SHORTEST, width // 2)
    periods = (SHORTEST * (longest / SHORTEST) ** random.random((rows, 1))).astype(np.int64)
    drawn = random.integers(0, width, (rows, longest))
    return np.take_along_axis(drawn, np.arange(width) % periods, axis=1)
