"""`bytemtp.generate(model, prompt, max_bytes=...)` and, in `__main__.py`, the command of the same name."""

from bytemtp.decode import Generation, generate

__all__ = ["Generation", "generate"]
