"""Whole characters: bytes come out as they went in, and no piece ends inside a character."""

import re
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bytemtp.decoding.generate import Generation
from bytemtp.reports.terminal import PALETTE, coloured, open_end, whole_characters

PIECES = st.one_of(st.text(max_size=4).map(lambda text: text.encode("utf-8", "replace")), st.binary(max_size=4))
"""Characters, and bytes that are none or only parts of some."""


@st.composite
def chunked(draw):
    data = b"".join(draw(st.lists(PIECES, max_size=12)))
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=12)))
    return [data[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def inside_characters(data: bytes) -> set[int]:
    """Places at which a cut would split a valid character: decide it for each place and length by trying."""
    found = set()
    for start in range(len(data)):
        for size in (2, 3, 4):
            try:
                if len(data[start : start + size].decode()) == 1 and start + size <= len(data):
                    found |= set(range(start + 1, start + size))
            except UnicodeDecodeError:
                pass
    return found


@given(chunks=chunked())
def test_pieces_join_to_the_bytes_and_end_between_characters(chunks):
    pieces = list(whole_characters(chunks))
    data = b"".join(chunks)
    assert b"".join(pieces) == data and all(pieces)
    assert not inside_characters(data) & set(accumulate(map(len, pieces)))


@given(chunks=chunked())
def test_at_most_three_bytes_are_held_back(chunks):
    given, told = 0, 0

    def watched():
        nonlocal given
        for chunk in chunks:
            assert given - told <= 3
            given += len(chunk)
            yield chunk

    for piece in whole_characters(watched()):
        told += len(piece)
    assert told == given


@pytest.mark.parametrize(
    ("data", "size"),
    [(b"", 0), (b"a", 0), ("é".encode(), 0), (b"a\xc3", 1), (b"\xf0\x9f\x98", 3), (b"\xe2A", 0), (b"\xff\x80", 0)],
)
def test_an_open_end_is_what_may_still_become_a_character(data, size):
    assert open_end(data) == size


def test_no_draft_has_the_colour_of_head_1():
    out = Generation(b"".join([b"x"] * 32), {}, list(range(32)))
    head, *drafts = re.findall(r"38;5;(\d+)m", coloured(out).decode())
    assert len(drafts) == 31 and head not in drafts and len(set(drafts)) == len(PALETTE) - 1
