"""Byte-level multi-token prediction: train on raw files, decode several bytes a pass, evaluate.  See README.md."""

from bytemtp.config import PRESETS, ModelConfig, Settings
from bytemtp.errors import UserError
from bytemtp.model import ByteMTP

__version__ = "0.1.0"

__all__ = ["PRESETS", "ByteMTP", "ModelConfig", "Settings", "UserError"]
