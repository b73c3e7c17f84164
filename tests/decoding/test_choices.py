"""Copies and choices compiled from C++ are those of their twins in Python, to the last bit."""

from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_auto import COSTS
from test_copies import TEXTS
from test_corpus_index import ALL_BYTES, DOCUMENTS, PIECES

from bytemtp.decoding.chooser import Chooser, Costs
from bytemtp.decoding.copies import Copies
from bytemtp.decoding.corpus_index import HEADER, CorpusIndex, write_index
from bytemtp.decoding.engines.native.choices import CompiledChooser, CompiledCopies
from bytemtp.decoding.loop import COPIED
from bytemtp.decoding.sampling import softmax

UNEVEN = Costs(tuple(0.001 + 0.00003 * ids**1.3 for ids in range(16)), heads=7e-5, head=3.1e-6, look=1.7e-6)
NO_LOOK = Costs(UNEVEN.passes, heads=7e-5, head=3.1e-6, look=2e-3)
"""Looking costs two passes."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("index")


def damaged(path: Path, seed: int) -> None:
    """Half of the places and bytes of an index are changed."""
    content, random = bytearray(path.read_bytes()), Random(seed)
    for place in range(HEADER.size, len(content)):
        if random.random() < 0.5:
            content[place] = random.randrange(256)
    path.write_bytes(content)


@given(
    documents=DOCUMENTS,
    texts=st.lists(st.one_of(st.binary(max_size=40), PIECES.map(b"".join)), max_size=6),
    all_bytes=st.booleans(),
    damage=st.one_of(st.none(), st.integers(0, 99)),
    count=st.integers(0, 20),
)
def test_copies_from_an_index(folder, documents, texts, all_bytes, damage, count):
    """Also from one that is damaged, whose places may lie outside it."""
    write_index(folder / "index", documents + [ALL_BYTES] * all_bytes)
    if damage is not None:
        damaged(folder / "index", damage)
    index = CorpusIndex(folder / "index")
    slow, fast = Copies(index), CompiledCopies(index)
    for text in [b"", *texts, documents[0][:30]]:
        slow.extend(text)
        fast.extend(text)
        assert fast.continuation(count) == slow.continuation(count)
        assert fast.is_from_index == slow.is_from_index


@settings(max_examples=60)
@given(
    costs=st.sampled_from([*COSTS.values(), UNEVEN, NO_LOOK]),
    depth=st.integers(0, 7),
    may_rest=st.booleans(),
    text=TEXTS.filter(bool),
    indexed=st.booleans(),
    are_logits=st.booleans(),
    skill=st.sampled_from([0.0, 0.3, 0.8, 1.0]),
    seed=st.integers(0, 999),
)
def test_choices(folder, costs, depth, may_rest, text, indexed, are_logits, skill, seed):
    """Passes of a text that goes on with bytes of its own or others, whose drafts are right with some chance."""
    if indexed:
        write_index(folder / "index", [text])
    index = CorpusIndex(folder / "index") if indexed else None
    slow = Chooser(Copies(index), costs, depth, may_rest=may_rest)
    fast = CompiledChooser(CompiledCopies(index), costs, depth, may_rest=may_rest)
    random, accepted = Random(seed), 0
    for _ in range(120):
        at = random.randrange(len(text))
        data, most = text[at : at + random.randrange(9)], random.choice([0, 3, COPIED])
        copied = slow.begin(accepted, data, most)
        assert fast.begin(accepted, data, most) == copied
        assert (fast.asks, fast.follows) == (slow.asks, slow.follows)
        drafts = len(copied)
        if slow.asks:  # all at once, or one after another
            steps = range(depth) if random.random() < 0.5 else range(0, depth, max(depth, 1))
            dice, size = np.random.default_rng(random.randrange(999)), depth if len(steps) == 1 else 1
            for first in steps:
                logits = (dice.standard_normal((size, 264)) * 10 * skill).astype(np.float32)
                drawn_from = logits if are_logits else softmax(logits, 0.7)
                number = slow.worth(first + 1, drawn_from, are_logits=are_logits)
                assert fast.worth(first + 1, drawn_from, are_logits=are_logits) == number
                drafts += number
                if number < size:
                    break
        accepted = next((i for i in range(drafts) if random.random() > skill), drafts)
