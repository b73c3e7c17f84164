"""Copies, in Python and compiled: as looking at every place, on any text in any pieces; no work grows with the text."""

from itertools import takewhile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bytemtp.decoding import copies
from bytemtp.decoding.copies import CANDIDATES, GRAMS, MAX_MATCH, Copies
from bytemtp.decoding.engines.native.choices import CompiledCopies

KINDS = [Copies, CompiledCopies]

TEXTS = st.one_of(
    st.binary(max_size=60),
    st.text("ab", max_size=200).map(str.encode),
    st.lists(st.sampled_from([b"def f(x):\n    ", b"return x\n", b"f(", b"x", b"a" * 12]), max_size=30).map(b"".join),
    st.tuples(st.binary(min_size=1, max_size=5), st.integers(1, 60)).map(lambda pair: pair[0] * pair[1]),
)


def slow_match(text: bytes) -> tuple[int, int]:
    """Length and place of the match, as the docstring of Copies says."""
    for size in GRAMS:
        places = [place for place in range(len(text) - 1, size - 1, -1) if text[:place].endswith(text[-size:])]
        if places and size < len(text):
            place = max(places[:CANDIDATES], key=lambda place: same_before(text[:place], text))
            return same_before(text[:place], text), place
    return 0, 0


def same_before(one: bytes, other: bytes) -> int:
    pairs = zip(one[::-1][:MAX_MATCH], other[::-1], strict=False)
    return len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))


def slow_continuation(text: bytes, count: int) -> tuple[int, bytes]:
    length, place = slow_match(text)
    copied = bytearray(text)
    for _ in range(count if length else 0):
        copied.append(copied[place])
        place += 1
    return length, bytes(copied[len(text) :])


@pytest.mark.parametrize("kind", KINDS)
@given(text=TEXTS, cuts=st.lists(st.integers(0, 200)), count=st.integers(0, 20))
def test_what_the_docstring_says(kind, text, cuts, count):
    given_, bounds = kind(), sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    for begin, end in zip([0, *bounds], bounds, strict=False):
        given_.extend(text[begin:end])
        assert given_.continuation(count) == slow_continuation(text[:end], count)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("text", "length", "following"),
    [
        (b"", 0, b""),
        (b"a", 0, b""),
        (b"abcd", 0, b""),
        (b"to be or not to b", 4, b"e or n"),
        (b"aaa", 2, b"aaaaaa"),
        (b"xababab", 4, b"ababab"),
        (b"1ab2 2ab3 ab", 2, b"3 ab3 "),  # the latest of equals
        (b"1ab2 2ab3 1ab", 3, b"2 2ab3"),  # the longest
    ],
)
def test_examples(kind, text, length, following):
    looked_up = kind()
    looked_up.extend(text)
    assert looked_up.continuation(6) == (length, following)


@pytest.mark.parametrize("text", [b"a" * 20_000, b"abcab" * 4_000, b"".join(b"%d, " % n for n in range(3_999))])
def test_work_does_not_grow_with_the_text(text, monkeypatch):
    """Places and bytes that are looked at for a match, and what is kept for each byte."""
    places_seen: list[int] = []
    bytes_seen: list[int] = []
    before, agreeing = copies._Places.before, copies.agreeing

    def watched_before(places: copies._Places, end: int):
        for place in before(places, end):
            places_seen.append(place)
            yield place

    def watched_agreeing(*arguments) -> int:
        bytes_seen.append(agreeing(*arguments))
        return bytes_seen[-1]

    looked_up = Copies()
    looked_up.extend(text)
    monkeypatch.setattr(copies._Places, "before", watched_before)
    monkeypatch.setattr(copies, "agreeing", watched_agreeing)
    assert looked_up.continuation(8) != (0, b"")
    assert 1 <= len(places_seen) <= CANDIDATES and len(bytes_seen) <= CANDIDATES
    assert max(bytes_seen) <= MAX_MATCH
    assert [len(places._before) for places in looked_up._places] == [len(text) + 1] * len(GRAMS)
