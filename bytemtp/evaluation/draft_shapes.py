"""The tree of drafts that brings the most bytes a pass, measured on files.

Greedy decoding keeps a draft if head 1 says the same byte, not if some file does.  So the model reads the files once,
and at each position p the candidates of head d + 1 are compared with what head 1 finds likeliest d bytes further on:

    rank d at p = place of head 1's choice after p + d among head d + 1's candidates at p,   d = 1, 2, ...

The ranks at p are the one path of drafts that a pass from p could keep.  A tree keeps as much of that path as it holds,
so what it brings a pass is, exactly, the sum over its nodes of the share of positions whose path begins with the node.
That needs no assumption that heads err independently, as a product of accuracies per head would.  It is also why taking
the most frequent node next, as long as there is room, is the best choice: a node's share does not depend on what else
is in the tree.  (Only that the elder sibling must be there can make another choice better, and only if a worse rank is
right more often than a better one.)

Every second window chooses the tree, the windows between say how good it is.  There the passes are walked as decoding
does them: a pass that keeps k drafts brings k + 1 bytes, and the next begins k + 1 bytes further on.

Decoding reads what the model writes itself, which may be easier or harder than the files' text.  So by default each
window's second half is replaced by the model's own continuation of its first half (`--text own`), and then the numbers
are those of decoding.  One thing remains approximate: a deepseek head reads the bytes between, and transitions the last
of them, here the right ones, in a tree's side branch those of the best branch.

Try:  python -m bytemtp.evaluate tree RUN PATH --json tree.json
"""

import heapq
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import tyro
from jaxtyping import Int
from torch import Tensor

from bytemtp.common.errors import UserError
from bytemtp.common.files import check_output, write_output
from bytemtp.common.runtime import byte_progress, log, pick_device
from bytemtp.common.settings import DataConfig
from bytemtp.common.vocab import EOT
from bytemtp.decoding.generate import generate
from bytemtp.decoding.tree import Shape, chain, check
from bytemtp.evaluation.bits_per_byte import IDS_A_PASS, PADDING, batched, beginnings, read_ids, unpadded, windows
from bytemtp.evaluation.shape_timing import SIZES, Candidate, is_chain, named, seconds_a_pass, shape_table
from bytemtp.model.checkpoint import load_model, settings_of
from bytemtp.model.model import ByteMTP

Paths = Int[np.ndarray, "_ d"]
"""ranks at consecutive positions: row p is the path of drafts that a pass from there could keep"""

Text = Literal["own", "files"]

TEXTS = 4
"""behind which passes are timed"""


@dataclass(frozen=True)
class Command:
    """Choose the tree of drafts for a run by measuring on files which candidates its heads get right.

    An example:

        python -m bytemtp.evaluate tree runs/demo heldout.tar.zst --json tree.json
        python -m bytemtp.generate runs/demo --prompt "def " --max-bytes 200 --mode tree --tree tree.json

    Use text of the kind that will be decoded.  More nodes bring more bytes a pass and make a pass dearer, so unless
    their number is given, chains and trees of several sizes are timed, and the fastest tree is taken.
    """

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """folder of the run, or one of its checkpoints/step-* folders"""
    paths: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="PATH [PATH ...]")]
    """what to measure on: files, folders, globs, - for standard input, fsspec URLs"""
    nodes: int = 0
    """drafts a pass, at most; 0: as many as are fastest on this machine"""
    text: Text = "own"
    """own: measure on what the model writes after pieces of the files, as in decoding; files: on the files themselves,
    which is faster"""
    bytes: int = 100_000
    """measure on about so many bytes from the front of the files; 0 means all"""
    text_field: str = ""
    """of a .jsonl file's lines: where the text is; as in the run's training unless given"""
    json: tyro.conf.DisallowNone[Path | None] = None
    """write the tree to this file, for `generate --tree`"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N"""

    def main(self) -> None:
        self._check()
        settings = settings_of(self.run)
        data = replace(settings.data, text_field=self.text_field or settings.data.text_field)
        device = pick_device(self.device)
        model = load_model(self.run, device.value)
        log(f"device: {device}  dtype: float32 (decoding's)")
        blocks = measure(model, self.paths, model.trained_length, text=self.text, limit=self.bytes, data=data)
        rest = blocks[1::2] or blocks
        if self.nodes:
            tree = fit(blocks[::2], self.nodes)
        else:
            texts = beginnings(self.paths, TEXTS, model.trained_length // 2, data)
            tree = self._fastest(candidates(model, texts, blocks[::2], rest))
        report = Report(tree, rest)
        print(report)
        if self.json is not None:
            write_output(self.json, json.dumps(report.tree) + "\n")

    def _check(self) -> None:
        """UserError for options that make no sense, before anything is measured."""
        if not self.paths:
            raise UserError("no PATH given; name the files to measure on, or - for standard input")
        if self.nodes < 0:
            raise UserError(f"nodes is {self.nodes}; it must be at least 1, or 0 for as many as are fastest")
        if not self.nodes and "-" in self.paths:
            raise UserError("standard input cannot be read twice; give --nodes with it, or a file")
        if self.bytes < 0:
            raise UserError(f"bytes is {self.bytes}; it must be 0 (all) or more")
        check_output(self.json)

    def _fastest(self, timed: "list[Candidate]") -> Shape:
        """The fastest tree, or chain where no tree was tried; says how it compares."""
        print(shape_table(timed), end="\n\n")
        trees = [each for each in timed if each.shape and not is_chain(each.shape)] or timed[1:]
        best = max(trees, key=lambda each: each.bytes_per_s)
        if self.json is not None:
            share = best.bytes_per_s / max(each.bytes_per_s for each in timed)
            log(f"{self.json} gets the best tree, which has {share:.0%} of the fastest shape's bytes/s")
        return best.shape


def candidates(
    model: ByteMTP, texts: Sequence[bytes], fitted_on: Sequence[Paths], judged_on: Sequence[Paths]
) -> list[Candidate]:
    """No drafts, all chains, and trees of several sizes: what each brings and costs."""
    depth = fitted_on[0].shape[1]
    trees = [fit(fitted_on, nodes) for nodes in SIZES]
    shapes = list(dict.fromkeys([(), *map(chain, range(1, depth + 1)), *trees]))
    log(f"timing {len(shapes)} shapes of drafts")
    seconds = seconds_a_pass(model, texts, shapes)
    return [
        Candidate(named(shape)[0], shape, named(shape)[1], bytes_per_pass(judged_on, shape), time)
        for shape, time in zip(shapes, seconds, strict=True)
    ]


def measure(
    model: ByteMTP,
    paths: Sequence[str],
    seq_len: int,
    *,
    text: Text = "files",
    limit: int = 0,
    data: DataConfig | None = None,
) -> list[Paths]:
    """Ranks on `paths`, one array a window of `seq_len` bytes; half of each is context.

    text: what is read after that context, see `Command`.  limit: about so many bytes from the front; 0 means all.
    UserError for a model with one head, for windows shorter than its heads reach, for files in which no document is as
    long as that, and as from `bytemtp.stream`.
    """
    depth = model.config.n_future - 1
    if not depth:
        raise UserError("the model has one head, which drafts nothing; train one with model.n_future above 1")
    if seq_len <= 2 * depth:
        raise UserError(f"train.seq_len of the run is {seq_len}; measuring needs more than {2 * depth}")
    stride = (seq_len - depth) // 2
    rows = windows(read_ids(paths, data or DataConfig()), seq_len - depth, stride, 2 * depth)
    rows = islice(rows, -(-limit // stride) if limit else None)
    blocks: list[Paths] = []
    with byte_progress("measured") as bar:
        for batch in batched(rows, max(1, IDS_A_PASS // seq_len)):
            read = [own_text(model, row, seq_len - depth - stride + 1) for row in batch] if text == "own" else batch
            blocks += window_paths(model, torch.stack(read), stride)
            bar.update(stride * len(batch))
    if not sum(map(len, blocks)):
        raise UserError(f"the files hold no document of {depth} or more bytes to measure on")
    return blocks


def own_text(model: ByteMTP, row: Int[Tensor, " s"], given: int) -> Int[Tensor, " s"]:
    """The window with its first `given` ids continued by the model in place of the file."""
    ids = row[:given].tolist()
    if EOT not in ids:
        ids[0] = EOT  # as decoding does, which always opens a document
    prompt = ids[max(i for i, id_ in enumerate(ids) if id_ == EOT) + 1 :]
    out = generate(model, bytes(prompt), len(row) - given, mode="speculative")
    ids += [*out.data, EOT][: len(row) - given]
    return torch.tensor(ids + [PADDING] * (len(row) - len(ids)))


@torch.no_grad()
def window_paths(model: ByteMTP, rows: Int[Tensor, "b s_2d"], stride: int) -> Iterator[Paths]:
    """Ranks at the `stride` positions of each window that have all its context, in runs of consecutive positions.

    A window ends with 2 d ids more than are scored: d at which head 1 is asked, and d that deepseek heads read there.
    """
    depth = model.config.n_future - 1
    ids, document_ids = unpadded(rows.to(model.device))
    context = model.context(ids, ids.shape[1] - depth, document_ids)
    hidden = model.heads(model.run_trunk(context), context)
    end = context.length - depth
    asked = model.logits(0, hidden[0][:, end - stride :]).argmax(-1)
    here = slice(end - stride, end)
    ranks = [
        places(model.logits(d, hidden[d][:, here], context.ahead(d)[:, here]), asked[:, d : d + stride])
        for d in range(1, depth + 1)
    ]
    opens, last = document_ids[:, here], document_ids[:, end - stride + depth : end + depth]
    usable = ((opens == last) & (opens != PADDING)).cpu().numpy()
    stacked = torch.stack(ranks, dim=-1).cpu().numpy()
    for block, good in zip(stacked, usable, strict=True):
        yield from consecutive(block, good)


def places(logits: Tensor, chosen: Int[Tensor, "b s"]) -> Int[Tensor, "b s"]:
    """Place of `chosen` among the candidates, best first; of equals the smaller id goes first, as in decoding."""
    own = logits.gather(-1, chosen[..., None])
    equal_before = (logits == own) & (torch.arange(logits.shape[-1], device=logits.device) < chosen[..., None])
    return ((logits > own) | equal_before).sum(-1)


def consecutive(block: Paths, usable: np.ndarray) -> Iterator[Paths]:
    """The runs of usable positions."""
    bounds = np.flatnonzero(np.diff(np.concatenate([[False], usable, [False]]).astype(np.int8)))
    for begin, end in zip(bounds[::2], bounds[1::2], strict=True):
        yield block[begin:end]


def fit(blocks: Sequence[Paths], nodes: int) -> Shape:
    """The tree of at most `nodes` nodes that keeps the most drafts; fewer if no other node was ever right."""
    counts = prefix_counts(blocks)
    frontier: list[tuple[int, tuple[int, ...]]] = [(-counts[(0,)], (0,))]
    tree: list[tuple[int, ...]] = []
    while frontier and len(tree) < nodes:
        count, node = heapq.heappop(frontier)
        if not count:
            break
        tree.append(node)
        child, sibling = (*node, 0), (*node[:-1], node[-1] + 1)
        for following in (child, sibling):
            heapq.heappush(frontier, (-counts[following], following))
    return check(tree)


def prefix_counts(blocks: Sequence[Paths]) -> Counter[tuple[int, ...]]:
    """At how many positions the path begins with a node, for all nodes that occur."""
    counts: Counter[tuple[int, ...]] = Counter()
    for block in blocks:
        for path in map(tuple, block.tolist()):
            counts.update(path[:depth] for depth in range(1, len(path) + 1))
    return counts


def kept(block: Paths, tree: Shape) -> list[int]:
    """How many drafts of the tree a pass from each position keeps."""
    nodes = set(tree)
    return [sum(path[:depth] in nodes for depth in range(1, len(path) + 1)) for path in map(tuple, block.tolist())]


def bytes_per_pass(blocks: Sequence[Paths], tree: Shape) -> float:
    """Walk the blocks in passes as decoding would, each from where the one before it ended."""
    passes = total = 0
    for block in blocks:
        lengths, position = kept(block, tree), 0
        while position < len(block):
            passes, total = passes + 1, total + lengths[position] + 1
            position += lengths[position] + 1
    return total / passes if passes else 1.0


@dataclass(frozen=True)
class Report:
    """A tree beside the shapes that need no measuring."""

    tree: Shape
    blocks: Sequence[Paths]
    """windows that did not choose the tree"""

    def __str__(self) -> str:
        depth = self.blocks[0].shape[1]
        shapes = {
            "no drafts": (),
            f"chain of {min(len(self.tree), depth)}": chain(min(len(self.tree), depth)),
            f"chain of {depth}": chain(depth),
            f"fitted tree, {max(map(len, self.tree), default=0)} deep": self.tree,
        }
        positions = sum(map(len, self.blocks))
        lines = [f"{'shape':22} {'nodes':>5}  bytes a pass  ({positions:,} positions)"]
        lines += [f"{name:22} {len(s):5}  {bytes_per_pass(self.blocks, s):12.3f}" for name, s in shapes.items()]
        return "\n".join([*lines, "", *self._accuracies(depth)])

    def _accuracies(self, depth: int) -> list[str]:
        """By draft, how often each candidate is right where all best candidates before it were."""
        paths = np.concatenate(list(self.blocks))
        names = ("best", "second", "third", "fourth")
        header = " " * 8 + "  positions" + "".join(f"{name:>8}" for name in names)
        lines = ["right, of the positions where the best candidates before it are right:", header]
        for d in range(depth):
            shares = [float((paths[:, d] == rank).mean()) if len(paths) else 0.0 for rank in range(len(names))]
            lines.append(f"draft {d + 1:2} {len(paths):10,}" + "".join(f"{share:8.1%}" for share in shares))
            paths = paths[paths[:, d] == 0]
        return lines
