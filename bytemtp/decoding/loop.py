"""One verify loop for all decoding: proposers differ, the loop and its result do not.

    pass      run the pending id and the drafts after it through trunk and head 1
    decide    keep drafts as long as head 1 agrees, then take one more id from head 1 itself
    propose   draft the next ids, a chain or a tree of them

Plain decoding is the loop without drafts.  Whatever the proposer, the output is that of plain decoding: for sampling in
law (sampling.py), for greedy byte for byte.  The second needs care, because a pass over eight ids rounds differently
than one over a single id, and where two bytes are equally likely but for rounding the argmax would depend on it.  So a
lead smaller than MARGIN is not trusted: the byte is decided by `Float64Judge`, one float64 pass over the whole text,
which depends on the text alone.  Equality is then certain as long as float32 errs by less than half of MARGIN.

Rows of a batch are independent: each keeps its own number of drafts, its own random numbers and its own stop.

Shapes:  b rows, c ids of a pass, v vocabulary.
"""

import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int

from bytemtp.common.errors import UserError
from bytemtp.common.runtime import log
from bytemtp.common.vocab import EOT
from bytemtp.decoding.engines.native.engine import NativeEngine, supports
from bytemtp.decoding.engines.native.library import compiler
from bytemtp.decoding.engines.recorded import RecordedEngine
from bytemtp.decoding.engines.tensor import Branches, Engine, TensorEngine
from bytemtp.decoding.exact import Float64Judge
from bytemtp.decoding.row import Row
from bytemtp.decoding.sampling import Rule, acceptance, candidates, masked, residual, sample_id, top_candidates, top_two
from bytemtp.decoding.tree import Shape, chain, check
from bytemtp.model.model import ByteMTP

Mode = Literal["ar", "speculative", "tree", "draft"]

MARGIN = 2e-4
"""Smallest lead of the best logit over the second that is trusted.  float32 logits of our models err by 1e-5 at most
(test_decode.py measures it).  bfloat16's err by far more: there nothing is promised (see divergence.py)."""

PREFILL = 512
"""Ids of a prompt that go through the model at a time."""


@dataclass(frozen=True)
class Generation:
    """What `generate` returns."""

    data: bytes
    """the new bytes; the prompt is not repeated, a stop string not included"""
    stats: dict[str, Any]
    """mode, bytes, forwards, bytes_per_forward, seconds, prompt_seconds (of them until the first byte), bytes_per_s,
    accepted, accept_rate_by_position, stopped_by, exact"""
    origins: list[int] = field(default_factory=list)
    """for each byte the number of the draft that it was, 0 if head 1 gave it"""


@dataclass(frozen=True)
class Options:
    """How to decode."""

    mode: Mode = "ar"
    """ar: a byte a pass; speculative: a chain of drafts by the model's own heads; tree: a tree of them; draft: a chain
    by another model"""
    heads: int = 0
    """use the first so many heads (for "draft": draft so many bytes less one); 0 means all (8)"""
    tree: Shape = ()
    """shape of the drafts in mode "tree" (tree.py); by default the two best of each head"""
    temperature: float = 0.0
    """0 is greedy"""
    top_k: int = 0
    """draw from the k likeliest ids; 0 means all"""
    top_p: float = 1.0
    """draw from the likeliest ids that have this probability together"""
    seed: int = 0
    """of the draws; row r of a batch has random numbers of its own"""
    stop: Sequence[bytes] = ()
    """ends before the first of these; the end-of-document id ends, too"""
    utf8: bool = False
    """only bytes that continue well-formed UTF-8"""
    engine: Literal["auto", "native", "torch", "recorded"] = "auto"
    """native: steps compiled from C++, for float32 on CPU cores; torch: tensor operations, for any device and dtype;
    recorded: the same, as CUDA graphs (on CPU cores by torch.compile); auto: native where it can be, else torch"""

    @property
    def rule(self) -> Rule:
        return Rule(self.temperature, self.top_k, self.top_p)

    def shape(self, model: ByteMTP) -> Shape:
        """Drafts of a pass.  UserError if the model cannot make them."""
        most = 8 if self.mode == "draft" else model.config.n_future
        if not 0 <= self.heads <= most:
            raise UserError(f"heads is {self.heads}; it must be from 1 to {most}, or 0 for all")
        depth = (self.heads or most) - 1
        if self.mode == "tree":
            shape = check(self.tree) if self.tree else check([*chain(depth), *((0,) * i + (1,) for i in range(depth))])
            if shape and len(shape[-1]) > depth:
                raise UserError(f"the tree is {len(shape[-1])} deep but {depth + 1} heads draft {depth} bytes")
            return shape
        return () if self.mode == "ar" else chain(depth)


def generate(model: ByteMTP, prompt: bytes, max_bytes: int, draft: ByteMTP | None = None, **options: Any) -> Generation:
    """Continue `prompt` by up to `max_bytes` bytes; `options` are the fields of `Options`.

    draft: the other model of mode "draft".  An empty prompt starts a document.  UserError for arguments that make no
    sense.
    """
    return generate_batch(model, [prompt], max_bytes, draft, **options)[0]


def generate_batch(
    model: ByteMTP, prompts: Sequence[bytes], max_bytes: int, draft: ByteMTP | None = None, **options: Any
) -> list[Generation]:
    """Continue several prompts together; see `generate`."""
    chosen = Options(**options)
    rows = [_row(prompt, number, max_bytes, chosen) for number, prompt in enumerate(prompts)]
    loop = Loop(model, rows, chosen, draft)
    for _ in loop.passes():
        pass
    seconds = loop.seconds()
    return [loop.generation(row, seconds) for row in rows]


def generate_stream(
    model: ByteMTP, prompt: bytes, max_bytes: int, draft: ByteMTP | None = None, **options: Any
) -> Generator[bytes, None, Generation]:
    """The bytes of `generate`, each as soon as no stop string can take it back.

    The iterator's return value (what `yield from` gives) is the `Generation`.
    """
    chosen = Options(**options)
    row = _row(prompt, 0, max_bytes, chosen)
    loop, told = Loop(model, [row], chosen, draft), 0
    for _ in loop.passes():
        if row.settled > told:
            yield bytes(row.data[told : row.settled])
            told = row.settled
    return loop.generation(row, loop.seconds())


def _row(prompt: bytes, number: int, max_bytes: int, options: Options) -> Row:
    return Row(prompt, number, max_bytes, options.rule, options.seed, tuple(options.stop), options.utf8)


ENGINES: dict[type[Engine], str] = {NativeEngine: "native", TensorEngine: "torch", RecordedEngine: "recorded"}


def make_engine(choice: str, model: ByteMTP, rows: int, capacity: int, width: int = 1) -> Engine:
    """UserError if the native engine is asked for and cannot be had; "auto" says so and takes the other.

    width: ids of a verifying pass.
    """
    window = window_of(model) or capacity
    if choice == "auto" and supports(model) and compiler() is None:
        log("no C++ compiler (c++, g++ or clang++) was found: decoding by tensor operations, several times slower")
        choice = "torch"
    if choice == "native" and not supports(model):
        raise UserError("the native engine runs float32 models on the CPU whose width is a multiple of 16; use torch")
    if choice == "recorded":
        return RecordedEngine(model, rows, capacity, window, width)
    if choice != "torch" and supports(model):
        return NativeEngine(model, rows, capacity, window)
    return TensorEngine(model, rows, capacity, window)


@dataclass(frozen=True)
class Draft:
    """One candidate for a byte to come."""

    id: int
    law: Float64[np.ndarray, " v"] | None
    """what it was drawn from; None in greedy decoding"""
    parent: int
    """index of the draft before it in its row's list; -1 if it follows the decided text"""
    path: tuple[int, ...]
    """its node in the tree's shape"""


class Verdicts:
    """What head 1 says after each id of a row's chunk."""

    def __init__(self, row: Row, logits: Float32[np.ndarray, "c v"]) -> None:
        self.row, self.logits = row, logits
        self.greedy = row.rule.temperature == 0
        if self.greedy:
            self.best, self.lead = top_two(logits)
        elif row.utf8_state is None:
            self.laws = row.rule.distribution(logits)

    def argmax(self, place: int) -> tuple[int, bool]:
        """The likeliest id, and whether its lead over the second is wide enough to be trusted."""
        mask = self.row.legal()
        if mask is None:
            return self.best[place], self.lead[place] >= MARGIN
        (id_,), (lead,) = top_two(masked(self.logits[place], mask)[None])
        return id_, lead >= MARGIN

    def law(self, place: int) -> Float64[np.ndarray, " v"]:
        mask = self.row.legal()
        return self.laws[place] if mask is None else self.row.rule.distribution(self.logits[place], mask)


class Loop:
    """Decoding of some rows by one model."""

    def __init__(self, model: ByteMTP, rows: list[Row], options: Options, draft: ByteMTP | None) -> None:
        if (options.mode == "draft") != (draft is not None):
            raise UserError("mode 'draft' needs a draft model, and no other mode takes one")
        self.begun, self.prompt_seconds = time.perf_counter(), 0.0
        self.model, self.rows, self.mode = model, rows, options.mode
        self.shape = options.shape(model)
        self.nodes = [[node for node in self.shape if len(node) == depth] for depth in range(len(self.shape) + 2)]
        longest = max((len(row.prompt) + row.left for row in rows), default=0)
        capacity = 2 + longest + len(self.shape)
        self.engine = make_engine(options.engine, model, len(rows), capacity, 1 + len(self.shape))
        self.exact = Float64Judge(model, window_of(model) or capacity)
        self.known = np.array([1 + len(row.prompt) for row in rows])
        for row in rows:
            self.engine.ids[row.number, : 1 + len(row.prompt)] = [EOT, *row.prompt]
        self.start = np.zeros_like(self.known)
        self.drafts: list[list[Draft]] = [[] for _ in rows]
        self.proposer = OwnHeads(self) if draft is None else OtherModel(self, draft, capacity, options.engine)

    def seconds(self) -> float:
        """Since the start."""
        return time.perf_counter() - self.begun

    def generation(self, row: Row, seconds: float) -> Generation:
        how = {"mode": self.mode, "engine": ENGINES[type(self.engine)]}
        stats = how | row.stats(seconds) | {"prompt_seconds": self.prompt_seconds}
        return Generation(bytes(row.data), stats, row.origins)

    def passes(self) -> Generator[None]:
        """Run to the end, one pass at a time."""
        self._prefill()
        while any(not row.stopped_by for row in self.rows):
            pending = (self.known - self.start) * self._running()
            ids, lengths, branches = self._chunk(pending)
            logits = self.engine.verify(self.start, ids, lengths, branches)
            paths = [
                self._decide(row, logits[row.number, : lengths[row.number]], int(pending[row.number]))
                for row in self.rows
            ]
            accepted = np.array([len(path) for path in paths])
            if branches is not None:
                longest = max(len(path) for path in paths)
                self.engine.keep(self.start, np.array([[*path, *range(len(path), longest)] for path in paths]))
            self.drafts = [[] for _ in self.rows]
            if any(self.wants(row, 1) for row in self.rows):
                self.proposer.propose(self.start, accepted)
            self.start = self.start + accepted
            self.prompt_seconds = self.prompt_seconds or self.seconds()
            yield

    def _running(self) -> Bool[np.ndarray, " b"]:
        return np.array([not row.stopped_by for row in self.rows])

    def _prefill(self) -> None:
        """All but the last stretch of long prompts."""
        while int(((self.known - self.start) * self._running()).max(initial=0)) > PREFILL:
            done = np.minimum(self.known - self.start - 1, PREFILL) * self._running()
            places = np.minimum(self.start[:, None] + np.arange(PREFILL), self.engine.ids.shape[1] - 1)
            self.engine.verify(self.start, np.take_along_axis(self.engine.ids, places, 1), done)
            self.proposer.follow(self.start, done)
            self.start = self.start + done

    def _chunk(
        self, pending: Int[np.ndarray, " b"]
    ) -> tuple[Int[np.ndarray, "b c"], Int[np.ndarray, " b"], Branches | None]:
        """The pending ids and the drafts behind them, and how many they are in each row."""
        lengths = pending + np.array([len(drafts) for drafts in self.drafts])
        ids = np.zeros((len(lengths), int(lengths.max())), dtype=np.int64)
        for row, drafts in enumerate(self.drafts):
            first, start = int(pending[row]), int(self.start[row])
            ids[row, :first] = self.engine.ids[row, start : start + first]
            ids[row, first : first + len(drafts)] = [draft.id for draft in drafts]
        return ids, lengths, self._branches(ids, pending) if self.mode == "tree" else None

    def _branches(self, ids: Int[np.ndarray, "b c"], pending: Int[np.ndarray, " b"]) -> Branches:
        place = np.arange(ids.shape[1])
        above = (place[:, None] >= place)[None].repeat(len(ids), 0)
        depth = place[None].repeat(len(ids), 0)
        for row, drafts in enumerate(self.drafts):
            first = int(pending[row])
            for i, draft in enumerate(drafts):
                depth[row, first + i] = first - 1 + len(draft.path)
                above[row, first + i, first:] = above[row, first + draft.parent, first:] if draft.parent >= 0 else False
                above[row, first + i, first + i] = True
        return Branches(depth, above)

    def _decide(self, row: Row, logits: Float32[np.ndarray, "c v"], pending: int) -> list[int]:
        """Take ids for one row; returns the places in the chunk that stay: the pending ids and the right drafts."""
        path = list(range(pending))
        if row.stopped_by:
            return path
        drafts, parent, verdicts = self.drafts[row.number], -1, Verdicts(row, logits)
        row.begin_pass(len(draft.path) for draft in drafts)
        while not row.stopped_by:
            siblings = [i for i, draft in enumerate(drafts) if draft.parent == parent]
            chosen, id_ = self._next(row, verdicts, path[-1], [drafts[i] for i in siblings])
            self.engine.ids[row.number, self.known[row.number]] = id_
            self.known[row.number] += 1
            row.take(id_, draft=len(path) - pending + 1 if chosen is not None else 0)
            if chosen is None:
                break
            parent = siblings[chosen]
            path.append(pending + parent)
        row.end_pass(len(path) - pending)
        return path

    def _next(self, row: Row, verdicts: Verdicts, place: int, drafts: list[Draft]) -> tuple[int | None, int]:
        """The next id of a row, and which of the drafts it is, if any."""
        if not verdicts.greedy:
            return self._draw(row, verdicts.law(place), drafts)
        id_, certain = verdicts.argmax(place)
        if not certain:
            row.exact += 1
            logits = self.exact.logits(self.engine.ids[row.number, : self.known[row.number]])
            id_ = int(masked(logits, row.legal()).argmax())
        return next((number for number, draft in enumerate(drafts) if draft.id == id_), None), id_

    @staticmethod
    def _draw(row: Row, p: Float64[np.ndarray, " v"], drafts: list[Draft]) -> tuple[int | None, int]:
        """An id with law p: the first draft that may stay, or a fresh one.  Returns which draft (or None) and the id.

        Drafts are siblings, each drawn from its own law.  A refused one leaves the part of p that its law falls short
        of, which is the target for the next (recursive rejection, Miao et al. 2024, algorithm 2): the law stays p.
        """
        for number, draft in enumerate(drafts):
            assert draft.law is not None
            if row.random.random() < acceptance(p, draft.law, draft.id):
                return number, draft.id
            p = residual(p, draft.law)
        return None, sample_id(p, row.random.random())

    def wants(self, row: Row, depth: int) -> bool:
        """Whether a row can use drafts of that depth: the last byte comes from head 1 anyway."""
        return not row.stopped_by and depth < row.left and bool(self.nodes[depth])

    def extend(self, row: Row, depth: int, logits: Float32[np.ndarray, " v"]) -> int:
        """Draft the bytes at one depth of a row's tree from these logits; returns the first of them."""
        drafts = self.drafts[row.number]
        parents = [(-1, ())] if depth == 1 else [(i, d.path) for i, d in enumerate(drafts) if len(d.path) == depth - 1]
        first = EOT
        for parent, path in parents:
            count = sum(node[:-1] == path for node in self.nodes[depth])
            for rank, (id_, law) in enumerate(self._candidates(row, logits, parent, count)):
                drafts.append(Draft(id_, law, parent, (*path, rank)))
                first = id_ if first == EOT and not any(path) and rank == 0 else first
        return first

    def _candidates(
        self, row: Row, logits: Float32[np.ndarray, " v"], parent: int, count: int
    ) -> list[tuple[int, Float64[np.ndarray, " v"] | None]]:
        legal = row.legal(self._ids_to(self.drafts[row.number], parent)) if row.utf8_state is not None else None
        if row.rule.temperature == 0:
            return [(id_, None) for id_ in top_candidates(logits, legal, count)]
        return list(candidates(row.rule, logits, legal, count, row.random))

    @staticmethod
    def _ids_to(drafts: list[Draft], index: int) -> list[int]:
        ids: list[int] = []
        while index >= 0:
            ids.insert(0, drafts[index].id)
            index = drafts[index].parent
        return ids


class OwnHeads:
    """Drafts by heads 2, 3, ... of the model itself."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.heads = 1 + max((len(path) for path in loop.shape), default=0)

    def propose(self, start: Int[np.ndarray, " b"], accepted: Int[np.ndarray, " b"]) -> None:
        loop = self.loop

        def choose(i: int, logits: Float32[np.ndarray, "b v"]) -> Int[np.ndarray, " b"]:
            ids = [loop.extend(row, i, logits[row.number]) if loop.wants(row, i) else EOT for row in loop.rows]
            return np.array(ids)

        loop.engine.draft(start, accepted, self.heads, choose)

    def follow(self, start: Int[np.ndarray, " b"], accepted: Int[np.ndarray, " b"]) -> None:
        """Bring the heads' caches up to date with a piece of the prompt."""
        ignored = np.full_like(start, EOT)
        self.loop.engine.draft(start, accepted, self.heads, lambda i, logits: ignored)


class OtherModel:
    """Drafts by another, smaller model, one byte a pass of its own."""

    def __init__(self, loop: Loop, model: ByteMTP, capacity: int, engine: str) -> None:
        self.loop = loop
        self.engine = make_engine(engine, model, len(loop.rows), capacity)
        self.start = np.zeros_like(loop.start)

    def propose(self, start: Int[np.ndarray, " b"], accepted: Int[np.ndarray, " b"]) -> None:
        loop, at = self.loop, self.start
        for depth in range(1, len(loop.shape) + 1):
            wanted = [loop.wants(row, depth) for row in loop.rows]
            pending = (loop.known + depth - 1 - at) * wanted
            if not pending.any():
                break
            logits = self._run(at, pending)
            for row in loop.rows:
                if wanted[row.number]:
                    id_ = loop.extend(row, depth, logits[row.number, int(pending[row.number]) - 1])
                    loop.engine.ids[row.number, loop.known[row.number] + depth - 1] = id_
            at = at + pending
        self.start = np.minimum(at, loop.known)  # what it has read of its own drafts does not count

    def follow(self, start: Int[np.ndarray, " b"], accepted: Int[np.ndarray, " b"]) -> None:
        """Read a piece of the prompt."""
        self._run(start, accepted)
        self.start = start + accepted

    def _run(self, start: Int[np.ndarray, " b"], lengths: Int[np.ndarray, " b"]) -> Float32[np.ndarray, "b c v"]:
        places = start[:, None] + np.arange(int(lengths.max()))
        places = np.minimum(places, self.loop.engine.ids.shape[1] - 1)
        return self.engine.verify(start, np.take_along_axis(self.loop.engine.ids, places, 1), lengths)


def window_of(model: ByteMTP) -> int:
    """How far back an id sees in decoding: the model's window, but no further than it was trained to look; 0 is all."""
    return min((limit for limit in (model.config.window, model.trained_length) if limit), default=0)
