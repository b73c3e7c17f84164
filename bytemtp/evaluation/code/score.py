"""From verdicts to pass@k: the unbiased estimate, its uncertainty, and what a folder's summary.json says.

pass@k of a problem with n samples, c of them right, is the probability that k of the n, drawn without putting back,
have a right one among them: 1 - C(n - c, k) / C(n, k), as in Chen et al. 2021; `execute.pass_at_k` has it as a product.
The score is the mean over problems.  Its interval is a bootstrap over problems: what other problems of this kind would
have given, not other samples.

"oracle" takes for each k the cell with the best score on these very problems, as table S12 of Gloeckle et al. 2024
does: an upper bound, and marked as one.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from bytemtp.evaluation.code.execute import pass_at_k
from bytemtp.evaluation.code.problems import Problem
from bytemtp.evaluation.code.samples import Cell

RESAMPLES = 2000
LEVEL = 0.95
OTHER = "other"
"""Family of the problems that have none."""
ORACLE_NOTE = "best temperature and top-p per k, chosen on the test score itself: an upper bound, not a result"

Outcomes = Mapping[str, Sequence[bool]]
"""Whether each sample passed, by task."""


def estimates(outcomes: Outcomes, ks: Iterable[int]) -> dict[int, Float[np.ndarray, " problem"]]:
    """pass@k of each problem.  UserError for a k that one of them has too few samples for."""
    counts = [(len(results), sum(results)) for results in outcomes.values()]
    return {k: np.array([pass_at_k(n, c, k) for n, c in counts], dtype=float) for k in ks}


def interval(scores: Float[np.ndarray, " problem"], seed: int = 0) -> tuple[float, float]:
    """Bootstrap interval of the mean over problems."""
    draws = np.random.default_rng(seed).integers(0, len(scores), (RESAMPLES, len(scores)))
    low, high = np.quantile(scores[draws].mean(axis=1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def summarise(problems: Sequence[Problem], results: Iterable[dict[str, Any]], ks: Sequence[int]) -> dict[str, Any]:
    """The scores of each cell, by family, and over cells.  `results` are lines of results.jsonl."""
    by_cell: dict[Cell, list[dict[str, Any]]] = defaultdict(list)
    for line in results:
        by_cell[Cell(line["temperature"], line["top_p"])].append(line)
    cells = [_cell(cell, problems, lines, ks) for cell, lines in by_cell.items()]
    first = {name: value for name, value in cells[0].items() if name not in ("families", "verdicts", "samples")}
    summary = first | {"problems": len(problems), "samples": sum(cell["samples"] for cell in cells), "cells": cells}
    return summary | ({"oracle": oracle(cells, ks)} if len(cells) > 1 else {})


def _cell(
    cell: Cell, problems: Sequence[Problem], lines: Sequence[dict[str, Any]], ks: Sequence[int]
) -> dict[str, Any]:
    outcomes: dict[str, list[bool]] = {problem.task_id: [] for problem in problems}
    for line in lines:
        outcomes[line["task_id"]].append(line["passed"])
    scores = estimates(outcomes, ks)
    families: dict[str, list[int]] = defaultdict(list)
    for place, problem in enumerate(problems):
        families[problem.family or OTHER].append(place)
    return {
        "temperature": cell.temperature,
        "top_p": cell.top_p,
        **{f"pass@{k}": float(values.mean()) for k, values in scores.items()},
        **{f"pass@{k}_interval": interval(values) for k, values in scores.items()},
        "samples": len(lines),
        "verdicts": dict(Counter(line["result"].partition(":")[0] for line in lines).most_common()),
        "families": {
            family: {"problems": len(places)}
            | {f"pass@{k}": float(values[places].mean()) for k, values in scores.items()}
            for family, places in sorted(families.items())
        },
    }


def oracle(cells: Sequence[dict[str, Any]], ks: Iterable[int]) -> dict[str, Any]:
    """For each k the best cell."""
    found: dict[str, Any] = {"note": ORACLE_NOTE}
    for name in (f"pass@{k}" for k in ks):
        best = max(cells, key=lambda cell: cell[name])
        found[name] = {"value": best[name], "temperature": best["temperature"], "top_p": best["top_p"]}
    return found
