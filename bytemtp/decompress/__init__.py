"""`bytemtp.decompress(model, compressed)` and, in `__main__.py`, the command of the same name."""

from bytemtp.decoding.coding.codec import decompress

__all__ = ["decompress"]
