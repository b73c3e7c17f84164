"""`CompiledDraws`: what `Draws` decides, in draws.cpp.

Shapes:  l positions, v vocabulary, c drafts of a chain, c1 = c + 1.
"""

from collections.abc import Sequence
from ctypes import byref, c_int64
from random import Random

import numpy as np
from jaxtyping import Float, Float64

from bytemtp.common.vocab import VOCAB_SIZE
from bytemtp.decoding.engines.native.library import address, library
from bytemtp.decoding.sampling import Draws


class CompiledDraws(Draws):
    """Of float32 logits that lie together in memory, as `NativeEngine` gives them."""

    def __init__(self) -> None:
        self.functions = library().functions

    def leads(self, logits: Float[np.ndarray, "l v"], margin: float) -> tuple[list[int], list[bool]]:
        out = np.empty((2, len(logits)), np.int64)
        self.functions.leads(address(logits), *logits.shape, VOCAB_SIZE, margin, address(out))
        best, certain = out.tolist()
        return best, [lead > 0 for lead in certain]

    def softmax(self, logits: Float[np.ndarray, "l v"], temperature: float) -> Float64[np.ndarray, "l v"]:
        p = np.empty(logits.shape)
        self.functions.softmax(address(logits), *logits.shape, temperature, address(p))
        return p

    def sample_ids(self, q: Float64[np.ndarray, "l v"], uniforms: Sequence[float]) -> list[int]:
        ids, at = np.empty(len(q), np.int64), np.array(uniforms)
        self.functions.sample_ids(address(q), *q.shape, address(at), address(ids))
        return list(ids.tolist())

    def verify_chain(
        self, p: Float64[np.ndarray, "c1 v"], ids: Sequence[int], q: Float64[np.ndarray, "c v"] | None, random: Random
    ) -> tuple[int, int]:
        stay, array, size = c_int64(), np.array(ids, np.int64), p.shape[1]
        law = None if q is None else address(q)
        uniforms = random.random(), random.random()
        id_ = self.functions.verify_chain(address(p), len(ids), size, address(array), law, *uniforms, byref(stay))
        return stay.value, id_
