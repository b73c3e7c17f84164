"""One verify loop for all decoding: proposers differ, the loop and its result do not.

    pass      run the pending id and the drafts after it through trunk and head 1
    decide    keep drafts as long as head 1 agrees, then take one more id from head 1 itself
    propose   draft the next ids, a chain or a tree of them

Plain decoding is the loop without drafts.  Whatever the proposer, the output is that of plain decoding: for sampling in
law (sampling.py), for greedy byte for byte.  The second needs care, because a pass over eight ids rounds differently
than one over a single id, and where two bytes are equally likely but for rounding the argmax would depend on it.  So a
lead smaller than MARGIN is not trusted: the byte is decided by `Exact`, one float64 pass over the whole text, which
depends on the text alone.  Equality is then certain as long as float32 errs by less than half of MARGIN.

Rows of a batch are independent: each keeps its own number of drafts, its own random numbers and its own stop.

Shapes:  b rows, c ids of a pass, v vocabulary.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bytemtp.errors import UserError
from bytemtp.exact import Exact
from bytemtp.incremental import Branches, Incremental
from bytemtp.model import ByteMTP
from bytemtp.row import Row
from bytemtp.sampling import Rule, acceptance, candidates, draw, residual
from bytemtp.tree import Shape, chain, check
from bytemtp.vocab import EOT

Mode = Literal["ar", "speculative", "tree", "draft"]

MARGIN = 1e-3
"""Smallest lead of the best logit over the second that is trusted.  float32 logits of our models err by 1e-5 at most
(test_decode.py measures it)."""

PREFILL = 512
"""Ids of a prompt that go through the model at a time."""


@dataclass(frozen=True)
class Generation:
    """What `generate` returns."""

    data: bytes
    """the new bytes; the prompt is not repeated, a stop string not included"""
    stats: dict[str, Any]
    """mode, bytes, forwards, bytes_per_forward, bytes_per_s, accepted, accept_rate_by_position, stopped_by, exact"""
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
    start = time.perf_counter()
    for _ in loop.passes():
        pass
    seconds = time.perf_counter() - start
    return [Generation(bytes(row.data), {"mode": chosen.mode, **row.stats(seconds)}, row.origins) for row in rows]


def generate_stream(
    model: ByteMTP, prompt: bytes, max_bytes: int, draft: ByteMTP | None = None, **options: Any
) -> Iterator[bytes]:
    """The bytes of `generate`, each as soon as no stop string can take it back."""
    chosen = Options(**options)
    row = _row(prompt, 0, max_bytes, chosen)
    told = 0
    for _ in Loop(model, [row], chosen, draft).passes():
        if row.settled > told:
            yield bytes(row.data[told : row.settled])
            told = row.settled


def _row(prompt: bytes, number: int, max_bytes: int, options: Options) -> Row:
    return Row(prompt, number, max_bytes, options.rule, options.seed, tuple(options.stop), options.utf8)


@dataclass(frozen=True)
class Draft:
    """One candidate for a byte to come."""

    id: int
    law: Float[Tensor, " v"]
    """what it was drawn from"""
    parent: int
    """index of the draft before it in its row's list; -1 if it follows the decided text"""
    path: tuple[int, ...]
    """its node in the tree's shape"""


class Loop:
    """Decoding of some rows by one model."""

    def __init__(self, model: ByteMTP, rows: list[Row], options: Options, draft: ByteMTP | None) -> None:
        if (options.mode == "draft") != (draft is not None):
            raise UserError("mode 'draft' needs a draft model, and no other mode takes one")
        self.model, self.rows = model, rows
        self.shape = options.shape(model)
        self.is_tree = options.mode == "tree"
        longest = max((len(row.prompt) + row.left for row in rows), default=0)
        capacity = 2 + longest + len(self.shape)
        window = window_of(model) or capacity
        self.engine = Incremental(model, len(rows), capacity, window)
        self.exact = Exact(model, window)
        self.known = torch.tensor([1 + len(row.prompt) for row in rows], device=model.device)
        for row in rows:
            self.engine.ids[row.number, : 1 + len(row.prompt)] = torch.tensor([EOT, *row.prompt])
        self.start = torch.zeros_like(self.known)
        self.drafts: list[list[Draft]] = [[] for _ in rows]
        self.proposer = OwnHeads(self) if draft is None else OtherModel(self, draft, capacity)

    def passes(self) -> Iterator[None]:
        """Run to the end, one pass at a time."""
        self._prefill()
        while any(not row.stopped_by for row in self.rows):
            pending = self.known - self.start
            ids, branches = self._chunk(pending)
            logits = self.engine.verify(self.start, ids, branches)
            paths = [self._decide(row, logits[row.number], int(pending[row.number])) for row in self.rows]
            accepted = torch.tensor([len(path) for path in paths], device=self.start.device)
            if branches is not None:
                longest = max(len(path) for path in paths)
                padded = [path + path[-1:] * (longest - len(path)) for path in paths]
                self.engine.keep(self.start, torch.tensor(padded, device=self.start.device))
            self.drafts = [[] for _ in self.rows]
            if any(self.wants(row, 1) for row in self.rows):
                self.proposer.propose(self.start, accepted)
            self.start = self.start + accepted
            yield

    def _prefill(self) -> None:
        """All but the last stretch of long prompts."""
        while int((self.known - self.start).max()) > PREFILL:
            done = (self.known - self.start - 1).clamp_max(PREFILL)
            places = self.start[:, None] + torch.arange(PREFILL, device=self.start.device)
            self.engine.verify(self.start, self.engine.ids.gather(1, places))
            self.proposer.follow(self.start, done)
            self.start = self.start + done

    def _chunk(self, pending: Int[Tensor, " b"]) -> tuple[Int[Tensor, "b c"], Branches | None]:
        """The pending ids and the drafts behind them; ids behind a row's last draft are of no consequence."""
        length = int((pending + torch.tensor([len(drafts) for drafts in self.drafts], device=pending.device)).max())
        place = torch.arange(length, device=pending.device)
        ids = self.engine.ids.gather(1, self.start[:, None] + place)
        above = (place[:, None] >= place).repeat(len(ids), 1, 1)
        depth = place.repeat(len(ids), 1)
        for row, drafts in enumerate(self.drafts):
            first = int(pending[row])
            for i, draft in enumerate(drafts):
                ids[row, first + i] = draft.id
                depth[row, first + i] = first - 1 + len(draft.path)
                above[row, first + i, first:] = above[row, first + draft.parent, first:] if draft.parent >= 0 else False
                above[row, first + i, first + i] = True
        return ids, Branches(depth, above) if self.is_tree else None

    def _decide(self, row: Row, logits: Float[Tensor, "c v"], pending: int) -> list[int]:
        """Take ids for one row; returns the places in the chunk that stay: the pending ids and the right drafts."""
        path = list(range(max(pending, 1)))
        if row.stopped_by:
            return path[:1]
        drafts, parent = self.drafts[row.number], -1
        row.begin_pass([len(draft.path) for draft in drafts])
        while not row.stopped_by:
            children = [i for i, draft in enumerate(drafts) if draft.parent == parent]
            law = self._law(row, logits[path[-1]])
            chosen, id_ = self._draw(row, law, [drafts[i] for i in children])
            self.engine.ids[row.number, self.known[row.number]] = id_
            self.known[row.number] += 1
            row.take(id_, draft=len(path) - pending + 1 if chosen is not None else 0)
            if chosen is None:
                break
            parent = children[chosen]
            path.append(pending + parent)
        row.end_pass(len(path) - pending)
        return path

    def _law(self, row: Row, logits: Float[Tensor, " v"]) -> Float[Tensor, " v"]:
        """Distribution of the next id of a row, given head 1's logits there."""
        mask, logits = row.legal(), logits.cpu()
        if row.rule.temperature == 0:
            allowed = logits if mask is None else logits.masked_fill(~mask, -torch.inf)
            best, second = allowed.topk(2).values.tolist()
            if best - second < MARGIN:
                row.exact += 1
                logits = self.exact.logits(self.engine.ids[row.number, : self.known[row.number]])
        return row.rule.distribution(logits, mask)

    @staticmethod
    def _draw(row: Row, p: Float[Tensor, " v"], drafts: list[Draft]) -> tuple[int | None, int]:
        """An id with law p: the first draft that may stay, or a fresh one.  Returns which draft (or None) and the id.

        Drafts are siblings, each drawn from its own law.  A refused one leaves the part of p that its law falls short
        of, which is the target for the next (recursive rejection, Miao et al. 2024, algorithm 2): the law stays p.
        """
        for number, draft in enumerate(drafts):
            if row.random.random() < acceptance(p, draft.law, draft.id):
                return number, draft.id
            p = residual(p, draft.law)
        return None, draw(p, row.random.random())

    def wants(self, row: Row, depth: int) -> bool:
        """Whether a row can use drafts of that depth: the last byte comes from head 1 anyway."""
        return not row.stopped_by and depth < row.left and any(len(path) == depth for path in self.shape)

    def extend(self, row: Row, depth: int, logits: Float[Tensor, " v"]) -> int:
        """Draft the bytes at one depth of a row's tree from these logits; returns the first of them."""
        drafts = self.drafts[row.number]
        parents = [(-1, ())] if depth == 1 else [(i, d.path) for i, d in enumerate(drafts) if len(d.path) == depth - 1]
        first = EOT
        for parent, path in parents:
            count = sum(node[:-1] == path for node in self.shape if len(node) == depth)
            law = row.legal(self._ids_to(drafts, parent))
            for rank, (id_, q) in enumerate(candidates(row.rule, logits.cpu(), law, count, row.random)):
                drafts.append(Draft(id_, q, parent, (*path, rank)))
                first = id_ if first == EOT and not any(path) and rank == 0 else first
        return first

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

    def propose(self, start: Int[Tensor, " b"], accepted: Int[Tensor, " b"]) -> None:
        loop = self.loop

        def choose(i: int, logits: Float[Tensor, "b v"]) -> Int[Tensor, " b"]:
            ids = [loop.extend(row, i, logits[row.number]) if loop.wants(row, i) else EOT for row in loop.rows]
            return torch.tensor(ids, device=start.device)

        loop.engine.draft(start, accepted, self.heads, choose)

    def follow(self, start: Int[Tensor, " b"], accepted: Int[Tensor, " b"]) -> None:
        """Bring the heads' caches up to date with a piece of the prompt."""
        ignored = torch.full_like(start, EOT)
        self.loop.engine.draft(start, accepted, self.heads, lambda i, logits: ignored)


class OtherModel:
    """Drafts by another, smaller model, one byte a pass of its own."""

    def __init__(self, loop: Loop, model: ByteMTP, capacity: int) -> None:
        self.loop = loop
        self.engine = Incremental(model, len(loop.rows), capacity, window_of(model) or capacity)
        self.start = torch.zeros_like(loop.start)

    def propose(self, start: Int[Tensor, " b"], accepted: Int[Tensor, " b"]) -> None:
        loop, at = self.loop, self.start
        for depth in range(1, len(loop.shape) + 1):
            pending = loop.known + depth - 1 - at
            logits = self._run(at, int(pending.max()))
            for row in loop.rows:
                if loop.wants(row, depth):
                    id_ = loop.extend(row, depth, logits[row.number, int(pending[row.number]) - 1])
                    loop.engine.ids[row.number, loop.known[row.number] + depth - 1] = id_
            at = at + pending
        self.start = loop.known.clone()  # what it has read of its own drafts does not count

    def follow(self, start: Int[Tensor, " b"], accepted: Int[Tensor, " b"]) -> None:
        """Read a piece of the prompt."""
        self._run(start, PREFILL)
        self.start = start + accepted

    def _run(self, start: Int[Tensor, " b"], length: int) -> Float[Tensor, "b c v"]:
        places = start[:, None] + torch.arange(length, device=start.device)
        return self.engine.verify(start, self.loop.engine.ids.gather(1, places))


def window_of(model: ByteMTP) -> int:
    """How far back an id sees in decoding: the model's window, but no further than it was trained to look; 0 is all."""
    return min((limit for limit in (model.config.window, model.trained_length) if limit), default=0)
