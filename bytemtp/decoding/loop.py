"""One verify loop for all decoding: drafters differ, the loop and its result do not.

    verify    a forward pass over the pending ids and the drafts behind them, through trunk and head 1
    accept    keep drafts as long as head 1 agrees, then take one more id from head 1 itself
    draft     guess the next ids, a chain or a tree of them: copied from the text, by the heads, by another model

Plain decoding is the loop without drafts.  Whatever the drafter, the output is that of plain decoding: when sampling,
in distribution (sampling.py); greedy, byte for byte.  The second needs care, because a pass over eight ids rounds
differently than one over a single id, and where two bytes are equally likely but for rounding the argmax would depend
on it.  So a lead smaller than MARGIN allows is not trusted: the byte is decided by `Float64Judge`, one float64 pass
over the text, which depends on the text alone.  Equality is then certain as long as float32 errs by less than half of
that.

Rows of a batch are independent: each keeps its own number of drafts, its own random numbers and its own stop.  So no
row need wait for another:

    slots     the loop decodes so many rows at a time; `rows` is the row in each slot, `waiting` the queue behind them
    refill    as soon as a row has ended, its slot takes the next one, with its own random numbers, tree and start
    prompts   rows with the same prompt have it read once; then the caches are copied.  A slot whose last row had the
              prompt of the next one needs no copy: the next row takes back what the last one wrote, as drafts are taken
              back.  Rings are made so long that they still hold the prompt's end then
    ids       all but the last id of a shared prompt is read in advance, as the logits after the last one are each row's
              own to ask for; the last stretch of any other prompt is left to the first verifying pass, which saves one

Try:  python -m bytemtp.generate RUN --prompt "def add(" --max-bytes 200 --mode speculative --compare ar
Shapes:  b rows, c ids of a pass, v vocabulary.
"""

import time
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int

from bytemtp.common.vocab import EOT
from bytemtp.decoding.chains import AutoChain, Chain, CopiedChain
from bytemtp.decoding.chooser import Chooser, Costs
from bytemtp.decoding.copies import Copies
from bytemtp.decoding.corpus_index import CorpusIndex
from bytemtp.decoding.drafters import Drafter, HeadDrafter, ModelDrafter, ids_from
from bytemtp.decoding.engines.native.choices import CompiledChooser, CompiledCopies
from bytemtp.decoding.engines.native.draws import CompiledDraws
from bytemtp.decoding.engines.native.engine import NativeEngine
from bytemtp.decoding.engines.ring import PIECE
from bytemtp.decoding.engines.select import make_engine
from bytemtp.decoding.judge import Float64Judge
from bytemtp.decoding.row import Row
from bytemtp.decoding.sampling import NUMPY, masked, verify_siblings
from bytemtp.decoding.tree import Draft, DraftTree, Shape, branches_of, depth_of
from bytemtp.decoding.verdicts import Verdicts
from bytemtp.model.model import ByteMTP

PREFILL = PIECE
COPIED = 15
"""Most bytes that are copied for a pass; in mode "auto" as many as costs are known of."""

ROUNDED = (
    "products of float32 are rounded here (TF32 or bfloat16), so greedy texts may differ by mode; "
    'call torch.set_float32_matmul_precision("highest")'
)


@dataclass(frozen=True)
class Drafting:
    """What drafts, and how much."""

    shape: Shape = ()
    """of the drafts that heads or another model make for a pass"""
    as_tree: bool = False
    """run them as a tree even if they are a chain"""
    model: ByteMTP | None = None
    """drafts in place of the verifying model's own heads; only chains"""
    copied: int = 0
    """most bytes that are copied for a pass from where the text's end stood before"""
    index: CorpusIndex | None = None
    """where else they may be copied from"""
    costs: Costs | None = None
    """choose between copies, heads and nothing by these (chooser.py); heads draft chains no longer than the shape"""

    @property
    def most(self) -> int:
        """Drafts of a pass."""
        return max(len(self.shape), self.copied)


class VerifyLoop:
    """Decoding of some rows by one model.

    engine: a name of `Options.engine`; slots: rows that are decoded at the same time, 0: all.
    """

    burst = 1
    """passes between two steps of `passes`"""

    def __init__(
        self, model: ByteMTP, rows: list[Row], drafting: Drafting = Drafting(), *, engine: str = "auto", slots: int = 0
    ) -> None:
        self.begun, self.prompt_seconds = time.perf_counter(), 0.0
        slots = min(slots or len(rows), len(rows))
        self.model, self.drafting, self.rows, self.waiting = model, drafting, rows[:slots], deque(rows[slots:])
        capacity = 2 + max((len(row.prompt) + row.left for row in rows), default=0) + drafting.most
        back = max((row.left for row in rows), default=0) if self.waiting else 0
        self.engine = make_engine(engine, model, slots, capacity, 1 + drafting.most, back)
        self.is_compiled = isinstance(self.engine, NativeEngine)
        self.draws = CompiledDraws() if self.is_compiled else NUMPY
        self.trees = [self.tree(row) for row in self.rows]
        # These err by far more than a near tie: the native engine needs no judge, others promise nothing.
        narrow = {torch.bfloat16, torch.int8} & {model.dtype, model.embed.weight.dtype}
        self.judge = None if narrow else Float64Judge(model, model.reach or capacity)
        if not (narrow or self.is_compiled or torch.get_float32_matmul_precision() == "highest"):
            warnings.warn(ROUNDED, stacklevel=2)
        self.drafter: Drafter = HeadDrafter(self.engine, 1 + depth_of(drafting.shape), model.transitions)
        if drafting.model is not None:
            self.drafter = ModelDrafter(make_engine(engine, drafting.model, slots, capacity, back=back), self.trees)
        self.known = np.zeros(slots, dtype=np.int64)
        """ids of each row that are decided; what lies behind them is drafted or old"""
        self.start = np.zeros_like(self.known)
        """ids of each row that the engine has in its cache"""
        self.followed = np.zeros_like(self.known)
        """ids of each row that the heads, too, have read"""
        self.ahead = 2 * (1 + drafting.most) + model.config.n_future
        """ids beyond the known ones that a pass decides, drafts or reads, at most"""
        self.ids = np.zeros((slots, 0), dtype=np.int64)
        """known ids, then drafts; engines and drafters only read them"""
        for slot, row in enumerate(self.rows):
            self._know(slot, [EOT, *row.prompt])

    def tree(self, row: Row) -> DraftTree:
        """For the drafts of a row."""
        drafting, draws = self.drafting, self.draws
        if drafting.as_tree:
            return DraftTree(row, drafting.shape)
        if not drafting.copied:
            return Chain(row, len(drafting.shape), "heads" if drafting.model is None else "model", draws)
        copies = (CompiledCopies if self.is_compiled else Copies)(drafting.index)
        if drafting.costs is None:
            return CopiedChain(row, copies, drafting.copied, draws)
        # These heads have no caches that must be kept up but those on head 1's path.
        rests = self.model.config.topology in ("linear", "replicated", "anticausal")
        depth = min(len(drafting.shape), drafting.costs.most)
        if isinstance(copies, CompiledCopies):
            chooser: Chooser = CompiledChooser(copies, drafting.costs, depth, may_rest=rests)
        else:
            chooser = Chooser(copies, drafting.costs, depth, may_rest=rests)
        return AutoChain(row, chooser, drafting.copied, draws)

    def run(self) -> None:
        """Decode all rows to their ends."""
        for _ in self.passes():
            pass

    def passes(self) -> Iterator[None]:
        """The same, one pass at a time."""
        self._refill()
        self._prefill()
        while any(not row.stopped_by for row in self.rows):
            accepted = self._verify()
            self._draft(accepted)
            self.start = self.start + accepted
            self.prompt_seconds = self.prompt_seconds or self.seconds()
            yield
            yield from self._passes_ahead()
            if self._refill():
                self._prefill()

    def _passes_ahead(self) -> Iterator[None]:
        """Passes that need nothing of this loop; here none, see `CompiledLoop` and `AheadLoop`."""
        yield from ()

    def _needs_host(self) -> bool:
        """Whether such passes have to stop, to end or to begin another row."""
        running = self._running()
        return not running.all() if self.waiting else not running.any()

    def seconds(self) -> float:
        """Since the start."""
        return time.perf_counter() - self.begun

    def _know(self, slot: int, ids: Sequence[int] | Int[np.ndarray, " ids"]) -> None:
        """These are the next ids of a row.  The buffer grows with the texts: there is always room for a pass."""
        known, size = int(self.known[slot]), self.ids.shape[1]
        end = known + len(ids)
        if end + self.ahead > size:
            self.ids = np.pad(self.ids, ((0, 0), (0, max(end + self.ahead, 2 * size) - size)))
        self.ids[slot, known:end] = ids
        self.known[slot] = end

    def _running(self) -> Bool[np.ndarray, " b"]:
        return np.array([not row.stopped_by for row in self.rows])

    def _pending(self) -> Int[np.ndarray, " b"]:
        """Known ids that the engine has not read yet; none where a row has stopped."""
        return (self.known - self.start) * self._running()

    def _refill(self) -> bool:
        """Waiting rows into the slots whose rows have ended; returns whether there were any."""
        ended = [slot for slot, row in enumerate(self.rows) if row.stopped_by and self.waiting]
        for slot in ended:
            while self.waiting and self.rows[slot].stopped_by:
                last, row = self.rows[slot].prompt, self.waiting.popleft()
                self.rows[slot], self.trees[slot], self.known[slot] = row, self.tree(row), 0
                self._know(slot, [EOT, *row.prompt])
                read = self.followed if self.drafting.shape else self.start
                has_read = last == row.prompt and read[slot] >= len(last)
                self._begin(slot, slot, len(last) if has_read else 0)
        return bool(ended)

    def _begin(self, slot: int, source: int, count: int) -> None:
        """The row in this slot begins with the first `count` ids that have been read in slot `source`."""
        if slot != source:
            self.engine.copy_row(source, slot)
        self.drafter.begin_row(slot, source, count)
        self.start[slot] = self.followed[slot] = count

    def _prefill(self) -> None:
        """All but the last id of shared prompts, once, and all but the last stretch of other long ones."""
        sharing = self._sharing()
        followers = [slot for slots in sharing.values() for slot in slots]
        while True:
            lengths = (self._pending() - 1).clip(0, PREFILL)
            lengths[followers] = 0
            if not lengths[list(sharing)].any() and lengths.max(initial=0) < PREFILL:
                break
            self.engine.verify(self.start, ids_from(self.ids, self.start, lengths), lengths)
            self.drafter.follow(self.start, lengths, self.ids)
            self.start = self.start + lengths
            self.followed = self.start.copy()
        for source, slots in sharing.items():
            for slot in slots:
                self._begin(slot, source, len(self.rows[slot].prompt))

    def _sharing(self) -> dict[int, list[int]]:
        """Slots that have read a prompt, or are to, with those that have not and get it from them."""
        readers: dict[bytes, int] = {}
        sharing: dict[int, list[int]] = {}
        for slot in sorted(np.flatnonzero(self._running()).tolist(), key=lambda slot: -int(self.start[slot])):
            prompt = self.rows[slot].prompt
            reader = readers.setdefault(prompt, slot)
            if slot != reader and self.start[slot] < len(prompt):
                sharing.setdefault(reader, []).append(slot)
        return sharing

    def _verify(self) -> Int[np.ndarray, " b"]:
        """Run the pending ids and the drafts, and accept; returns how many ids of each row's chunk stay."""
        pending = self._pending()
        counts = pending.tolist()
        ids, lengths = self._chunk(counts)
        branches = branches_of(self.trees, pending, ids.shape[1]) if self.drafting.as_tree else None
        logits = self.engine.verify(self.start, ids, np.array(lengths), branches)
        kept = [self._accept(slot, logits[slot, count - 1 : lengths[slot]]) for slot, count in enumerate(counts)]
        if branches is not None:
            paths = [[*range(count), *(count + i for i in some)] for count, some in zip(counts, kept, strict=True)]
            longest = max(map(len, paths))
            self.engine.keep_path(self.start, np.array([[*path, *range(len(path), longest)] for path in paths]))
        return pending + np.array(list(map(len, kept)))

    def _chunk(self, pending: list[int]) -> tuple[Int[np.ndarray, "b c"], list[int]]:
        """The pending ids and the drafts behind them, and how many they are in each row."""
        lengths = [first + len(tree.drafts) for first, tree in zip(pending, self.trees, strict=True)]
        ids = np.zeros((len(lengths), max(lengths)), dtype=np.int64)
        for slot, (first, start) in enumerate(zip(pending, self.start.tolist(), strict=True)):
            ids[slot, :first] = self.ids[slot, start : start + first]
            if drafts := self.trees[slot].drafts:
                ids[slot, first : lengths[slot]] = [draft.id for draft in drafts]
        return ids, lengths

    def _accept(self, slot: int, logits: Float32[np.ndarray, "c v"]) -> list[int]:
        """Decide ids for one row, from the last pending id on; returns the numbers of the drafts that stay."""
        row, tree = self.rows[slot], self.trees[slot]
        if row.stopped_by:
            return []
        kept = self._decide(slot, logits)
        row.count_pass([len(draft.path) for draft in tree.drafts], len(kept), tree.source)
        tree.learn(len(kept))
        return kept

    def _decide(self, slot: int, logits: Float32[np.ndarray, "c v"]) -> list[int]:
        """Append ids to a row that goes on; returns the numbers of the drafts among them."""
        tree, verdicts = self.trees[slot], Verdicts(self.rows[slot], logits, self.draws)
        if verdicts.greedy or not tree.drafts or not isinstance(tree, Chain):
            return self._accept_one_by_one(slot, verdicts)
        return self._accept_together(slot, verdicts, tree)

    def _accept_one_by_one(self, slot: int, verdicts: Verdicts) -> list[int]:
        """Of a tree of drafts, and where decoding is greedy; returns the numbers of the drafts that stay."""
        tree, kept = self.trees[slot], list[int]()
        while not verdicts.row.stopped_by:
            last = kept[-1] if kept else -1
            siblings = tree.children(last)
            chosen, id_ = self._next(slot, verdicts, last + 1, [tree.drafts[i] for i in siblings])
            self._know(slot, [id_])
            verdicts.row.append(id_, draft=0 if chosen is None else len(kept) + 1)
            if chosen is None:
                break
            kept.append(siblings[chosen])
        return kept

    def _accept_together(self, slot: int, verdicts: Verdicts, tree: Chain) -> list[int]:
        """Of a chain where decoding draws: as many stay as `verify_chain` says."""
        ids = [draft.id for draft in tree.drafts]
        q = np.asarray(tree.laws) if len(tree.laws) else None
        stay, last = self.draws.verify_chain(verdicts.along(ids), ids, q, self.rows[slot].random)
        return list(range(self._keep(slot, [*ids[:stay], last])))

    def _keep(self, slot: int, ids: list[int]) -> int:
        """Append drafts that stay, then head 1's id, until the text ends; returns how many drafts were appended."""
        self._know(slot, ids)
        return self.rows[slot].extend(ids, len(ids) - 1)

    def _next(self, slot: int, verdicts: Verdicts, place: int, siblings: list[Draft]) -> tuple[int | None, int]:
        """The next id of a row, and which of the drafts for it, if any, is the same."""
        row = self.rows[slot]
        if not verdicts.greedy:
            drafts = [(draft.id, draft.q) for draft in siblings if draft.q is not None]  # they all have one
            if not drafts:
                return None, self.draws.sample_ids(verdicts.distribution(place)[None], [row.random.random()])[0]
            return verify_siblings(verdicts.distribution(place), drafts, row.random)
        id_, certain = verdicts.argmax(place)
        if not certain and self.judge is not None:
            row.near_ties += 1
            logits = self.judge.logits(self.ids[slot, : self.known[slot]])
            id_ = int(masked(logits, row.legal()).argmax())
        ids = [draft.id for draft in siblings]
        return ids.index(id_) if id_ in ids else None, id_

    def _draft(self, accepted: Int[np.ndarray, " b"]) -> None:
        """Draft the bytes of the next pass."""
        for tree in self.trees:
            tree.begin()
        if not any(tree.wants(1) or tree.follows() for tree in self.trees):
            return
        self.followed = self.start + accepted
        together = self.drafter.all_drafts(self.start, accepted)
        if together is not None:
            for slot, tree in enumerate(self.trees):
                tree.grow_all(together[slot])
            return
        for depth, logits in enumerate(self.drafter.drafts(self.start, accepted, self.ids), 1):
            for slot, tree in enumerate(self.trees):
                if tree.wants(depth):
                    id_ = tree.grow(depth, logits[slot])
                    # What reads ids ahead reads the best chain; behind its end it reads EOT, as in training.
                    self.ids[slot, self.known[slot] - 1 + depth] = EOT if id_ is None else id_
