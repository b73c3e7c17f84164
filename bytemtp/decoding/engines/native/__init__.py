"""Decoding steps compiled from C++, for CPU cores: `NativeEngine` does what `TensorEngine` does, faster."""
