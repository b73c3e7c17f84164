"""Which loop decodes: where C++ or the device can go on by itself it does, else Python decides after each pass.

loop_kind("auto", model, rows, Drafting())
"""

from bytemtp.decoding.ahead import AheadLoop, goes_ahead
from bytemtp.decoding.compiled import CompiledLoop, can_be_compiled
from bytemtp.decoding.engines.native.engine import NativeEngine
from bytemtp.decoding.engines.recorded import RecordedEngine
from bytemtp.decoding.engines.select import engine_kind
from bytemtp.decoding.loop import Drafting, VerifyLoop
from bytemtp.decoding.row import Row
from bytemtp.model.model import ByteMTP


def loop_kind(engine: str, model: ByteMTP, rows: list[Row], drafting: Drafting) -> type[VerifyLoop]:
    """engine: a name of `Options.engine`."""
    kind = engine_kind(engine, model)
    if kind is RecordedEngine and goes_ahead(model, rows, drafting):
        return AheadLoop
    if kind is NativeEngine and can_be_compiled(model, rows, drafting):
        return CompiledLoop
    return VerifyLoop
