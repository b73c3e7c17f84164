"""Star graphs: the question has one answer, every row of training holds whole questions, and scores count."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import zstandard
from hypothesis import given
from hypothesis import strategies as st

import bytemtp
from bytemtp.common.errors import UserError
from bytemtp.common.presets import DEFAULT_PRESET, PRESETS
from bytemtp.common.settings import changed
from bytemtp.training.batches import seq_len_at, training_rows
from experiments.documents import answers, written_once
from experiments.grid import cells_of
from experiments.planning.__main__ import (
    EXPERIMENT,
    accuracy,
    ahead,
    by_graph,
    corpus,
    heldout_of,
    rows,
    star_of,
)
from experiments.planning.graphs import NAMES, Question, Star, questions, unheard

SMALL = st.tuples(st.integers(1, 5), st.integers(2, 6)).flatmap(
    lambda shape: st.builds(
        Star, st.just(shape[0]), st.just(shape[1]), st.integers(shape[0] * (shape[1] - 1) + 1, len(NAMES))
    )
)


def solved(prompt: str) -> str:
    """The way from the goal back to the start, read off the prompt alone."""
    edges, _, query = prompt.partition(";")
    before = {edge[1]: edge[0] for edge in edges.split("|")}
    assert len(before) == len(edges.split("|")), "a node has one edge into it"
    path = query[1]
    while path[0] != query[0]:
        path = before[path[0]] + path
    return path


@given(SMALL, st.integers(0, 99))
def test_the_prompt_alone_gives_the_answer(star, seed):
    for question in questions(star, 3, seed):
        assert question.prompt[-1] == "=" and solved(question.prompt) == question.answer
        assert len(question.prompt + question.answer) == star.bytes
        assert len(set("".join(question.arms))) == star.nodes
        assert {len(arm) for arm in question.arms} == {star.length} and len(question.arms) == star.degree
        assert set("".join(question.arms)) <= set(NAMES[: star.names])


def test_the_first_step_is_a_guess_to_those_who_cannot_look_ahead():
    """All arms are alike in the prompt: the answer's edge is as often as any other the first or the last."""
    asked = list(questions(Star(2, 3, 8), 2000, seed=0))
    first = sum(q.prompt.index(q.answer[:2]) < q.prompt.index(q.arms[1][:2]) for q in asked) / len(asked)
    assert 0.45 < first < 0.55


def test_questions_depend_on_the_seed_alone():
    star = Star(2, 4, 20)
    assert list(questions(star, 5, 1)) == list(questions(star, 9, 1))[:5] != list(questions(star, 5, 2))


@pytest.mark.parametrize("shape", [(0, 3, 9), (2, 1, 9), (2, 3, 4), (2, 3, len(NAMES) + 1)])
def test_graphs_that_cannot_be_are_told(shape):
    with pytest.raises(UserError, match="needs degree"):
        Star(*shape)


def test_nothing_held_out_is_trained_on(tmp_path):
    star = Star(2, 2, 3)
    heldout = {question.prompt for question in questions(star, 4, seed=1)}
    written_once(tmp_path / "a.jsonl.zst", unheard(star, 100, 0, heldout))
    written_once(tmp_path / "b.jsonl.zst", unheard(star, 100, 0, set()))
    kept, every = (documents(tmp_path / name) for name in ("a.jsonl.zst", "b.jsonl.zst"))
    assert kept == [text for text in every if text[:-2] not in heldout] != every
    assert len(every) == 100


def documents(path) -> list[str]:
    with zstandard.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]


@pytest.mark.parametrize("preset", EXPERIMENT.presets())
def test_rows_of_training_hold_whole_questions(preset, tmp_path, monkeypatch):
    """Of every cell, from the first step to the last.

    The preset that the command falls back on begins with rows of 64 bytes: for most of a run they once cut most
    questions off from their answers.
    """
    monkeypatch.chdir(tmp_path)
    for cell in cells_of(EXPERIMENT, preset, [0]):
        few = replace(cell, settings=cell.settings | {"graph.count": 40, "graph.heldout": 2})
        star, count = star_of(few.settings), few.settings["graph.per_row"]
        path = corpus(few, star, heldout_of(few.settings))
        chosen = {name: value for name, value in few.settings.items() if not name.startswith("graph.")}
        settings = changed(PRESETS[DEFAULT_PRESET], **chosen | rows(star, count))
        seq_len = seq_len_at(settings.train, 0, 0.0)
        assert seq_len == settings.train.seq_len and count > 1
        with training_rows(settings, [str(path)], None, seq_len=seq_len, pin_memory=False) as batches:
            for row in next(batches).ids:
                for place in range(0, seq_len, seq_len // count):
                    text = bytes(row[place : place + star.bytes].tolist()).decode()
                    assert solved(text[: -star.length]) == text[-star.length :]


def test_models_of_a_graph_differ_in_their_heads_alone():
    """And all of a preset learn from as many questions a step."""
    for preset in EXPERIMENT.presets():
        cells = {cell.name: cell.settings for cell in cells_of(EXPERIMENT, preset, [0])}
        for graph, names in by_graph({name: [] for name in cells}).items():
            own = {"model.n_future", "model.order_head", "train.head_weights", "train.head_schedule"}
            rest = [{key: value for key, value in cells[name].items() if key not in own} for name in names]
            assert rest.count(rest[0]) == len(names) > 1, graph
            degree, length = (rest[0][f"graph.{name}"] for name in ("degree", "length"))
            assert graph == f"G({degree},{length})", "it is what it is called"


def test_accuracy_counts():
    asked = [Question("", ("abc", "ade")), Question("", ("xyz", "xuv"))]
    assert accuracy(asked, [b"abc", b"xyz"]) == {"exact": 1, "first": 1, "along": 1}
    assert accuracy(asked, [b"abe", b"xuz"]) == {"exact": 0, "first": 0.5, "along": 1}
    assert accuracy(asked, [b"", b"xav"]) == {"exact": 0, "first": 0, "along": 0}


ASKED = list(questions(Star(2, 4, 9), 5, seed=0))


def test_answers_are_what_the_decoder_writes(trained_run, monkeypatch):
    monkeypatch.setattr("experiments.documents.AT_A_TIME", 2)
    model = bytemtp.load(trained_run)
    expected = [bytemtp.generate(model, q.prompt.encode(), 4).data for q in ASKED]
    assert answers(model, [q.prompt for q in ASKED], 4) == expected


def test_each_head_is_asked_for_its_own_node(monkeypatch):
    """Of a model whose head 1 is always right, head 2 never, head 3 for the first three questions."""
    monkeypatch.setattr("experiments.planning.__main__.BATCH", 2)
    by_prompt = {q.prompt: [q.answer[0], "?", q.answer[2] if q in ASKED[:3] else "?"] for q in ASKED}

    class Model:
        config, device = SimpleNamespace(n_future=3), torch.device("cpu")

        def __call__(self, ids):
            assert (ids[:, 0] == 256).all()
            known = [by_prompt[bytes(row[1:]).decode()] for row in ids.tolist()]
            last = torch.tensor([[ord(node) for node in nodes] for nodes in known]).T
            return torch.nn.functional.one_hot(last[:, :, None].expand(-1, -1, ids.shape[1]), 264).float()

    assert ahead(Model(), ASKED) == pytest.approx([1, 0, 0.6])
