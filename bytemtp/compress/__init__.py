"""`bytemtp.compress(model, data)` and, in `__main__.py`, the command of the same name."""

from bytemtp.decoding.coding.codec import compress

__all__ = ["compress"]
