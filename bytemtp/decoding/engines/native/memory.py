"""Arrays in huge pages, each at the start of a cache line.

Weights are read from end to end in every step.  In pages of 4 KiB the processor's read-ahead stops at each page's end,
which costs a third of the memory's speed; in pages of 2 MiB it does not.
"""

import mmap
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32

LINE = 16
"""floats of a cache line"""


def zeros(shapes: Sequence[tuple[int, ...]], *, huge: bool = False) -> list[Float32[np.ndarray, "..."]]:
    """One array of each shape, one behind another; in huge pages, if they will live long: those take long to make."""
    sizes = [int(np.prod(shape)) for shape in shapes]
    starts = np.cumsum([0, *(-(-size // LINE) * LINE for size in sizes)]).tolist()
    # Private, because only private memory gets huge pages for the asking.
    memory = mmap.mmap(-1, max(starts[-1], 1) * 4, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if huge and hasattr(mmap, "MADV_HUGEPAGE"):  # Linux
        memory.madvise(mmap.MADV_HUGEPAGE)
    floats = np.frombuffer(memory, np.float32)
    pieces = zip(starts, sizes, shapes, strict=False)
    return [floats[start : start + size].reshape(shape) for start, size, shape in pieces]


class EngineMemory:
    """What an engine writes to: the caches of all layers, and room for one call."""

    def __init__(self, shapes: Sequence[tuple[int, ...]]) -> None:
        self.shapes, self.caches = shapes, zeros(shapes)
        (self._scratch,) = zeros([(0,)])

    def scratch(self, size: int) -> Float32[np.ndarray, " size"]:
        if size > len(self._scratch):
            (self._scratch,) = zeros([(size,)])
        return self._scratch


def contiguous_copies(arrays: Sequence[Float32[np.ndarray, "..."]]) -> list[Float32[np.ndarray, "..."]]:
    """Copies of arrays, one behind another."""
    copies = zeros([array.shape for array in arrays], huge=True)
    for copy, array in zip(copies, arrays, strict=True):
        copy[:] = array
    return copies
