"""The loop where the device decides by itself: recorded passes by heads, which the host reads one pass late.

A pass of `RecordedEngine.decide` verifies, accepts, and drafts for the next one, so the device never waits for the
host: it is at the next pass while the host appends what the last one decided, looks for stop strings and counts.
Passes of `VerifyLoop` begin a text, and go on where the host is needed: at a near tie (the judge's), and when a slot
takes the next row.  The pass under way is then given up, as drafts are, and not counted.  The device draws by random
numbers of its own (`device_draws`), whose keys are from the row's.

Try:  bytemtp.generate(model, b"def ", 100, mode="speculative", engine="recorded")
Shapes:  b rows, h heads in use, h2 = h + 2.
"""

from collections import deque
from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from bytemtp.common.vocab import PADDED_VOCAB_SIZE
from bytemtp.decoding.chains import Chain
from bytemtp.decoding.engines.recorded import Going, RecordedEngine
from bytemtp.decoding.loop import Drafting, VerifyLoop
from bytemtp.decoding.row import Row
from bytemtp.decoding.verdicts import MARGIN
from bytemtp.model.model import ByteMTP


def goes_ahead(model: ByteMTP, rows: list[Row], drafting: Drafting) -> bool:
    """Whether all ids may follow, by their probability alone, and all drafts are heads' that read no ids."""
    is_uncut = len({row.rule for row in rows}) < 2 and not any(row.rule.cuts for row in rows)
    is_free = all(row.utf8_state is None for row in rows)
    is_by_heads = not (drafting.as_tree or drafting.copied or drafting.model is not None)
    return is_uncut and is_free and is_by_heads and (model.config.topology != "deepseek" or not drafting.shape)


class AheadLoop(VerifyLoop):
    """See `goes_ahead`; the engine is "recorded"."""

    def _passes_ahead(self) -> Iterator[None]:
        assert isinstance(self.engine, RecordedEngine)
        going = self._going(self.engine)
        under_way: deque[Copied] = deque()
        while not self._needs_host():
            reach = int(self.start.max()) + (1 + len(under_way)) * going.ids.shape[1]
            going, decided = self.engine.decide(going, reach, 0.0 if self.judge is None else MARGIN)
            under_way.append(Copied(decided))
            if len(under_way) == 2:
                if not self._read(under_way.popleft().array()):
                    break
                yield
        for tree in self.trees:
            tree.begin()  # the host knows nothing of the device's drafts

    def _going(self, engine: RecordedEngine) -> Going:
        """From each row's last id, which the engine has not read yet, and its drafts; where there are fewer, zeros."""
        shape = len(self.rows), len(self.drafting.shape)
        ids, q = np.zeros((shape[0], 1 + shape[1]), dtype=np.int64), np.zeros((*shape, PADDED_VOCAB_SIZE))
        q[..., 0] = 1
        for slot, tree in enumerate(self.trees):
            ids[slot, 0] = self.ids[slot, self.known[slot] - 1]
            ids[slot, 1 : 1 + len(tree.drafts)] = [draft.id for draft in tree.drafts]
            if isinstance(tree, Chain) and len(tree.laws):
                q[slot, : len(tree.drafts)] = tree.laws
        start, chunk = engine.tensor(self.start), engine.tensor(ids)
        rule = self.rows[0].rule
        if rule.temperature == 0:
            return Going(start, chunk)
        keys = np.array([row.random.getrandbits(63) for row in self.rows])
        return Going(start, chunk, *map(engine.tensor, (q, keys, np.array(rule.temperature))))

    def _read(self, decided: Int[np.ndarray, "b h2"]) -> bool:
        """Append what a pass has decided; False if a near tie is among it, which leaves that row as it was."""
        is_certain, start = True, self.start.copy()
        for slot, (stay, certain, *best) in enumerate(decided.tolist()):
            row = self.rows[slot]
            if row.stopped_by:
                continue
            if certain <= stay:
                is_certain = False
                continue
            drafts = min(len(best), row.left) - 1  # more would not have been of use
            kept = self._keep(slot, best[: min(stay, drafts) + 1])
            row.count_pass(range(1, 1 + drafts), kept, self.trees[slot].source)
            start[slot] += stay + 1
        self.start, self.followed = start, start.copy()
        return is_certain


class Copied:
    """A tensor on its way to the host."""

    def __init__(self, there: Tensor) -> None:
        self.arrived = torch.cuda.Event() if there.is_cuda else None
        self.here = torch.empty_like(there, device="cpu", pin_memory=there.is_cuda)
        self.here.copy_(there, non_blocking=True)
        if self.arrived is not None:
            self.arrived.record(torch.cuda.current_stream(there.device))

    def array(self) -> np.ndarray:
        """Waits for it."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.here.numpy()
