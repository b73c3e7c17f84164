"""From a prompt to new bytes: `generate`, for several prompts `generate_batch`, byte by byte `generate_stream`.

bytemtp.generate(model, b"def add(", 200, mode="speculative").data
"""

import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from bytemtp.common.checks import Check, checked, choice, instance, octets, octets_list, optional, real, whole
from bytemtp.common.errors import UserError
from bytemtp.decoding.corpus_index import CorpusIndex
from bytemtp.decoding.costs import costs_of
from bytemtp.decoding.engines.select import ENGINES
from bytemtp.decoding.loop import COPIED, Drafting, VerifyLoop
from bytemtp.decoding.loops import loop_kind
from bytemtp.decoding.row import Row
from bytemtp.decoding.sampling import Rule
from bytemtp.decoding.tree import Shape, chain, check
from bytemtp.model.model import ByteMTP

K = TypeVar("K")
Mode = Literal["auto", "ar", "speculative", "tree", "draft", "copy"]
EngineName = Literal["auto", "native", "torch", "recorded"]


@dataclass(frozen=True)
class Generation:
    """What `generate` returns."""

    data: bytes
    """the new bytes; the prompt is not repeated, a stop string not included"""
    stats: dict[str, Any]
    """mode, engine, bytes, forwards, bytes_per_forward, seconds, prompt_seconds (of them until the first byte),
    bytes_per_s, stopped_by, exact, and what `pass_stats` counts (docs/decoding.md has the list)"""
    origins: list[int] = field(default_factory=list)
    """for each byte the number of the draft that it was, 0 if head 1 gave it"""


@dataclass(frozen=True)
class Options:
    """How to decode."""

    mode: Mode = "ar"
    """ar: a byte a pass; speculative: a chain of drafts by the model's own heads; tree: a tree of them; draft: a chain
    by another model; copy: bytes that followed the end of the text where it stood before; auto: at every pass copies,
    heads or no drafts, and as many as pay by what passes cost on this machine"""
    index: CorpusIndex | None = None
    """of files that modes "copy" and "auto" may copy from, beside the text itself (`python -m bytemtp.index`)"""
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
    engine: EngineName = "auto"
    """native: steps compiled from C++, for CPU cores; torch: tensor operations, for any device and dtype;
    recorded: the same, as CUDA graphs (on CPU cores by torch.compile); auto: recorded on CUDA, else native where it can
    be, else torch"""

    def row(self, prompt: bytes, number: int, max_bytes: int) -> Row:
        """A row that starts with `prompt`.  UserError for options that make no sense."""
        rule = Rule(self.temperature, self.top_k, self.top_p)
        return Row(prompt, number, max_bytes, rule, self.seed, tuple(self.stop), self.utf8)

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
        return () if self.mode in ("ar", "copy") else chain(depth)

    def drafting(self, model: ByteMTP, rows: int, draft: ByteMTP | None = None) -> Drafting:
        """What drafts for so many rows at a time; draft: the other model of mode "draft"."""
        if (self.mode == "draft") != (draft is not None):
            raise UserError("mode 'draft' needs a draft model, and no other mode takes one")
        if self.tree and self.mode != "tree":
            raise UserError(f"a tree is for the mode 'tree', but the mode is {self.mode!r}")
        copies = self.mode in ("copy", "auto")
        if self.index is not None and not copies:
            raise UserError(f"an index is for the modes 'copy' and 'auto', but the mode is {self.mode!r}")
        shape, costs = self.shape(model), None
        if self.mode == "auto":
            costs = costs_of(model, rows, self.engine, greedy=self.temperature == 0, index=self.index)
        if costs is not None and not costs.may_pay:
            return Drafting()
        copied = costs.most if costs is not None else COPIED if copies else 0
        return Drafting(shape, self.mode == "tree", draft, copied, self.index, costs)

    def loop(self, model: ByteMTP, rows: list[Row], draft: ByteMTP | None = None, slots: int = 0) -> VerifyLoop:
        """The loop that decodes these rows, so many at a time (0: all); draft: the other model of mode "draft"."""
        drafting = self.drafting(model, slots or len(rows), draft)
        kind = loop_kind(self.engine, model, rows, drafting)
        return kind(model, rows, drafting, engine=self.engine, slots=slots)

    def ended(self, model: ByteMTP, rows: Mapping[K, Row], slots: int) -> Iterator[tuple[K, Row]]:
        """Decode these rows, so many at a time, and give each as it ends, with its key."""
        left = dict(rows)
        for _ in self.loop(model, list(left.values()), slots=slots).passes() if left else ():
            for key in [key for key, row in left.items() if row.stopped_by]:
                yield key, left.pop(key)


def _index(name: str, value: Any) -> CorpusIndex | None:
    """The path of an index opens it."""
    if isinstance(value, str | Path):
        return CorpusIndex(Path(value))
    return None if value is None else instance(CorpusIndex, "the file of an index")(name, value)


MODEL = instance(ByteMTP, "a model, as bytemtp.load(RUN) gives it")
CHECKS: dict[str, Check] = {
    "model": MODEL,
    "draft": optional(MODEL),
    "prompt": octets,
    "prompts": octets_list,
    "max_bytes": whole(0),
    "mode": choice(*get_args(Mode)),
    "index": _index,
    "heads": whole(0),
    "tree": lambda _, value: check(value),
    "temperature": real,
    "top_k": whole(0),
    "top_p": real,
    "seed": whole(),
    "stop": octets_list,
    "utf8": instance(bool, "True or False"),
    "engine": choice(*get_args(EngineName)),
}
"""What each argument of the functions below must be.  Where a range depends on others, `Options` looks at it."""


@checked(CHECKS)
def generate(model: ByteMTP, prompt: bytes, max_bytes: int, draft: ByteMTP | None = None, **options: Any) -> Generation:
    """Continue `prompt` by up to `max_bytes` bytes; `options` are the fields of `Options`.

    draft: the other model of mode "draft".  An empty prompt starts a document.  UserError for arguments that make no
    sense.
    """
    return generate_batch(model, [prompt], max_bytes, draft, **options)[0]


@checked(CHECKS)
def generate_batch(
    model: ByteMTP, prompts: Sequence[bytes], max_bytes: int, draft: ByteMTP | None = None, **options: Any
) -> list[Generation]:
    """Continue several prompts together; see `generate`."""
    chosen = Options(**options)
    if not prompts:
        return []
    rows = [chosen.row(prompt, number, max_bytes) for number, prompt in enumerate(prompts)]
    loop = chosen.loop(model, rows, draft)
    loop.run()
    seconds = loop.seconds()
    return [_generation(chosen.mode, loop, row, seconds) for row in rows]


@checked(CHECKS)
def generate_stream(
    model: ByteMTP, prompt: bytes, max_bytes: int, draft: ByteMTP | None = None, **options: Any
) -> Generator[bytes, None, Generation]:
    """The bytes of `generate`, each as soon as no stop string can take it back.

    The iterator's return value (what `yield from` gives) is the `Generation`.
    """
    chosen = Options(**options)
    row = chosen.row(prompt, 0, max_bytes)
    loop = chosen.loop(model, [row], draft)
    return _stream(chosen.mode, loop, row, loop.seconds())


def _stream(mode: Mode, loop: VerifyLoop, row: Row, built: float) -> Generator[bytes, None, Generation]:
    loop.begun += loop.seconds() - built  # nobody may have asked for a byte until now
    sent, away = 0, 0.0
    for _ in loop.passes():
        if row.settled > sent:
            begun = time.perf_counter()
            yield bytes(row.data[sent : row.settled])
            away += time.perf_counter() - begun  # in the caller's code
            sent = row.settled
    return _generation(mode, loop, row, loop.seconds() - away)


def _generation(mode: Mode, loop: VerifyLoop, row: Row, seconds: float) -> Generation:
    stats = {"mode": mode, "engine": ENGINES[type(loop.engine)], **row.stats(seconds)}
    return Generation(bytes(row.data), {**stats, "prompt_seconds": loop.prompt_seconds}, row.origins)
