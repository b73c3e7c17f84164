"""Short Python functions for a small byte model to learn, and others of them, put together anew, to test it on.

    python -m corpora.tinycode --out DIR [--seed 0] [--train 50000] [--heldout 164]
    python -m corpora.tinycode --out DIR --check

DIR/train.jsonl.zst (a function a line, in the field `text`), DIR/heldout.jsonl (problems in HumanEval's format) and
DIR/manifest.json with counts and SHA-256.  The same seed gives the same bytes.

A function is a family's sentence and body with two parts in them, say an operation and a condition:

    def f(xs):
        \"\"\"Sum of x plus 7 for each x in xs that is even.\"\"\"
        return sum(x + 7 for x in xs if x % 2 == 0)

What is held out are pairs of parts.  A pair such as (plus, even) is either in training or held out, in all families
that combine these kinds of parts and whatever the constants: no held-out function can be known by heart.  But every
part is in training in half of its pairs at least, so each can be learned.  `--check` reads the files and proves it from
their text: no held-out body is in training, nor is it there with other names and constants.

The tests of a held-out problem are chosen so that other functions of its family fail: with any other part in one of the
two places, or with a constant one more or less, wherever one of many drawn inputs can tell the two apart.
"""

import argparse
import builtins
import hashlib
import json
import keyword
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import zstandard

from bytemtp.common.cli import run_main
from bytemtp.common.errors import UserError
from bytemtp.common.files import read_input, read_object, writing
from corpora.tinycode_families import FAMILIES, NAMES, PARTS, Family, Part

HELD_OUT_SHARE = 0.2
"""Of the pairs of parts."""
TRAIN, HELD_OUT, MANIFEST = "train.jsonl.zst", "heldout.jsonl", "manifest.json"
COMPRESSION_LEVEL = 12
ENTRY_POINT = "f"
LETTERS = "abdeinorst"
CALLS = {"number": 16, "pair": 16}
"""Assertions in the test of a held-out problem, at least; 8 for other kinds of arguments."""
DRAWN_CALLS = 120
PATIENCE = 1000
"""Draws in a row that may give nothing new before a family is taken to be used up."""

TOKEN = re.compile(r"'[^']*'|\.?\b[A-Za-z_]\w*(?:=(?!=))?|\d+")
"""Strings, names with the dot before or the equals sign after them, numbers."""
FIXED = {*keyword.kwlist, *dir(builtins)}
"""Names that mean the same in every function."""

Pair = tuple[str, str]
Call = tuple[Any, ...]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m corpora.tinycode",
        description="Write a corpus of short Python functions, and held-out problems put together from the same parts.",
        epilog="example: python -m corpora.tinycode --out code && "
        "python -m bytemtp.train code/train.jsonl.zst --out run",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write to")
    parser.add_argument("--seed", type=int, default=0, help="of all draws (0)")
    parser.add_argument("--train", type=int, default=50_000, metavar="N", help="functions to train on (50000)")
    parser.add_argument("--heldout", type=int, default=164, metavar="M", help="problems held out (164)")
    parser.add_argument("--check", action="store_true", help="write nothing; prove that DIR keeps the two apart")
    options = parser.parse_args(arguments)
    if not options.check:
        build(options.out, seed=options.seed, train=options.train, heldout=options.heldout)
    print(check(options.out))


def build(out: Path, *, seed: int, train: int, heldout: int) -> dict[str, Any]:
    """Write the corpus and return its manifest.  UserError if there are not that many functions."""
    if train < 1 or heldout < 1:
        raise UserError(f"--train is {train} and --heldout {heldout}; both must be 1 or more")
    split = Split(seed)
    problems = [problem.record(f"tinycode/{i}") for i, problem in enumerate(_problems(split, seed, heldout))]
    functions = list(_functions(split, seed, train))
    lines = [{"text": f.text, "family": f.family.name, "parts": f.pair} for f in functions]
    packed = zstandard.ZstdCompressor(level=COMPRESSION_LEVEL, write_checksum=True).compress(_json_lines(lines))
    manifest = {
        "seed": seed,
        "families": len(FAMILIES),
        "train": _entry(packed, lines) | {"text_bytes": sum(len(f.text) for f in functions)},
        "heldout": _entry(_json_lines(problems), problems),
        "heldout_pairs": {" + ".join(kinds): sorted(pairs) for kinds, pairs in split.held_out.items()},
    }
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        (out / MANIFEST).unlink(missing_ok=True)  # it stands for a whole corpus
        (out / TRAIN).write_bytes(packed)
        (out / HELD_OUT).write_bytes(_json_lines(problems))
        (out / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return manifest


def _json_lines(records: Sequence[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def _entry(data: bytes, records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    by_family = dict(sorted(Counter(record["family"] for record in records).items()))
    digest = hashlib.sha256(data).hexdigest()
    return {"functions": len(records), "bytes": len(data), "sha256": digest, "by_family": by_family}


@dataclass(frozen=True)
class Function:
    """A member of a family."""

    family: Family
    pair: Pair
    """names of its two parts"""
    sentence: str
    body: str

    @property
    def parameters(self) -> list[str]:
        names = NAMES[self.family.takes]
        return [names[key] for key in (("xs", "ys") if "xs" in names else ("x", "y")) if key in names]

    @property
    def prompt(self) -> str:
        return f'def {ENTRY_POINT}({", ".join(self.parameters)}):\n    """{self.sentence}"""\n'

    @property
    def solution(self) -> str:
        return "".join(f"    {line}\n" for line in self.body.split("\n"))

    @property
    def text(self) -> str:
        return self.prompt + self.solution


def function(family: Family, pair: Pair, rng: random.Random) -> Function:
    """A member with these parts; constants are drawn."""
    names = NAMES[family.takes]
    about = [names.get(subject, subject) for subject in family.subjects]
    first, second = (_part(kind, name) for kind, name in zip(family.kinds, pair, strict=True))
    a, a_code = _fill(first, about[0], about[0], names, rng)
    b, b_code = _fill(second, *(("it", a_code) if family.nested else (about[1], about[1])), names, rng)
    values = names | _constants(rng)
    sentence, body = family.phrase.format(a=a, b=b, **values), family.body.format(a=a_code, b=b_code, **values)
    return Function(family, pair, sentence[0].upper() + sentence[1:], body)


def _part(kind: str, name: str) -> Part:
    return next(part for part in PARTS[kind] if part.name == name)


def _fill(part: Part, subject: str, code: str, names: dict[str, str], rng: random.Random) -> tuple[str, str]:
    """Phrase and code of a part."""
    values = {"y": names.get("y", ""), **_constants(rng)}
    is_call = re.match(r"\w+\(", part.code)
    wrapped = code if is_call or re.fullmatch(r"-?\w+\(.*\)|[^ -][^ ]*", code) else f"({code})"
    return part.phrase.format(x=subject, **values), part.code.format(x=wrapped, **values)


def _constants(rng: random.Random) -> dict[str, str]:
    s, t = rng.sample(LETTERS, 2)
    return {"c": str(rng.randint(3, 9)), "s": s, "t": t}


class Split:
    """Which pairs of parts are held out, for each two kinds of parts."""

    def __init__(self, seed: int) -> None:
        self.held_out = {kinds: _draw_pairs(kinds, seed) for kinds in sorted({family.kinds for family in FAMILIES})}

    def pairs(self, family: Family, *, held_out: bool) -> list[Pair]:
        chosen = self.held_out[family.kinds]
        return [pair for pair in _grid(family.kinds) if (pair in chosen) == held_out]


def _grid(kinds: Pair) -> list[Pair]:
    first, second = ([part.name for part in PARTS[kind]] for kind in kinds)
    return list(product(first, second))


def _draw_pairs(kinds: Pair, seed: int) -> set[Pair]:
    """A share of the pairs, so that each part stays in half of its pairs or more."""
    grid = _grid(kinds)
    order = random.Random(f"{seed} {kinds}").sample(grid, len(grid))
    left = Counter((place, pair[place]) for pair in grid for place in (0, 1))
    half = {part: count / 2 for part, count in left.items()}
    held_out: set[Pair] = set()
    for pair in order:
        parts = list(enumerate(pair))
        if len(held_out) < HELD_OUT_SHARE * len(grid) and all(left[part] - 1 >= half[part] for part in parts):
            held_out.add(pair)
            left.subtract(parts)
    return held_out


def _functions(split: Split, seed: int, count: int) -> Iterator[Function]:
    """Distinct functions of the pairs in training, families in turn."""
    rng = random.Random(f"{seed} train")
    avoided = {
        shape(function(family, pair, rng).solution)
        for family in FAMILIES
        for pair in split.pairs(family, held_out=True)
        for _ in range(2)
    }
    known: set[str] = set()
    sources = {family: split.pairs(family, held_out=False) for family in FAMILIES}
    while len(known) < count:
        family = rng.choice(list(sources))
        for _ in range(PATIENCE):
            candidate = function(family, rng.choice(sources[family]), rng)
            if candidate.text not in known and shape(candidate.solution) not in avoided:
                known.add(candidate.text)
                yield candidate
                break
        else:
            del sources[family]
            if not sources:
                raise UserError(f"there are only {len(known)} different functions, not {count}; ask for fewer")


@dataclass(frozen=True)
class Problem:
    """A held-out function and the calls that test it."""

    function: Function
    calls: list[Call]

    def record(self, task_id: str) -> dict[str, Any]:
        """A line of heldout.jsonl."""
        f = self.function
        answers = outcomes(f.text, self.calls)
        lines = [
            f"    assert candidate({', '.join(map(repr, call))}) == {answer!r}\n"
            for call, answer in zip(self.calls, answers, strict=True)
        ]
        return {
            "task_id": task_id,
            "prompt": f.prompt,
            "entry_point": ENTRY_POINT,
            "canonical_solution": f.solution,
            "test": "def check(candidate):\n" + "".join(lines),
            "family": f.family.name,
            "parts": f.pair,
        }


def _problems(split: Split, seed: int, count: int) -> Iterator[Problem]:
    """Problems with distinct bodies, families in turn."""
    rng = random.Random(f"{seed} heldout")
    known: set[str] = set()
    failures = 0
    while len(known) < count:
        for family in FAMILIES[: count - len(known)]:
            candidate = function(family, rng.choice(split.pairs(family, held_out=True)), rng)
            calls = [] if candidate.body in known else telling_calls(candidate, rng)
            failures = 0 if calls else failures + 1
            if calls:
                known.add(candidate.body)
                yield Problem(candidate, calls)
        if failures > PATIENCE:
            raise UserError(f"there are only {len(known)} different held-out functions, not {count}; ask for fewer")


def telling_calls(f: Function, rng: random.Random) -> list[Call]:
    """Calls that tell a function from its neighbours; none if a stub could pass for it."""
    drawn = [draw_call(f, rng) for _ in range(DRAWN_CALLS)]
    right = outcomes(f.text, drawn)
    stubs = [[None] * len(drawn), [call[0] for call in drawn], [right[0]] * len(drawn)]
    others = [outcomes(text, drawn) for text in neighbours(f, rng)]
    chosen: list[int] = []
    for other in [*stubs, *others]:
        differing = [i for i, answer in enumerate(other) if answer != right[i]]
        if not differing and other in stubs:
            return []
        if differing and not set(differing) & set(chosen):
            chosen.append(rng.choice(differing))
    rest = [i for i in range(len(drawn)) if i not in chosen]
    return [drawn[i] for i in chosen + rest[: max(0, CALLS.get(f.family.takes, 8) - len(chosen))]]


def neighbours(f: Function, rng: random.Random) -> list[str]:
    """Texts of functions that differ a little: one part is another one, or a constant is one more or less."""
    (a, b), (kind_a, kind_b) = f.pair, f.family.kinds
    pairs = [(part.name, b) for part in PARTS[kind_a]] + [(a, part.name) for part in PARTS[kind_b]]
    others = [function(f.family, pair, rng).text for pair in pairs for _ in range(2)]
    shifted = [
        f.prompt + f.solution[: number.start()] + str(int(number[0]) + step) + f.solution[number.end() :]
        for number in re.finditer(r"\b\d+", f.solution)
        for step in (-1, 1)
    ]
    return others + shifted


def outcomes(text: str, calls: Sequence[Call]) -> list[Any]:
    """What a function of ours returns for each call; the exception's name if it raises one."""
    namespace: dict[str, Any] = {}
    exec(text, namespace)  # trusted: this module wrote it
    return [_outcome(namespace[ENTRY_POINT], call) for call in calls]


def _outcome(f: Callable[..., Any], call: Call) -> Any:
    try:
        return f(*call)
    except (TypeError, ValueError, ZeroDivisionError) as error:
        return type(error).__name__


def draw_call(f: Function, rng: random.Random) -> Call:
    """Arguments, often close to where the function's constants make a difference."""
    constants = [int(number) for number in re.findall(r"\b\d+", f.body)]
    letters = re.findall(r"'([a-z])'", f.body)

    def number() -> int:
        near = rng.choice(constants) * rng.choice((1, 1, 2, -1)) + rng.randint(-1, 1) if constants else 0
        return rng.choice((near, rng.randint(-15, 60)))

    def numbers() -> list[int]:
        return [number() for _ in range(rng.choice((0, 1, 3, 5, 8, 12)))]

    def word() -> str:
        drawn = rng.choices([*LETTERS, *"AEIBCD", *letters * 6, *"57"], k=rng.choice((1, 2, 3, 4, 5, 6, 9)))
        return rng.choice((str.upper, str.lower, str, str, lambda w: str(3 * len(w)) + w[:1]))("".join(drawn))

    def words() -> list[str]:
        return [word() for _ in range(rng.choice((0, 2, 4, 6)))]

    kinds: dict[str, Callable[[], Call]] = {
        "numbers": lambda: (numbers(),),
        "lists": lambda: (numbers(), numbers()),
        "rows": lambda: ([numbers() for _ in range(rng.randint(0, 3))],),
        "table": lambda: (dict(zip(words(), numbers(), strict=False)),),
        "words": lambda: (words(),),
        "text": lambda: (rng.choice((word(), " ".join(words()))),),
        "number": lambda: (number(),),
        "pair": lambda: (number(), number()),
    }
    return kinds[f.family.takes]()


def shape(solution: str) -> str:
    """A body with its names numbered by first use, and its drawn constants left out.

    Two bodies have the same shape just if they differ in names and constants only.
    """
    numbers: dict[str, str] = {}

    def plain(token: re.Match[str]) -> str:
        text = token[0]
        if text.startswith("'"):
            return "S" if len(text) == 3 else text
        if text.isdigit():
            return "C" if int(text) >= 3 else text
        if text in FIXED or text.startswith(".") or text.endswith("="):
            return text
        return numbers.setdefault(text, f"name{len(numbers)}")

    return TOKEN.sub(plain, solution)


def check(out: Path) -> str:
    """Prove from the files that training and held-out functions differ; returns what was found, in a line.

    UserError if a file cannot be read or is not what the manifest says, or if a held-out body is in training.
    """
    manifest, packed, problems_file = read_object(out / MANIFEST), read_input(out / TRAIN), read_input(out / HELD_OUT)
    for name, data, entry in ((TRAIN, packed, "train"), (HELD_OUT, problems_file, "heldout")):
        if hashlib.sha256(data).hexdigest() != manifest.get(entry, {}).get("sha256"):
            raise UserError(f"{out / name} is not the file that {MANIFEST} tells of; write the corpus again")
    lines = zstandard.ZstdDecompressor().decompressobj().decompress(packed).splitlines()
    solutions = [json.loads(line)["text"].partition('"""\n')[2] for line in lines]
    problems = [json.loads(line) for line in problems_file.splitlines()]
    _separate([problem["canonical_solution"] for problem in problems], solutions)
    size = manifest["train"]["text_bytes"] / 1e6
    return (
        f"{len(solutions):,} functions of {manifest['families']} families, {size:.1f} MB, to train on; "
        f"{len(problems)} problems held out, of whose bodies none is in training, whatever its names and constants"
    )


def _separate(held_out: Sequence[str], train: Sequence[str]) -> None:
    """UserError if a held-out body is in training."""
    known = {shape(solution) for solution in train}
    for solution in held_out:
        if shape(solution) in known:
            raise UserError(f"the held-out body {solution.strip()!r} is in training but for names and constants")


if __name__ == "__main__":
    run_main(main)
