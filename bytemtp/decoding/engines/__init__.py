"""A model with its KV cache, run piece by piece: tensor operations, recorded passes, and native code for CPU cores.

Imports common and model.
"""
