"""Byte-level multi-token prediction: train on raw files, decode several bytes a pass, evaluate.  See README.md."""

from bytemtp.checkpoint import load_model as load
from bytemtp.config import PRESETS, ModelConfig, Settings
from bytemtp.errors import UserError
from bytemtp.generate import Generation, generate, generate_batch, generate_stream
from bytemtp.model import ByteMTP
from bytemtp.stream import Batch, Cursor, stream

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
    "generate",
    "generate_batch",
    "generate_stream",
    "load",
    "stream",
]
