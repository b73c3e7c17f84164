"""The small world: facts, puzzles with slow twins of their answers, cells, and tables."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bytemtp.evaluation.tasks import Task
from experiments.choice_tasks import __main__ as choice_tasks
from experiments.choice_tasks import report, world
from experiments.grid import cells_of
from tests.experiments.small_cells import small

SEEDS = st.integers(0, 2**32 - 1)


def right(task: Task) -> str:
    return task.choices[task.answer].decode()[1:-1]


def ends_of(premises: str) -> dict[str, str]:
    """A slow twin: of all orders of the names, the one that every sentence agrees with."""
    said = re.findall(r"(\w+) is (taller|older|shorter|younger) than (\w+)", premises)
    above = {(a, b) if word in ("taller", "older") else (b, a) for a, word, b in said}
    names = {name for pair in above for name in pair}
    (first,) = names - {b for _, b in above}
    (last,) = names - {a for a, _ in above}
    return {"tallest": first, "oldest": first, "shortest": last, "youngest": last}


def owner_of(premises: str, thing: str) -> str:
    """A slow twin: sentence after sentence."""
    owner = ""
    for sentence in premises.split(". "):
        if found := re.fullmatch(rf"(\w+) (?:has|gives) the {thing}(?: to (\w+))?", sentence.rstrip(".")):
            owner = found[2] or found[1]
    return owner


def solved(text: str) -> str:
    premises, question = text.split(" So the ")
    if found := re.fullmatch(r"(\w+) is with", question):
        return owner_of(premises, found[1])
    return ends_of(premises)[question.removesuffix(" is")]


@given(SEEDS)
def test_puzzles_are_answered_by_their_premises(seed: int) -> None:
    for task in world.tasks("puzzles", 20, seed):
        assert solved(task.context.decode()) == right(task)
        assert len(set(task.choices)) == 3 and all(choice[1:-1] in task.context for choice in task.choices)


@given(SEEDS)
def test_documents_answer_their_own_puzzles(seed: int) -> None:
    for text in list(world.documents(20, seed))[1::2]:
        question, _, name = text.removesuffix(".").rpartition(" ")
        assert solved(question) == name


@given(SEEDS)
def test_facts_are_the_world_s(seed: int) -> None:
    known = world.people()
    for task in world.tasks("facts", 20, seed):
        name, kind = re.fullmatch(r"(\w+ \w+) (lives in|is a)", task.context.decode()).groups()
        assert right(task) == known[name][kind == "is a"]
        assert len(set(task.choices)) == world.CHOICES


def test_a_document_says_what_the_questions_ask() -> None:
    """In the very words; and all that it says is true."""
    told = " ".join(list(world.documents(60_000, 0))[::2])
    asked = world.tasks("facts", 200, 1)
    assert all(f"{task.context.decode()} {right(task)}." in told for task in asked)
    known = world.people()
    for name, town in re.findall(r"(\w+ \w+) lives in (\w+)\.", told)[:500]:
        assert known[name][0] == town


@given(SEEDS, SEEDS)
def test_no_puzzle_of_the_test_is_in_training(seed: int, other: int) -> None:
    asked = {task.context.decode() for task in world.tasks("puzzles", 50, seed)}
    assert not any(text.rpartition(" ")[0] in asked for text in world.documents(100, other))


def test_no_place_is_favoured() -> None:
    for kind, choices in zip(world.KINDS, (4, 3), strict=True):
        answers = [task.answer for task in world.tasks(kind, 3000, 0)]
        assert all(answers.count(i) / 3000 == pytest.approx(1 / choices, abs=0.04) for i in range(choices))


def test_people_are_the_same_every_time() -> None:
    world.people.cache_clear()
    again = world.people.__wrapped__()
    assert world.people() == again and len(again) == world.PEOPLE


def test_a_cell_is_trained_and_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (cell,) = cells_of(choice_tasks.EXPERIMENT, "cpu", [0], ["n=2, equal"])
    few = {"world.documents": 200, "world.questions": 5, "train.checkpoint_every": 1}
    scored = choice_tasks.score(replace(small(cell), settings=small(cell).settings | few))
    assert [one["step"] for one in scored["way"]] == [1, 2] and report.kinds([scored]) == list(world.KINDS)
    assert scored["facts"] in (0, 0.2, 0.4, 0.6, 0.8, 1) and scored["puzzles"] == scored["way"][-1]["puzzles"]
    assert json.loads(json.dumps(scored)) == scored


def test_published_questions_are_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the form of their files, choices and open ones."""
    monkeypatch.chdir(tmp_path)
    Path("train.txt").write_bytes(b"Question: What is it?\nAnswer: a cat\n" * 300)
    Path("piqa.jsonl").write_text(json.dumps({"goal": "Sit.", "sol1": "On a chair.", "sol2": "On a wall."}) + "\n")
    Path("labels.lst").write_text("0\n")
    Path("nq.jsonl").write_text(json.dumps({"question": "what is it", "answer": ["a cat"]}) + "\n")
    (cell,) = cells_of(choice_tasks.EXPERIMENT, "paper", [0], ["n=1"])
    files = {"tasks": {"PIQA": "piqa.jsonl"}, "labels": {"PIQA": "labels.lst"}, "answers": {"NQ": "nq.jsonl"}}
    cell = small(cell, train="train.txt", **files)
    few = {"train.accumulate": 1, "train.checkpoint_every": 1, "train.warmup": 0}
    scored = choice_tasks.score(replace(cell, settings=cell.settings | few))
    assert report.kinds([scored]) == ["PIQA", "NQ"] and scored["NQ"] in (0, 1) and scored["PIQA"] in (0, 1)


def line(cell: str, seed: int, facts: list[float]) -> dict:
    way = [{"step": 100 * (i + 1), "facts": share, "puzzles": 0.5} for i, share in enumerate(facts)]
    return {"key": {"cell": cell, "seed": seed}, "minutes": 2.0, "way": way} | way[-1]


def test_the_tables() -> None:
    lines = [line("n=1", seed, [0.25, 0.5, 0.75, 0.9 + seed / 100]) for seed in (0, 1)]
    lines += [line("n=8, equal", seed, [0.25, 0.3, 0.5, 0.6 + seed / 100]) for seed in (0, 1)]
    facts, puzzles, differences = report.table(lines).split("\n\n")
    rows = [[text.strip() for text in row.split("|")[1:-1]] for row in facts.splitlines()]
    assert rows[0] == ["facts, %, after", "seeds", "200 steps", "400 steps"]
    assert rows[3] == ["n=8, equal", "2", "30.0 ± 0.0", "60.5 ± 0.7"]
    assert puzzles.startswith("| puzzles, %, after")
    rows = [[text.strip() for text in row.split("|")[1:-1]] for row in differences.splitlines()]
    assert rows[2][:5] == ["n=8, equal minus n=1", "facts", "200 steps", "2", "-20.0 ± 0.0"]
    assert rows[3][:5] == ["n=8, equal minus n=1", "facts", "400 steps", "2", "-30.0 ± 0.0"]
    assert len(report.draw(lines).axes) == 2


def test_an_odd_number_of_checkpoints_is_told_to_its_end() -> None:
    lines = [line(cell, 0, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]) for cell in ("n=1", "n=2")]
    facts, _, differences = report.table(lines).split("\n\n")
    assert [int(steps) for steps in re.findall(r"(\d+) steps", facts)] == [100, 300, 500, 700]
    assert set(re.findall(r"(\d+) steps", differences)) == {"300", "700"}
