"""Decoding steps compiled from C++, for CPU cores: `engine.Native` does what `incremental.Incremental` does, faster."""
