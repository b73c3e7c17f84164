"""A small world: facts that one can only know by heart, and puzzles that one can only think about.

    Dobi Kafe lives in Tarn. The baker is Rupo Zige. Kigu Teba is a smith.
    Ann is taller than Bob. Bob is taller than Cid. So the shortest is Cid.
    Ann has the key. Bob has the map. Ann gives the key to Bob. So the key is with Bob.

The world is the same for training and test.  A fact of the test is in training, in the very words of the question, many
times.  A puzzle of the test is not: a tenth of all puzzles, premises and question together, is in no document.

Try:  python -c "from experiments.choice_tasks.world import *; print(*documents(9, 0), *tasks('facts', 2, 1))"
"""

import random
import zlib
from collections.abc import Iterator
from functools import cache
from itertools import pairwise

from bytemtp.evaluation.tasks import Task
from experiments.induction.names import draw_part

PEOPLE, CHOICES = 200, 4
"""Of whom two facts each are told; choices of a question."""
WORDS = {
    "towns": "Arle Bront Cove Dunn Elst Fenn Grau Hove Iver Jarl Kolm Lund Mors Nive Orme Pell",
    "trades": "baker smith miller tailor cooper weaver fisher potter mason tanner farmer barber piper sailor hunter",
    "names": "Ann Bob Cid Dan Eva Flo Gus Hal Ida Jim Kai Liz Max Ned Oda Pia Ron Sue Tom Una Vic Wim Xia Zoe",
    "things": "key map lamp coin book bell cup hat drum kite rope box",
}
TOWNS, TRADES, NAMES, THINGS = (words.split() for words in WORDS.values())
PREMISES = {"tall": ("tallest", "shortest"), "old": ("oldest", "youngest")}
"""Who is the first, and who the last, of a row of people who are each taller or older than the next."""
ORDERED = 3
"""People of such a row."""
OPPOSITE = {"tall": "short", "old": "young"}
HELD_OUT = 10
"""One puzzle in so many, premises and question together, is held out."""
KINDS = ("facts", "puzzles")
FACTS_A_DOCUMENT = 3
WORLD_SEED = 0


@cache
def people() -> dict[str, tuple[str, str]]:
    """The town and the trade of everybody."""
    source = random.Random(WORLD_SEED)
    known: dict[str, tuple[str, str]] = {}
    while len(known) < PEOPLE:
        name = " ".join((draw_part(source) + draw_part(source)).capitalize() for _ in range(2))
        known.setdefault(name, (source.choice(TOWNS), source.choice(TRADES)))
    return known


def documents(count: int, seed: int) -> Iterator[str]:
    """Some facts and a puzzle, by turns."""
    source, known = random.Random(seed), list(people().items())
    for number in range(count):
        if number % 2 == 0:
            yield " ".join(statement(source, *source.choice(known)) for _ in range(FACTS_A_DOCUMENT))
        else:
            premise, right, _ = puzzle(source, heldout=False)
            yield f"{premise} {right}."


def statement(source: random.Random, name: str, facts: tuple[str, str]) -> str:
    """One of a person's facts, said in one of two ways; the test asks in the first."""
    town, trade = facts
    forms = (f"{name} lives in {town}.", f"In {town} lives {name}.", f"{name} is a {trade}.", f"A {trade} is {name}.")
    return source.choice(forms)


def tasks(kind: str, count: int, seed: int) -> list[Task]:
    """Questions of one of `KINDS`; the right choice is at a place that chance picks."""
    source, known = random.Random(seed), list(people().items())
    ask = {"facts": lambda: question(source, *source.choice(known)), "puzzles": lambda: puzzle(source, heldout=True)}
    return [task(source, *ask[kind]()) for _ in range(count)]


def task(source: random.Random, context: str, right: str, others: list[str]) -> Task:
    choices = source.sample([right, *others], len(others) + 1)
    return Task(context.encode(), tuple(f" {choice}.".encode() for choice in choices), choices.index(right))


def question(source: random.Random, name: str, facts: tuple[str, str]) -> tuple[str, str, list[str]]:
    """A fact without its last word, that word, and others in its place."""
    asked = source.randrange(2)
    words, right = (TOWNS, TRADES)[asked], facts[asked]
    others = source.sample([word for word in words if word != right], CHOICES - 1)
    return f"{name} {('lives in', 'is a')[asked]}", right, others


def puzzle(source: random.Random, heldout: bool) -> tuple[str, str, list[str]]:
    """Premises and question, the name that answers it, and other names that stand in the premises."""
    while True:
        made = source.choice((ordered, handed))(source)
        if (zlib.crc32(made[0].encode()) % HELD_OUT == 0) == heldout:
            return made


def ordered(source: random.Random) -> tuple[str, str, list[str]]:
    """Some are taller than others: two sentences in any order, each said from either side."""
    row, quality = source.sample(NAMES, ORDERED), source.choice(list(PREMISES))
    sentences = [compared(source, quality, *pair) for pair in pairwise(row)]
    end = source.randrange(2)
    right = row[-end]
    others = [name for name in row if name != right]
    premises = " ".join(source.sample(sentences, len(sentences)))
    return f"{premises} So the {PREMISES[quality][end]} is", right, others


def compared(source: random.Random, quality: str, more: str, less: str) -> str:
    if source.randrange(2):
        return f"{more} is {quality}er than {less}."
    return f"{less} is {OPPOSITE[quality]}er than {more}."


def handed(source: random.Random) -> tuple[str, str, list[str]]:
    """Three have a thing each, and one of them gives it away."""
    row, things = source.sample(NAMES, 3), source.sample(THINGS, 3)
    has = [f"{name} has the {thing}." for name, thing in zip(row, things, strict=True)]
    giver, taker = source.sample(range(3), 2)
    owners = dict(zip(things, row, strict=True)) | {things[giver]: row[taker]}
    asked = source.choice(things)
    others = [name for name in row if name != owners[asked]]
    gives = f"{row[giver]} gives the {things[giver]} to {row[taker]}."
    return f"{' '.join(has)} {gives} So the {asked} is with", owners[asked], others
