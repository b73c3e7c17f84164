"""Polynomials: the ring against polynomials written out, expressions against Python's own reading of them, scores."""

import ast
import json
import re
from collections import Counter
from dataclasses import dataclass, replace

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

import bytemtp
from experiments.arithmetic.__main__ import (
    EXPERIMENT,
    accuracy,
    corpus,
    figures,
    heldout_of,
    parsed,
    ring_of,
)
from experiments.arithmetic.questions import OPERATORS, Question, questions, unheard
from experiments.arithmetic.ring import Ring
from experiments.documents import answers
from experiments.grid import cells_of
from tests.experiments.small_cells import SHAPE

RING = Ring(7, 5)
RINGS = st.builds(Ring, st.sampled_from([2, 3, 5, 7]), st.integers(1, 5))


def elements(ring: Ring):
    return st.tuples(*[st.integers(0, ring.prime - 1)] * ring.powers)


@dataclass(frozen=True)
class Polynomial:
    """Over the integers, with all its powers; reduced only when it is read."""

    coefficients: tuple[int, ...]
    ring: Ring

    def of(self, coefficients):
        return Polynomial(tuple(coefficients), self.ring)

    def __neg__(self):
        return self.of(-x for x in self.coefficients)

    def __add__(self, other):
        length = max(len(self.coefficients), len(other.coefficients))
        a, b = ([*p.coefficients, *[0] * (length - len(p.coefficients))] for p in (self, other))
        return self.of(x + y for x, y in zip(a, b, strict=True))

    def __mul__(self, other):
        result = [0] * (len(self.coefficients) + len(other.coefficients) - 1)
        for i, x in enumerate(self.coefficients):
            for j, y in enumerate(other.coefficients):
                result[i + j] += x * y
        return self.of(result)

    def __matmul__(self, other):
        """The sum of self's coefficients times powers of other; self is an element, so reduced."""
        result, power = self.of([0]), self.of([1])
        for x in self.element:
            result, power = result + self.of([x]) * power, power * other
        return result

    @property
    def element(self):
        powers = self.ring.powers
        return tuple(x % self.ring.prime for x in (*self.coefficients, *[0] * powers)[:powers])


@given(RINGS.flatmap(lambda ring: st.tuples(st.just(ring), elements(ring), elements(ring))))
def test_the_ring_is_polynomials_cut_off_and_reduced(drawn):
    ring, a, b = drawn
    p, q = Polynomial(a, ring), Polynomial(b, ring)
    assert ring.negated(a) == (-p).element
    assert ring.added(a, b) == (p + q).element
    assert ring.multiplied(a, b) == (p * q).element
    assert ring.composed(a, b) == (p @ q).element


def evaluated(ring: Ring, expression: str) -> str:
    """By Python's parser, to which -, +, * and @ are operators, too."""
    source = re.sub(rf"\d{{{ring.powers}}}", lambda found: f"P(({','.join(found[0])},))", expression)
    return "".join(map(str, eval(source, {"P": lambda digits: Polynomial(digits, ring)}).element))


@given(RINGS, st.integers(0, 99), st.integers(1, 4), st.integers(0, 3))
def test_answers_are_the_values_of_the_expressions(ring, seed, operations, pause):
    for asked in questions(ring, 3, [operations], pause, seed):
        assert asked.prompt == asked.expression + "_" * pause + "="
        assert asked.answer == evaluated(ring, asked.expression)
        assert sum(asked.expression.count(operator) for operator in OPERATORS) == operations
        assert re.fullmatch(f"[0-{ring.prime - 1}]{{{ring.powers}}}", asked.answer)


AST = {ast.USub: "-", ast.Add: "+", ast.Mult: "*", ast.MatMult: "@"}


def test_the_operator_is_the_one_that_is_applied_last():
    for asked in questions(RING, 100, [1, 2, 3], 0, seed=3):
        tree = ast.parse(re.sub(r"\d+", "x", asked.expression), mode="eval").body
        assert AST[type(tree.op)] == asked.operator


def test_operators_and_coefficients_are_uniform():
    asked = list(questions(RING, 4000, [1, 2], 0, seed=0))
    operators = Counter(one.operator for one in asked)
    assert operators.keys() == set(OPERATORS) and all(900 < count < 1100 for count in operators.values())
    digits = Counter(re.sub(r"\D", "", "".join(one.expression for one in asked)))
    assert digits.keys() == set("0123456") and max(digits.values()) < 1.1 * min(digits.values())
    assert 1900 < sum(len(re.findall(r"[-+*@]", one.expression)) == 1 for one in asked) < 2100


def test_questions_depend_on_the_seed_alone_and_not_on_the_pause():
    asked = list(questions(RING, 9, [1, 2], 0, seed=1))
    assert asked[:5] == list(questions(RING, 5, [1, 2], 0, seed=1)) != list(questions(RING, 5, [1, 2], 0, seed=2))
    paused = questions(RING, 9, [1, 2], 5, seed=1)
    assert [(one.expression, one.answer) for one in paused] == [(one.expression, one.answer) for one in asked]


def test_nothing_asked_is_trained_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (cell,) = cells_of(EXPERIMENT, "cpu", [0], ["pause 5, n=1"])
    few = replace(cell, settings=cell.settings | {"ring.count": 3000, "ring.heldout": 5, "ring.learnt": 1})
    every = list(questions(ring_of(cell.settings), 3000, [1], 5, seed=0))
    asked = heldout_of(few.settings)
    assert [len(of_m) for of_m in asked.values()] == [5] * few.settings["ring.asked"]
    asked[1] += every[:3]  # as if the test had drawn them, too
    texts = documents(corpus(few, asked))
    taboo = {question.expression for question in asked[1]}
    assert texts == [one.prompt + one.answer for one in every if one.expression not in taboo]
    assert len(texts) <= 2997 and all("_____=" in text for text in texts)


def documents(path):
    lines = zstandard.decompress(path.read_bytes(), 1 << 24).splitlines()
    return [json.loads(line)["text"] for line in lines]


def test_as_many_operations_are_trained_on_as_the_recipe_says():
    counts = [len(re.findall(r"[-+*@]", text)) for text in unheard(RING, 500, range(1, 4), 0, 0, set())]
    assert set(counts) == {1, 2, 3}


def test_only_elements_are_answers():
    assert parsed(RING, b"01236") == "01236"
    assert [parsed(RING, written) for written in (b"01237", b"0123", b"012366", b"012+6", b"")] == [None] * 5


def test_accuracy_counts_coefficients():
    question = Question("", "", "01234", "+")
    assert [accuracy(RING, question, written) for written in (b"01234", b"01233", b"00000", b"0123\xff", b"")] == [
        *(1, pytest.approx(0.8), pytest.approx(0.2), 0, 0)
    ]


def test_figures_of_a_hand_made_test():
    asked = {
        1: [Question("", "", "00000", operator) for operator in "-+*@"],
        2: [Question("", "", "11111", "-") for _ in range(4)],
        3: [Question("", "", "22222", "-") for _ in range(4)],
    }
    written = {1: [b"00000", b"00000", b"00001", b"x"], 2: [b"11111", b"00000", b"11000", b""], 3: [b"22222"] * 4}
    found = figures(RING, asked, written, learnt=2)
    assert found["exact"] == [0.5, 0.25, 1] and found["within"] == 3 / 8 and found["beyond"] == 1
    assert found["digits"] == pytest.approx([2.8 / 4, 1.4 / 4, 1])
    assert found["operators"] == {"-": 1, "+": 1, "*": 0, "@": 0}


def test_answers_are_what_the_decoder_writes(trained_run, monkeypatch):
    """Prompts of several lengths, in several batches."""
    monkeypatch.setattr("experiments.documents.AT_A_TIME", 2)
    model, asked = bytemtp.load(trained_run), list(questions(RING, 3, [1, 2, 3], 1, seed=0))
    assert len({len(q.prompt) for q in asked}) > 1
    assert answers(model, [q.prompt for q in asked], 5) == [
        bytemtp.generate(model, q.prompt.encode(), 5).data for q in asked
    ]


def test_cells_are_what_they_are_called():
    """And those of a size and pause differ in their heads alone."""
    for preset in EXPERIMENT.presets():
        kinds = {}
        for cell in cells_of(EXPERIMENT, preset, [0]):
            group, heads, weights = re.fullmatch(r"(.*pause \d+), n=(\d)(?:, (.*))?", cell.name).groups()
            own = {"model.n_future", "train.head_weights"}
            rest = {name: value for name, value in cell.settings.items() if name not in own}
            assert kinds.setdefault(group, rest) == rest, cell.name
            assert rest["ring.pause"] == int(group.rpartition(" ")[2]), cell.name
            assert cell.settings["model.n_future"] == int(heads), cell.name
            assert cell.settings.get("train.head_weights") == weights, cell.name
            assert rest["ring.asked"] > rest["ring.learnt"], cell.name


SMALL = SHAPE | {"ring.count": 50, "ring.heldout": 24}


def test_a_cell_is_trained_scored_and_shown(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = []
    for cell in cells_of(EXPERIMENT, "cpu", [0], ["pause 0, n=1", "pause 0, n=4, equal"]):
        few = replace(cell, settings=cell.settings | SMALL)
        lines.append({"key": few.key} | EXPERIMENT.score(few))
    assert json.loads(json.dumps(lines)) == lines
    assert all(line["steps"] == 2 and len(line["exact"]) == cell.settings["ring.asked"] for line in lines)
    shown = EXPERIMENT.table(lines)
    assert "| pause 0, n=4, equal minus pause 0, n=1 | as in training " in shown
    assert len(EXPERIMENT.draw(lines).axes) == 1
