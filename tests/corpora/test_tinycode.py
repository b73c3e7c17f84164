"""The generated corpus of short functions: right answers pass, wrong ones fail, and nothing held out is in training."""

import ast
import hashlib
import json
import random
import re
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import zstandard

from bytemtp.common.errors import UserError
from corpora import tinycode
from corpora.tinycode import Function, Split, function, neighbours, shape
from corpora.tinycode_families import FAMILIES, NAMES, PARTS, Family

SEED = 3


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tinycode")
    tinycode.build(folder, seed=SEED, train=3000, heldout=100)
    return folder


@pytest.fixture(scope="module")
def problems(corpus: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (corpus / "heldout.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def training(corpus: Path) -> list[dict[str, Any]]:
    data = zstandard.ZstdDecompressor().decompressobj().decompress((corpus / "train.jsonl.zst").read_bytes())
    return [json.loads(line) for line in data.splitlines()]


def passes(problem: dict[str, Any], body: str) -> bool:
    """As HumanEval runs it: prompt, completion, test, check(entry_point)."""
    namespace: dict[str, Any] = {}
    exec(problem["prompt"] + body + "\n" + problem["test"], namespace)
    try:
        namespace["check"](namespace[problem["entry_point"]])
    except (AssertionError, TypeError, ValueError, ZeroDivisionError, AttributeError):
        return False
    return True


def test_reference_solutions_pass_and_stubs_fail(problems: list[dict[str, Any]]) -> None:
    assert len(problems) == 100
    for problem in problems:
        assert passes(problem, problem["canonical_solution"]), problem
        first = re.match(r"def f\((\w+)", problem["prompt"])
        assert first
        stubs = ["None", first[1], "0", "[]", "''", "True", "False", "{}"]
        assert not any(passes(problem, f"    return {stub}\n") for stub in stubs), problem


def test_neighbours_fail(problems: list[dict[str, Any]]) -> None:
    """Other parts and other constants; the few that pass (x % 3 > 5, say, never holds) do the same on many inputs."""
    rng = random.Random(0)
    families = {family.name: family for family in FAMILIES}
    total, passed = 0, 0
    for problem in problems:
        sentence, body = problem["prompt"].split('"""')[1], textwrap.dedent(problem["canonical_solution"]).rstrip()
        f = Function(families[problem["family"]], tuple(problem["parts"]), sentence, body)
        assert f.text == problem["prompt"] + problem["canonical_solution"]
        bodies = {text.partition('"""\n')[2] for text in neighbours(f, rng)} - {f.solution}
        total += len(bodies)
        passed += sum(passes(problem, body) for body in bodies)
    assert total > 20 * len(problems)
    assert passed / total < 0.03


def test_every_family_and_part_is_in_training(training: list[dict[str, Any]]) -> None:
    assert {line["family"] for line in training} == {family.name for family in FAMILIES}
    families = {family.name: family for family in FAMILIES}
    seen = {(kind, part) for line in training for kind, part in named(families, line)}
    assert seen == {(kind, part.name) for kind, parts in PARTS.items() for part in parts}


def named(families: dict[str, Family], line: dict[str, Any]) -> list[tuple[str, str]]:
    return list(zip(families[line["family"]].kinds, line["parts"], strict=True))


def test_held_out_pairs_are_not_in_training(training: list[dict[str, Any]], problems: list[dict[str, Any]]) -> None:
    """In no family that combines the same kinds of parts."""
    kinds = {family.name: family.kinds for family in FAMILIES}
    known = {(kinds[line["family"]], *line["parts"]) for line in training}
    held_out = {(kinds[line["family"]], *line["parts"]) for line in problems}
    assert not known & held_out
    assert len(held_out) > 50


def test_held_out_bodies_are_not_in_training(training: list[dict[str, Any]], problems: list[dict[str, Any]]) -> None:
    """By another way than `check`: names and constants are the parser's."""
    known = {plain(line["text"]) for line in training}
    assert len(known) > 1000
    assert not known & {plain(problem["prompt"] + problem["canonical_solution"]) for problem in problems}


def plain(text: str) -> str:
    """The parsed body, its numbers from 3 on and its letters all alike."""
    [definition] = ast.parse(text).body
    assert isinstance(definition, ast.FunctionDef)
    for node in ast.walk(definition):
        if isinstance(node, ast.Constant) and isinstance(node.value, int) and node.value >= 3:
            node.value = 3
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value) == 1:
            node.value = "a"
    return "".join(ast.dump(statement) for statement in definition.body[1:])


@pytest.mark.parametrize("seed", range(5))
def test_each_part_stays_in_half_of_its_pairs(seed: int) -> None:
    for kinds, held_out in Split(seed).held_out.items():
        grid = [(a.name, b.name) for a in PARTS[kinds[0]] for b in PARTS[kinds[1]]]
        assert 0.1 < len(held_out) / len(grid) < 0.25
        for place in (0, 1):
            of, out = (Counter(pair[place] for pair in pairs) for pairs in (grid, held_out))
            assert all(2 * out[part] <= of[part] for part in of)


def test_documents_are_distinct_short_functions(training: list[dict[str, Any]]) -> None:
    texts = [line["text"] for line in training]
    assert len(set(texts)) == len(texts) == 3000
    assert max(map(len, texts)) < 300 and sum(map(len, texts)) / len(texts) < 160
    for text in texts[:300]:
        compile(text, "f", "exec")


def test_the_sentence_tells_the_body() -> None:
    """One sentence never stands over two bodies: the function can be told from its docstring."""
    rng = random.Random(0)
    bodies: dict[str, str] = {}
    for family in FAMILIES:
        for first in PARTS[family.kinds[0]]:
            for second in PARTS[family.kinds[1]]:
                for _ in range(3):
                    f = function(family, (first.name, second.name), rng)
                    assert bodies.setdefault(f.prompt, f.body) == f.body


def test_every_function_runs() -> None:
    """Of every family, with every pair of its parts, on drawn arguments."""
    rng = random.Random(1)
    for family in FAMILIES:
        for first in PARTS[family.kinds[0]]:
            for second in PARTS[family.kinds[1]]:
                f = function(family, (first.name, second.name), rng)
                answers = tinycode.outcomes(f.text, [tinycode.draw_call(f, rng) for _ in range(3)])
                assert not {"TypeError", "ValueError", "ZeroDivisionError"} & {a for a in answers if isinstance(a, str)}


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("return [x + 7 for x in xs]", "return [n + 5 for n in nums]", True),
        ("return 'a'.join(xs)", "return 'b'.join(ys)", True),
        ("return x + 7", "return x - 7", False),
        ("return x % 2 == 0", "return x % 3 == 0", False),
        ("return a + b * a", "return b + a * b", True),
        ("return a + b * a", "return a + b * b", False),
        ("return c in 'aeiou'", "return c in 'a'", False),
        ("return s.upper()", "return s.lower()", False),
        ("return max(xs, default=0)", "return min(xs, default=0)", False),
        ("return sorted(xs, key=lambda x: x)", "return sorted(ws, key=lambda key: key)", True),
    ],
)
def test_shape(one: str, other: str, same: bool) -> None:
    assert (shape(one) == shape(other)) == same


def test_the_same_seed_gives_the_same_bytes(corpus: Path, tmp_path: Path) -> None:
    """Also in another process, where strings hash otherwise."""
    command = [sys.executable, "-m", "corpora.tinycode", "--out", str(tmp_path), "--seed", str(SEED)]
    done = subprocess.run([*command, "--train", "3000", "--heldout", "100"], capture_output=True, text=True, check=True)
    for name in ("train.jsonl.zst", "heldout.jsonl", "manifest.json"):
        assert (tmp_path / name).read_bytes() == (corpus / name).read_bytes()
    assert done.stdout.startswith("3,000 functions of 48 families")
    tinycode.build(tmp_path, seed=SEED + 1, train=50, heldout=5)
    assert (tmp_path / "heldout.jsonl").read_bytes() != (corpus / "heldout.jsonl").read_bytes()


def test_manifest(corpus: Path, training: list[dict[str, Any]]) -> None:
    manifest = json.loads((corpus / "manifest.json").read_text())
    for entry, name in (("train", "train.jsonl.zst"), ("heldout", "heldout.jsonl")):
        assert manifest[entry]["sha256"] == hashlib.sha256((corpus / name).read_bytes()).hexdigest()
    assert manifest["train"]["functions"] == 3000
    assert manifest["train"]["text_bytes"] == sum(len(line["text"].encode()) for line in training)
    assert manifest["families"] == len(FAMILIES) >= 30 and len(NAMES) == 8


def test_check_finds_a_held_out_body_in_training(corpus: Path, tmp_path: Path, problems: list[dict[str, Any]]) -> None:
    """Under other names and with another constant."""
    tinycode.build(tmp_path, seed=SEED, train=50, heldout=100)
    assert "50 functions" in tinycode.check(tmp_path)
    leaked = problems[0]["prompt"] + problems[0]["canonical_solution"].replace("xs", "ys").replace("5", "8")
    packed = zstandard.compress(json.dumps({"text": leaked, "family": "any", "parts": []}).encode() + b"\n")
    (tmp_path / "train.jsonl.zst").write_bytes(packed)
    with pytest.raises(UserError, match=r"train.jsonl.zst is not the file that manifest.json tells of"):
        tinycode.check(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    manifest["train"]["sha256"] = hashlib.sha256(packed).hexdigest()
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="is in training but for names and constants"):
        tinycode.check(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--train", "0"], "--train is 0 and --heldout 164; both must be 1 or more"),
        (["--check"], "manifest.json: No such file or directory"),
    ],
)
def test_bad_input_is_one_clear_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        tinycode.main(["--out", str(tmp_path), *arguments])
    assert message in str(caught.value)


def test_more_than_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tinycode, "FAMILIES", [family for family in FAMILIES if family.name == "stretch_sum"])
    with pytest.raises(UserError, match=r"there are only \d+ different functions, not 1000; ask for fewer"):
        tinycode.build(tmp_path, seed=0, train=1000, heldout=2)


def test_an_unwritable_place(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match=f"cannot write {tmp_path / 'file'}: File exists"):
        tinycode.build(tmp_path / "file", seed=0, train=5, heldout=1)
