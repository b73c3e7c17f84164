"""`bytemtp.generate(model, prompt, max_bytes=...)` and, in `__main__.py`, the command of the same name."""

from bytemtp.decoding.generate import Generation, generate, generate_batch, generate_stream

__all__ = ["Generation", "generate", "generate_batch", "generate_stream"]
