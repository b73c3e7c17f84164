"""The loop where passes follow one another in C++, in bursts, and Python only appends what they decided.

At a few million parameters Python takes longer for a pass than its arithmetic does.  `run_passes` (native/loop.cpp)
verifies, accepts and drafts as `VerifyLoop` does, by the same compiled functions, and draws by random numbers that it
is given in advance.  Passes of `VerifyLoop` begin a text, and go on where Python is needed: at a near tie (the
judge's), and when a slot takes the next row.  Stop strings are looked for after a burst; what it decided behind one is
dropped, and not counted.

Try:  bytemtp.generate(model, b"def ", 100, mode="auto", engine="native")
Shapes:  m most drafts of a pass, m1 = m + 1, p passes of a burst, u random numbers for them, v vocabulary.
"""

import random
import time
from collections import deque
from collections.abc import Iterator
from itertools import islice

import numpy as np
from jaxtyping import Float64, Int32, Int64

from bytemtp.common.vocab import PADDED_VOCAB_SIZE
from bytemtp.decoding.chains import AutoChain, Chain, CopiedChain
from bytemtp.decoding.drafters import HeadDrafter
from bytemtp.decoding.engines.native.choices import CompiledChooser, CompiledCopies
from bytemtp.decoding.engines.native.engine import NativeEngine
from bytemtp.decoding.engines.native.library import LoopRow, address
from bytemtp.decoding.loop import Drafting, VerifyLoop
from bytemtp.decoding.passes import Pass
from bytemtp.decoding.row import Row
from bytemtp.decoding.verdicts import MARGIN
from bytemtp.model.model import ByteMTP

LONGEST, LONGEST_WITH_STOPS = 32, 4
"""Passes of a burst at most: what it decides behind a stop string is in vain."""
SHORT = 16e-3
"""Seconds: a burst that took less is followed by one of twice as many passes, one that took LONG by half as many; who
reads along will not notice."""
LONG = 4 * SHORT

SOURCES = ("heads", "copies")
"""Of drafts, by whether they were copied."""


def can_be_compiled(model: ByteMTP, rows: list[Row], drafting: Drafting) -> bool:
    """Whether all ids may follow, by their probability alone, and drafts are copied or by heads that read one state."""
    is_uncut = not any(row.rule.cuts or row.utf8_state is not None for row in rows)
    is_chain = not drafting.as_tree and drafting.model is None
    has_heads = model.config.topology in ("replicated", "branched")  # that read one hidden state
    return is_uncut and is_chain and (has_heads or not drafting.shape)


class DrawnAhead(random.Random):
    """The random numbers of another generator, in its order; some of them are known before they are needed."""

    def __init__(self, source: random.Random) -> None:
        super().__init__()
        self.source, self.known = source, deque[float]()

    def random(self) -> float:
        return self.known.popleft() if self.known else self.source.random()

    def ahead(self, count: int) -> Float64[np.ndarray, " count"]:
        """The next ones, which `random` still gives."""
        self.known.extend(self.source.random() for _ in range(count - len(self.known)))
        return np.fromiter(islice(self.known, count), np.float64, count)

    def drop(self, count: int) -> None:
        """They have been used."""
        for _ in range(count):
            self.known.popleft()


class CompiledLoop(VerifyLoop):
    """See `can_be_compiled`; the engine is "native"."""

    def _passes_ahead(self) -> Iterator[None]:
        longest = LONGEST_WITH_STOPS if any(row.stop for row in self.rows) else LONGEST
        while not self._needs_host():
            begun, burst = time.perf_counter(), self.burst
            done = self._run(burst)
            took = time.perf_counter() - begun
            if took < SHORT:
                self.burst = min(2 * burst, longest)
            elif took > LONG:
                self.burst = max(1, burst // 2)
            if done:
                yield
            if done < burst and not self._needs_host():
                break  # a near tie

    def _run(self, passes: int) -> int:
        """Up to so many passes; returns how many there were."""
        engine, most = self.engine, self.drafting.most
        assert isinstance(engine, NativeEngine) and isinstance(self.drafter, HeadDrafter)
        places = [Places(passes, most) for _ in self.rows]
        rows = (LoopRow * len(places))(*(self._row(slot, place) for slot, place in enumerate(places)))
        done = engine.run_passes(
            self.start,
            rows,
            passes,
            most,
            drafting_heads=len(self.drafting.shape),
            transitions=self.drafter.transitions,
            margin=0.0 if self.judge is None else MARGIN,
            refills=bool(self.waiting),
        )
        for slot, (row, place) in enumerate(zip(rows, places, strict=True)):
            if row.done:
                self._take(slot, row, place)
        self.start = np.array([row.start for row in rows])
        self.followed = self.start.copy()
        return done

    def _row(self, slot: int, place: "Places") -> LoopRow:
        """Of a slot, as C++ takes it."""
        row, tree = self.rows[slot], self.trees[slot]
        assert isinstance(tree, Chain)
        drafts = [draft.id for draft in tree.drafts]
        place.ids[: 1 + len(drafts)] = self.ids[slot, self.known[slot] - 1], *drafts
        if len(tree.laws):
            place.laws[: len(drafts)] = tree.laws
        there = LoopRow(
            **{name: address(getattr(place, name)) for name in ("ids", "laws", "decided", "passes")},
            start=self.start[slot],
            left=min(row.left, 1 << 62),  # of C++, an int64
            temperature=row.rule.temperature,
            depth=tree.depth,
            drafts=len(drafts),
            are_copied=tree.source == "copies",
            drawn=len(tree.laws) > 0,
            ended=bool(row.stopped_by),
        )
        if isinstance(tree, AutoChain):
            assert isinstance(tree.chooser, CompiledChooser)
            there.chooser, there.copied = tree.chooser.handle, tree.most
        elif isinstance(tree, CopiedChain):
            assert isinstance(tree.copies, CompiledCopies)
            there.copies, there.copied = tree.copies.handle, tree.most
        if row.rule.temperature:
            if not isinstance(row.random, DrawnAhead):
                row.random = DrawnAhead(row.random)
            place.uniforms = row.random.ahead(len(place.passes) * (2 + tree.depth))
            there.uniforms = address(place.uniforms)
        return there

    def _take(self, slot: int, there: LoopRow, place: "Places") -> None:
        """What C++ decided for a row, and the drafts for its next pass."""
        row, tree = self.rows[slot], self.trees[slot]
        assert isinstance(tree, Chain)
        decided, passes = place.decided[: there.count], place.passes[: there.done]
        self._know(slot, decided)
        done = append_passes(row, decided, passes)
        if isinstance(row.random, DrawnAhead):
            row.random.drop(int(passes[done - 1, 3]) if row.stopped_by else there.used)
        ids, laws = place.ids[1 : 1 + there.drafts].tolist(), place.laws[: there.drafts if there.drawn else 0]
        tree.resume(ids, laws, SOURCES[there.are_copied])


def append_passes(row: Row, decided: Int64[np.ndarray, " ids"], passes: Int32[np.ndarray, "p 4"]) -> int:
    """Append what passes decided, until the text ends; returns how many passes that were."""
    parts = [Pass(SOURCES[copied], drafts, drafts, stay) for drafts, stay, copied, _ in passes.tolist()]
    sure = 0 if row.stop else len(parts) - 1  # before the last of them only a stop string can end the text
    at = sure + sum(one.accepted for one in parts[:sure])
    row.extend_by_passes(decided[:at].astype(np.uint8).tobytes(), parts[:sure])
    for number, one in enumerate(parts[sure:], sure + 1):
        end = at + one.accepted + 1
        kept = row.extend(decided[at:end].tolist(), one.accepted)
        row.count_pass(range(1, 1 + one.drafts), kept, one.source)
        if row.stopped_by:
            return number
        at = end
    return len(parts)


class Places:
    """Memory of a row that C++ reads and writes."""

    def __init__(self, passes: int, most: int) -> None:
        self.ids: Int64[np.ndarray, " m1"] = np.zeros(1 + most, np.int64)
        """the last decided id, then the drafts behind it"""
        self.laws: Float64[np.ndarray, "m1 v"] = np.empty((1 + most, PADDED_VOCAB_SIZE))
        """what each of them was drawn from; the last is of no use"""
        self.decided: Int64[np.ndarray, " decided"] = np.empty(passes * (1 + most), np.int64)
        self.passes: Int32[np.ndarray, "p 4"] = np.empty((passes, 4), np.int32)
        """of each: drafts, how many stayed, whether they were copied, random numbers used when it had decided"""
        self.uniforms: Float64[np.ndarray, " u"] = np.empty(0)
