"""Does predicting several bytes ahead teach a model to look ahead?  See README.md.

Settings that begin with graph. say what the questions are: degree, length, names, how many are trained on (count) and
scored (heldout), and how many a row of training holds (per_row).
"""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

import bytemtp
from bytemtp.bench.turns import markdown_table
from bytemtp.common.cli import run_main
from bytemtp.common.runtime import pick_device
from bytemtp.common.vocab import EOT
from bytemtp.reports.figures import COLOURS, describe, literal
from experiments.documents import answers, written_once
from experiments.grid import RUNS, Cell, Experiment, Line, main, train
from experiments.planning.graphs import Question, Star, questions, unheard
from experiments.tables import by_cell, draw_dots, mean_and_sd, paired, percentages

TRAIN_SEED, HELDOUT_SEED = 0, 1
"""Of the questions, the same for all cells; --seeds are those of the weights and of the order."""
FIGURES = {"exact": "the whole path", "first": "first step", "along": "along some arm"}
BATCH = 250
"""Questions asked at a time."""


def score(cell: Cell) -> dict[str, Any]:
    star, heldout = star_of(cell.settings), heldout_of(cell.settings)
    trained = train(cell, corpus(cell, star, heldout), **rows(star, cell.settings["graph.per_row"]))
    model = bytemtp.load(cell.folder, pick_device().value)
    written = answers(model, [q.prompt for q in heldout], len(heldout[0].answer))
    return trained | accuracy(heldout, written) | {"ahead": ahead(model, heldout)}


def rows(star: Star, count: int) -> dict[str, int]:
    """Settings for rows of `count` whole documents, each with its end, from the first step on.

    With two or more, most of them have the end of a document before them, as prompts do.
    """
    return {"train.seq_len": count * (star.bytes + 1), "train.first_seq_len": 0}


def star_of(settings: dict[str, Any]) -> Star:
    return Star(*(settings[f"graph.{name}"] for name in ("degree", "length", "names")))


def heldout_of(settings: dict[str, Any]) -> list[Question]:
    return list(questions(star_of(settings), settings["graph.heldout"], HELDOUT_SEED))


def corpus(cell: Cell, star: Star, heldout: Sequence[Question]) -> Path:
    """The file to train on, written once for all cells with these graphs."""
    count = cell.settings["graph.count"]
    name = f"G-{star.degree}-{star.length}-of-{star.names}-{count}-without-{len(heldout)}.jsonl.zst"
    taboo = {question.prompt for question in heldout}
    return written_once(RUNS / cell.experiment / "data" / name, unheard(star, count, TRAIN_SEED, taboo))


@torch.no_grad()
def ahead(model: bytemtp.ByteMTP, asked: Sequence[Question]) -> list[float]:
    """By head, how often it knows its node of the path when the prompt has just ended: head 1 the centre, and so on."""
    heads = min(model.config.n_future, len(asked[0].answer))
    right = torch.zeros(heads)
    for batch in (asked[i : i + BATCH] for i in range(0, len(asked), BATCH)):
        ids = torch.tensor([[EOT, *q.prompt.encode()] for q in batch], device=model.device)
        path = torch.tensor([[*q.answer.encode()] for q in batch])
        right += (model(ids)[:heads, :, -1].argmax(-1).cpu() == path.T[:heads]).sum(1)
    return (right / len(asked)).tolist()


def accuracy(asked: Sequence[Question], written: Sequence[bytes]) -> dict[str, float]:
    """Shares of the answers that are right, that begin with the right step, and that go along some arm.

    The last node does not count for the third: a model may copy it from the prompt, whichever arm it has taken.
    """
    pairs = [(q, answer.decode("latin-1")) for q, answer in zip(asked, written, strict=True)]
    return {
        "exact": sum(answer == q.answer for q, answer in pairs) / len(pairs),
        "first": sum(answer[:2] == q.answer[:2] for q, answer in pairs) / len(pairs),
        "along": sum(answer[:-1] in {arm[:-1] for arm in q.arms} for q, answer in pairs) / len(pairs),
    }


def table(lines: Sequence[Line]) -> str:
    """Percentages; then, for each graph, every model against its first one."""
    cells = by_cell(lines)
    header = [
        "cell",
        "seeds",
        *(f"{what}, %" for what in FIGURES.values()),
        "chance, %",
        "by head, from the prompt, %",
        "minutes a run",
    ]
    first = markdown_table([row(name, of_cell) for name, of_cell in cells.items()], header)
    differences = [
        [f"{name} minus {model_of(base)}", *paired(cells[name], cells[base], "exact", ".1f", 100)]
        for base, *others in by_graph(cells).values()
        for name in others
    ]
    second = markdown_table(differences, ["difference of the whole path, points", "seeds", "mean", "p"])
    return f"{first}\n\n{second}" if differences else first


def row(name: str, lines: Sequence[Line]) -> list[str]:
    heads = [line["ahead"] for line in lines]
    return [
        name,
        str(len(lines)),
        *(percentages(lines, figure) for figure in FIGURES),
        f"{100 * chance(lines):.0f}",
        " ".join(f"{100 * share:.0f}" for share in map(statistics.mean, zip(*heads, strict=True))),
        mean_and_sd([line["minutes"] for line in lines], ".1f"),
    ]


def chance(lines: Sequence[Line]) -> float:
    """Of a first step that is guessed."""
    return 1 / lines[0]["key"]["settings"]["graph.degree"]


def by_graph(cells: dict[str, list[Line]]) -> dict[str, list[str]]:
    """`G(2,4), n=1` belongs to G(2,4); a graph's cells stay in order."""
    graphs: dict[str, list[str]] = {}
    for name in cells:
        graphs.setdefault(name.rpartition(", ")[0], []).append(name)
    return graphs


def model_of(name: str) -> str:
    return name.rpartition(", ")[2]


def draw(lines: Sequence[Line]) -> Figure:
    """A panel a graph: a row a model, dots for the seeds, a dashed line at what guessing the first step gives."""
    cells = by_cell(lines)
    graphs, models = by_graph(cells), list(dict.fromkeys(map(model_of, cells)))
    picture = Figure(figsize=(3.2 * len(graphs), 2.4), dpi=150, layout="constrained")
    for axes, (graph, names) in zip(picture.subplots(1, len(graphs), squeeze=False)[0], graphs.items(), strict=True):
        for place, name in enumerate(names):
            draw_dots(axes, [100 * line["exact"] for line in cells[name]], place, models.index(model_of(name)))
        axes.axvline(100 * chance(cells[names[0]]), color=COLOURS[-1], linewidth=0.8, linestyle="--")
        axes.set_yticks(range(len(names)), [literal(model_of(name)) for name in names])
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlim(-4, 104)
        describe(axes, "exact paths (%); dashed: chance", "", graph)
    return picture


EXPERIMENT = Experiment("planning", score, table, draw)

if __name__ == "__main__":
    run_main(lambda: main(EXPERIMENT))
