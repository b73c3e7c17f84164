"""What the passes of a text drafted and what became of it, under the names that servers use.

passes = [Pass(source="heads", drafts=3, depth=3, accepted=2), Pass(source="copies", drafts=8, depth=8, accepted=0)]
pass_stats(passes)["mean_acceptance_length"]  # 2.0
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple


class Pass(NamedTuple):
    """A verifying pass."""

    source: str
    """where its drafts are from: "heads", "copies" or "model" """
    drafts: int
    """how many it verifies, in a tree all of them"""
    depth: int
    """how many of them in a row, at most: so many it can accept"""
    accepted: int


def pass_stats(passes: Iterable[Pass]) -> dict[str, Any]:
    """Fields of `Generation.stats`; from `mean_acceptance_length` on those that vLLM gives for a request.

    They leave out passes without drafts.  `sources` has three of them for each source.
    """
    passes = list(passes)
    drafted = [one for one in passes if one.drafts]
    steps, drafts, accepted = _totals(drafted)
    longest = max((one.depth for one in drafted), default=0)
    return {
        "accepted": dict(sorted(Counter(one.accepted for one in passes).items())),
        "accept_rate_by_position": [_rate(drafted, position) for position in range(1, longest + 1)],
        "mean_acceptance_length": 1 + accepted / max(steps, 1),
        "draft_acceptance_rate": accepted / max(drafts, 1),
        "acceptance_histogram": _histogram(drafted, longest),
        "acceptance_histogram_by_draft_length": {
            depth: _histogram([one for one in drafted if one.depth == depth], depth)
            for depth in sorted({one.depth for one in drafted})
        },
        "num_spec_steps": steps,
        "num_accepted_draft_tokens": accepted,
        "num_draft_tokens": drafts,
        "num_spec_tokens": longest,
        "sources": {source: _source(drafted, source) for source in sorted({one.source for one in drafted})},
    }


def _totals(passes: Sequence[Pass]) -> tuple[int, int, int]:
    """How many passes, drafts and accepted drafts they are."""
    return len(passes), sum(one.drafts for one in passes), sum(one.accepted for one in passes)


def _source(passes: Sequence[Pass], source: str) -> dict[str, int]:
    steps, drafts, accepted = _totals([one for one in passes if one.source == source])
    return {"steps": steps, "draft_tokens": drafts, "accepted_draft_tokens": accepted}


def _histogram(passes: Sequence[Pass], longest: int) -> list[int]:
    """Passes that accepted 0, 1, ..., `longest` drafts."""
    counts = Counter(one.accepted for one in passes)
    return [counts[number] for number in range(longest + 1)]


def _rate(passes: Sequence[Pass], position: int) -> float:
    """Of the passes with a draft at that position the share that accepted it."""
    reaching = [one.accepted >= position for one in passes if one.depth >= position]
    return sum(reaching) / len(reaching)
