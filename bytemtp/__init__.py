"""Byte-level multi-token prediction: train on raw files, decode several bytes a pass, evaluate.  See README.md."""

from bytemtp.common.errors import UserError
from bytemtp.common.presets import PRESETS
from bytemtp.common.settings import ModelConfig, Settings
from bytemtp.compress import compress
from bytemtp.data.stream import Batch, Cursor, stream
from bytemtp.decompress import decompress
from bytemtp.generate import Generation, generate, generate_batch, generate_stream
from bytemtp.model.checkpoint import load_model as load
from bytemtp.model.model import ByteMTP

__version__ = "0.1.0"

__all__ = [
    "PRESETS",
    "Batch",
    "ByteMTP",
    "Cursor",
    "Generation",
    "ModelConfig",
    "Settings",
    "UserError",
    "compress",
    "decompress",
    "generate",
    "generate_batch",
    "generate_stream",
    "load",
    "stream",
]
