"""Arrays in huge pages, each at the start of a cache line.

Weights and caches are read from end to end in every step.  In pages of 4 KiB the processor's read-ahead stops at each
page's end, which costs a third of the memory's speed; in pages of 2 MiB it does not.

Shapes:  b rows, g key/value heads, k head width, l floats of a vector.
"""

import math
import mmap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int, Shaped

from bytemtp.decoding.engines.ring import moves

MOST_IN_HUGE_PAGES = 1 << 28
"""Numbers of caches: of larger ones what no text has reached yet takes no memory in small pages."""
LINE = 64
"""bytes of a cache line"""


def zeros(
    shapes: Sequence[tuple[int, ...]], dtype: type[np.generic] = np.float32, *, huge: bool = False
) -> list[Shaped[np.ndarray, "..."]]:
    """One array of each shape, one behind another; in huge pages, if they will live long: those take long to make."""
    sizes = [math.prod(shape) * np.dtype(dtype).itemsize for shape in shapes]
    starts = np.cumsum([0, *(-(-size // LINE) * LINE for size in sizes)]).tolist()
    # Private, because only private memory gets huge pages for the asking.
    memory = mmap.mmap(-1, max(starts[-1], 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if huge and hasattr(mmap, "MADV_HUGEPAGE"):  # Linux
        memory.madvise(mmap.MADV_HUGEPAGE)
    return [np.ndarray(shape, dtype, memory, start) for start, shape in zip(starts, shapes, strict=False)]


@dataclass(frozen=True)
class CacheShape:
    """Of the caches of all layers."""

    layers: int
    rows: int
    kv_heads: int
    width: int
    """of a head, padded"""
    lanes: int
    """slots of a block of keys"""


class EngineMemory:
    """What an engine writes to: the caches of all layers, which are rings, and room for one call."""

    def __init__(self, shape: CacheShape) -> None:
        self.shape, self.slots = shape, 0
        self.k: list[Float32[np.ndarray, "b g blocks k l"]] = []
        self.v: list[Float32[np.ndarray, "b g blocks l k"]] = []
        self._scratch: Float32[np.ndarray, " size"] = np.empty(0, np.float32)
        self._scratch_address = 0

    def grow(self, slots: int, end: Int[np.ndarray, " b"]) -> None:
        """To so many slots, for rows whose texts end there; blocks of keys move as they are."""
        shape, old = self.shape, [*self.k, *self.v]
        front = shape.rows, shape.kv_heads, slots // shape.lanes
        sizes = [(*front, shape.width, shape.lanes), (*front, shape.lanes, shape.width)]
        sizes = [size for size in sizes for _ in range(shape.layers)]
        new = zeros(sizes, huge=sum(map(math.prod, sizes)) < MOST_IN_HUGE_PAGES)
        row = np.flatnonzero(end)[:, None]  # others have nothing to keep, and take no memory yet
        source, to = moves(-(-end[row[:, 0]] // shape.lanes), self.slots // shape.lanes, slots // shape.lanes)
        for before, after in zip(old, new, strict=bool(old)):
            after[row, :, to] = before[row, :, source]
        self.k, self.v, self.slots = new[: shape.layers], new[shape.layers :], slots

    def scratch(self, size: int) -> int:
        """Address of room for so many floats, until the next call."""
        if size > len(self._scratch):
            (self._scratch,) = zeros([(size,)])
            self._scratch_address = self._scratch.ctypes.data
        return self._scratch_address


def contiguous_copies(arrays: Sequence[Shaped[np.ndarray, "..."]]) -> list[Shaped[np.ndarray, "..."]]:
    """Copies of arrays of one kind, one behind another."""
    copies = zeros([array.shape for array in arrays], arrays[0].dtype.type, huge=True)
    for copy, array in zip(copies, arrays, strict=True):
        copy[:] = array
    return copies
