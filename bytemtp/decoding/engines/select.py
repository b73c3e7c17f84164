"""Which engine runs a model: compiled steps where they can be had, else tensor operations.

make_engine("auto", model, rows=1, capacity=512)
"""

from functools import cache

import torch

from bytemtp.common.errors import UserError
from bytemtp.common.runtime import log
from bytemtp.decoding.engines.engine import Engine
from bytemtp.decoding.engines.native.engine import NativeEngine, supports
from bytemtp.decoding.engines.native.library import library
from bytemtp.decoding.engines.recorded import RecordedEngine, doubled
from bytemtp.decoding.engines.tensor import TensorEngine
from bytemtp.model.model import ByteMTP

ENGINES: dict[type[Engine], str] = {NativeEngine: "native", TensorEngine: "torch", RecordedEngine: "recorded"}
"""Engines by their names in options and statistics."""


def make_engine(choice: str, model: ByteMTP, rows: int, capacity: int, width: int = 1, back: int = 0) -> Engine:
    """See `engine_kind`.

    capacity: ids that a row may come to have; they take no memory before they come, unless passes are recorded.
    width: ids of a verifying pass; back: ids beyond ring.STEP_BACK that a row may give up.
    """
    kind, window = engine_kind(choice, model), model.reach
    if kind is RecordedEngine:
        return RecordedEngine(model, rows, window or doubled(capacity), width, back, capacity)
    return kind(model, rows, window or capacity, back)


def engine_kind(choice: str, model: ByteMTP) -> type[NativeEngine] | type[TensorEngine]:
    """What "auto" is on this model's device: recorded passes on CUDA, else native ones, and where these cannot be
    compiled (said) tensor operations.  UserError if the native engine is asked for and cannot be had."""
    if choice == "recorded" or (choice == "auto" and model.device.type == "cuda"):
        if model.dtype == torch.int8:
            raise UserError("int8 is decoded by the engines native, on the CPU, and torch; choose one with --engine")
        return RecordedEngine
    if choice == "auto" and supports(model) and not native_works():
        choice = "torch"
    if choice == "native" and not supports(model):
        raise UserError("the native engine runs float32 models on the CPU whose width is a multiple of 16; use torch")
    return NativeEngine if choice != "torch" and supports(model) else TensorEngine


@cache
def native_works() -> bool:
    """Whether the native engine can be compiled and loaded; if not, why is said once."""
    try:
        library()
    except UserError as error:
        log(f"{str(error).partition('; ')[0]}: decoding by tensor operations, several times slower")
        return False
    return True
