"""`CompiledCopies` and `CompiledChooser`: what `Copies` and `Chooser` find and choose, in choices.cpp.

Shapes:  h drafting heads, v vocabulary.
"""

import weakref
from ctypes import c_double, c_int, create_string_buffer

import numpy as np
from jaxtyping import Float

from bytemtp.decoding.chooser import Chooser, Costs, places_of
from bytemtp.decoding.copies import Copies
from bytemtp.decoding.corpus_index import CorpusIndex
from bytemtp.decoding.engines.native.library import address, library


class CompiledCopies(Copies):
    """Each byte takes a tenth of a microsecond and at most some 60 bytes of memory."""

    def __init__(self, index: CorpusIndex | None = None) -> None:
        self.functions, self.index, self.is_from_index = library().functions, index, False
        corpus = (None, None, 0, 0) if index is None else index.parts()
        self.handle = self.functions.copies_new(*corpus)
        weakref.finalize(self, self.functions.copies_free, self.handle)
        self.found = (c_int * 3)()

    def extend(self, data: bytes) -> None:
        self.functions.copies_extend(self.handle, data, len(data))

    def continuation(self, count: int) -> tuple[int, bytes]:
        out = create_string_buffer(count)
        self.functions.copies_continuation(self.handle, count, out, self.found)
        length, following, is_from_index = self.found
        self.is_from_index = is_from_index > 0
        return length, out.raw[:following]


class CompiledJunk(CompiledCopies):
    """Random bytes: drafts that are hardly ever right."""

    def __init__(self) -> None:
        super().__init__()
        self.functions.copies_junk(self.handle, 1)


class CompiledChooser(Chooser):
    def __init__(self, copies: CompiledCopies, costs: Costs, depth: int, *, may_rest: bool) -> None:
        self.functions, self.text, self.depth = library().functions, copies, depth
        self.asks, self.follows = False, depth > 0 and not may_rest
        passes, places = (c_double * len(costs.passes))(*costs.passes), (c_double * depth)(*places_of(costs, depth))
        others = (c_double * 3)(costs.heads, costs.head, costs.look)
        sizes = passes, len(costs.passes), places, depth
        self.handle = self.functions.chooser_new(copies.handle, *sizes, others, may_rest)
        weakref.finalize(self, self.functions.chooser_free, self.handle)
        self.out = create_string_buffer(len(costs.passes))

    def begin(self, accepted: int, data: bytes, most: int) -> bytes:
        if most > len(self.out):
            self.out = create_string_buffer(most)
        done = self.functions.chooser_begin(self.handle, accepted, data, len(data), most, self.out)
        self.asks, self.follows = done & 1 > 0, done & 2 > 0
        return self.out.raw[: done >> 2]

    def worth(self, depth: int, drawn_from: Float[np.ndarray, "h v"], *, are_logits: bool) -> int:
        """Of float32 logits or float64 laws that lie together in memory."""
        where = address(drawn_from), *drawn_from.shape
        return int(self.functions.chooser_worth(self.handle, depth, *where, are_logits))
