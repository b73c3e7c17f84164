"""The loop where the device decides by itself: greedy decoding by recorded passes, which the host reads one pass late.

A pass of `RecordedEngine.greedy` verifies, accepts, and drafts for the next one, so the device never waits for the
host: it is at the next pass while the host appends what the last one decided, looks for stop strings and counts.
Passes of `VerifyLoop` begin a text, and go on where the host is needed: at a near tie (the judge's), and when a slot
takes the next row.  The pass under way is then given up, as drafts are.

Try:  bytemtp.generate(model, b"def ", 100, mode="speculative", engine="recorded")
Shapes:  b rows, h drafting heads.
"""

from collections import deque
from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from bytemtp.decoding.engines.recorded import RecordedEngine
from bytemtp.decoding.loop import Drafting, VerifyLoop
from bytemtp.decoding.row import Row
from bytemtp.decoding.verdicts import MARGIN
from bytemtp.model.model import ByteMTP


def goes_ahead(model: ByteMTP, rows: list[Row], drafting: Drafting) -> bool:
    """Whether all that is to be decided are likeliest ids, and all drafts are heads' that read no ids."""
    is_greedy = all(row.rule.temperature == 0 and row.utf8_state is None for row in rows)
    is_by_heads = not (drafting.as_tree or drafting.copied or drafting.model is not None)
    return is_greedy and is_by_heads and (model.config.topology != "deepseek" or not drafting.shape)


class AheadLoop(VerifyLoop):
    """See `goes_ahead`; the engine is "recorded"."""

    def _passes_ahead(self) -> Iterator[None]:
        assert isinstance(self.engine, RecordedEngine)
        start, ids = self.engine.tensor(self.start), self.engine.tensor(self._next_chunk())
        under_way: deque[Copied] = deque()
        while not self._needs_host():
            reach = int(self.start.max()) + (1 + len(under_way)) * ids.shape[1]
            start, ids, decided = self.engine.greedy(start, ids, reach, MARGIN)
            under_way.append(Copied(decided))
            if len(under_way) == 2:
                if not self._read(under_way.popleft().array()):
                    break
                yield
        for tree in self.trees:
            tree.begin()  # the host knows nothing of the device's drafts

    def _next_chunk(self) -> Int[np.ndarray, "b h"]:
        """Of each row the id that the engine has not read yet, and its drafts; where there are fewer, anything."""
        chunk = np.zeros((len(self.rows), 1 + len(self.drafting.shape)), dtype=np.int64)
        for slot, tree in enumerate(self.trees):
            chunk[slot, 0] = self.ids[slot, self.known[slot] - 1]
            chunk[slot, 1 : 1 + len(tree.drafts)] = [draft.id for draft in tree.drafts]
        return chunk

    def _needs_host(self) -> bool:
        """To end, or to begin another row."""
        running = self._running()
        return not running.all() if self.waiting else not running.any()

    def _read(self, decided: Int[np.ndarray, "b h2"]) -> bool:
        """Append what a pass has decided; False if a near tie is among it, which leaves that row as it was."""
        is_certain, start = True, self.start.copy()
        for slot, (stay, certain, *best) in enumerate(decided.tolist()):
            row = self.rows[slot]
            if row.stopped_by:
                continue
            if certain <= stay and self.judge is not None:
                is_certain = False
                continue
            for number, id_ in enumerate(best[: stay + 1]):
                if not row.stopped_by:
                    self._append(slot, id_, number + 1 if number < stay else 0)
            row.count_pass(range(1, len(best)), stay, self.trees[slot].source)
            start[slot] += stay + 1
        self.start = start
        return is_certain


class Copied:
    """A tensor on its way to the host."""

    def __init__(self, there: Tensor) -> None:
        self.here, self.arrived = there.clone(), None
        if there.is_cuda:
            self.here = torch.empty_like(there, device="cpu", pin_memory=True).copy_(there, non_blocking=True)
            self.arrived = torch.cuda.Event()
            self.arrived.record()

    def array(self) -> np.ndarray:
        """Waits for it."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.here.numpy()
