"""Drafts as a tree: several candidates for each of the next bytes, all verified in one pass.

A shape is a list of nodes, each a path of ranks: (0,) is head 2's best candidate, (0, 2) head 3's third best after it.
A chain of drafts is the shape (0,), (0, 0), (0, 0, 0), ...
"""

from collections.abc import Sequence

from bytemtp.common.errors import UserError

Shape = tuple[tuple[int, ...], ...]


def chain(length: int) -> Shape:
    """One candidate for each of `length` bytes."""
    return tuple((0,) * depth for depth in range(1, length + 1))


def check(shape: Sequence[Sequence[int]]) -> Shape:
    """The shape with parents before children and siblings by rank.  UserError if a node lacks its parent or sibling."""
    nodes = {tuple(node) for node in shape}
    for node in nodes:
        parent, elder = node[:-1], (*node[:-1], node[-1] - 1) if node else ()
        if not node or (parent and parent not in nodes) or (node[-1] > 0 and elder not in nodes) or min(node) < 0:
            raise UserError(f"the tree has the node {list(node)} without its parent or the rank before it")
    return tuple(sorted(nodes, key=lambda node: (len(node), node)))
