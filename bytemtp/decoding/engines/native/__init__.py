"""Decoding steps compiled from C++, for CPU cores: `NativeEngine` does what `TensorEngine` does, faster.

Imports common, model and the protocol of engines.
"""
