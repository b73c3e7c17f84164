"""Drafts copied from text: what followed the end of a text where the same bytes stood before.

Code and prose repeat themselves: names, idioms, whole lines.  So what followed the last bytes when they last stood in
the text is often what follows them now, and looking it up costs microseconds, where a model's pass costs milliseconds
("prompt lookup": Saxena 2023; from a corpus: He et al. 2024, "REST").

To always find the longest match would take a suffix automaton, dearer in time and memory, and bring 1 % more bytes a
pass (measured on Python).  Instead there are chains as in zlib (Deutsch 1996, RFC 1951): for runs of a few lengths,
where the same run ended last, and before that.

Try:  python -c "from bytemtp.decoding.copies import *; c = Copies(); c.extend(b'to be or not to b');
      print(c.continuation(6))"
"""

from array import array
from collections.abc import Iterator
from itertools import islice

from bytemtp.decoding.corpus_index import MAX_MATCH, CorpusIndex

GRAMS = (10, 4, 2)
"""Lengths of the runs whose places are kept, the longest first.  Few long ones are the same, so they reach far back."""
CANDIDATES = 16
"""Places of a run that are looked at, the latest."""


class Copies:
    """What followed the end of a text where the same bytes stood before: in the text itself, or in an index.

    In the text, the longest of GRAMS decides whose bytes at the text's end also stood before.  Among the latest
    CANDIDATES places where they did, the one counts before which the most bytes agree, MAX_MATCH at most; of equals
    the latest.  In the index it is the longest match of all.  It counts if it is longer than that in the text.

    Each byte takes about a microsecond and at most some 400 bytes of memory.  The native engine has a twin of this in
    C++ (engines/native/choices.cpp), which finds the same.
    """

    def __init__(self, index: CorpusIndex | None = None) -> None:
        self.index, self.text = index, bytearray()
        self.is_from_index = False
        """what was found last"""
        self._places = [_Places(size) for size in GRAMS]

    def extend(self, data: bytes) -> None:
        """Append decided bytes to the text."""
        self.text += data
        for places in self._places:
            places.extend(self.text)

    def continuation(self, count: int) -> tuple[int, bytes]:
        """How many bytes at the end of the text match (0: none did before), and `count` bytes that followed them.

        Where the text ends before they do, they go on as they began: what follows `abab` is `abababab`.  In an index
        a document may end before; then they are fewer.
        """
        length, place = self._match()
        self.is_from_index = False
        if self.index is not None:
            found, following = self.index.continuation(self.text[-MAX_MATCH:], count)
            if found > length:
                self.is_from_index = True
                return found, following
        if not length:
            return 0, b""
        period = len(self.text) - place
        return length, (bytes(self.text[place : place + count]) * (count // period + 1))[:count]

    def _match(self) -> tuple[int, int]:
        """Its length, and where it ends; 0, 0 if there is none."""
        text, end = self.text, len(self.text)
        for places in self._places:
            best = at = 0
            for place in islice(places.before(end), CANDIDATES):
                if best < place and text[place - best - 1 : place] == text[end - best - 1 : end]:  # it is longer
                    best, at = agreeing(text, place, end), place
                    if best == MAX_MATCH:
                        break
            if best:
                return best, at
        return 0, 0


class _Places:
    """Where the runs of `size` bytes end in a text that grows."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._latest: dict[bytes, int] = {}
        self._before = array("I", [0])
        """for each end of a run, where the same run ended before; 0: nowhere"""

    def extend(self, text: bytearray) -> None:
        """Take in the bytes that are new."""
        size, latest, first = self._size, self._latest, max(len(self._before) - self._size, 0)
        new = bytes(text[first:])  # with the bytes before it that belong to the same runs
        for end in range(len(self._before) - first, len(new) + 1):
            run = new[max(end - size, 0) : end]  # a shorter one at the text's beginning is no other run's like
            self._before.append(latest.get(run, 0))
            latest[run] = first + end

    def before(self, end: int) -> Iterator[int]:
        """Where the run that ends at `end` ended before, the latest first."""
        while end := self._before[end]:
            yield end


def agreeing(text: bytearray, place: int, end: int) -> int:
    """How many bytes before one place are those before another, later one; MAX_MATCH at most."""
    length, most = 0, min(place, MAX_MATCH)
    while length < most and text[place - 1 - length] == text[end - 1 - length]:
        length += 1
    return length
