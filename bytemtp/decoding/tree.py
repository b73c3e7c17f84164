"""Drafts as a tree: several candidates for each of the next bytes, all verified in one pass.

A shape is a list of nodes, each a path of ranks: (0,) is head 2's best candidate, (0, 2) head 3's third best after it.
A chain of drafts is the shape (0,), (0, 0), (0, 0, 0), ...  A `DraftTree` fills a shape with ids, for one row and pass.

    check([[0], [0, 0], [1]])        # ((0,), (1,), (0, 0))

Shapes:  b rows, c ids of a chunk, h drafting heads, v vocabulary.
"""

from collections import Counter
from collections.abc import Sequence
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Float64, Int

from bytemtp.common.checks import shown
from bytemtp.common.errors import UserError
from bytemtp.decoding.engines.engine import Branches
from bytemtp.decoding.row import Row
from bytemtp.decoding.sampling import sample_candidates, top_candidates

Shape = tuple[tuple[int, ...], ...]


def chain(length: int) -> Shape:
    """One candidate for each of `length` bytes."""
    return tuple((0,) * depth for depth in range(1, length + 1))


def check(shape: Any) -> Shape:
    """A list of paths as a shape, with parents before children and siblings by rank.

    UserError if it is no list of paths of ranks, or if a node lacks its parent or sibling.
    """
    if not _is_paths(shape):
        raise UserError(f"the tree is {shown(shape)}, no list of paths of ranks like [[0], [0, 0], [1]]")
    nodes = {tuple(node) for node in shape}
    for node in nodes:
        parent, elder = node[:-1], (*node[:-1], node[-1] - 1) if node else ()
        if not node or (parent and parent not in nodes) or (node[-1] > 0 and elder not in nodes) or min(node) < 0:
            raise UserError(f"the tree has the node {list(node)} without its parent or the rank before it")
    return tuple(sorted(nodes, key=lambda node: (len(node), node)))


def _is_paths(shape: Any) -> bool:
    return isinstance(shape, list | tuple) and all(
        isinstance(node, list | tuple) and all(isinstance(rank, Integral) for rank in node) for node in shape
    )


def depth_of(shape: Shape) -> int:
    """Length of the longest path; 0 if there is none."""
    return max(map(len, shape), default=0)


class Draft(NamedTuple):
    """One candidate for a byte to come."""

    id: int
    q: Float64[np.ndarray, " v"] | None
    """the distribution that it was drawn from; None in greedy decoding, and in chains, which have all in one"""
    parent: int
    """index of the draft before it in its tree's list; -1 if it follows the decided text"""
    path: tuple[int, ...]
    """its node in the tree's shape"""


class DraftTree:
    """The drafts that a row verifies in its next pass, parents before children."""

    def __init__(self, row: Row, shape: Shape, source: str = "heads") -> None:
        self.row, self.depth, self.source = row, depth_of(shape), source
        self.children_of = Counter(node[:-1] for node in shape)
        self.drafts: list[Draft] = []

    def begin(self) -> None:
        """Drafts for the next pass: none yet."""
        self.drafts.clear()

    def follows(self) -> bool:
        """Whether the drafter must read what was accepted even if nothing is wanted from it."""
        return False

    def learn(self, accepted: int) -> None:
        """So many drafts of the pass stay."""

    def wants(self, depth: int) -> bool:
        """Whether the row can use drafts of that depth: the last byte comes from head 1 anyway."""
        return not self.row.stopped_by and depth <= self.depth and depth < self.row.left

    def grow(self, depth: int, logits: Float32[np.ndarray, " v"]) -> int | None:
        """Draft the ids at one depth, in all branches from the same logits.

        Returns that of the best chain (the path of ranks 0), None if it ends before.
        """
        for parent, path in self._parents(depth):
            for rank, (id_, q) in enumerate(self._candidates(logits, parent, self.children_of[path])):
                self.drafts.append(Draft(id_, q, parent, (*path, rank)))
        return next((draft.id for draft in self.drafts if draft.path == (0,) * depth), None)

    def grow_all(self, logits: Float32[np.ndarray, "h v"]) -> None:
        """Draft at all depths, where no logits depend on drafts."""
        for depth, one in enumerate(logits, 1):
            if self.wants(depth):
                self.grow(depth, one)

    def children(self, parent: int) -> list[int]:
        """Indices of the drafts that follow the draft with index `parent`; -1 is the decided text."""
        return [i for i, draft in enumerate(self.drafts) if draft.parent == parent]

    def _parents(self, depth: int) -> list[tuple[int, tuple[int, ...]]]:
        """Index and path of what drafts at this depth follow."""
        if depth == 1:
            return [(-1, ())]
        drafts = enumerate(self.drafts)
        return [(i, draft.path) for i, draft in drafts if len(draft.path) == depth - 1 and self.children_of[draft.path]]

    def _candidates(
        self, logits: Float32[np.ndarray, " v"], parent: int, count: int
    ) -> list[tuple[int, Float64[np.ndarray, " v"] | None]]:
        row = self.row
        legal = row.legal(self._ids_to(parent)) if row.utf8_state is not None else None
        if row.rule.temperature == 0:
            return [(id_, None) for id_ in top_candidates(logits, legal, count)]
        return list(sample_candidates(row.rule, logits, legal, count, row.random))

    def _ids_to(self, index: int) -> list[int]:
        """Ids from the decided text to a draft."""
        ids: list[int] = []
        while index >= 0:
            ids.insert(0, self.drafts[index].id)
            index = self.drafts[index].parent
        return ids


def branches_of(trees: Sequence[DraftTree], pending: Int[np.ndarray, " b"], length: int) -> Branches:
    """Who follows whom in chunks of `length` ids: the pending ids of each row, then the drafts of its tree."""
    place = np.arange(length)
    ancestors = (place[:, None] >= place)[None].repeat(len(trees), 0)
    depth = place[None].repeat(len(trees), 0)
    for row, tree in enumerate(trees):
        first = int(pending[row])
        for i, draft in enumerate(tree.drafts, first):
            depth[row, i] = first - 1 + len(draft.path)
            ancestors[row, i, first:] = ancestors[row, first + draft.parent, first:] if draft.parent >= 0 else False
            ancestors[row, i, i] = True
    return Branches(depth, ancestors)
