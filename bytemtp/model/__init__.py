"""The model: attention, layers, head topologies, ByteMTP, checkpoints, Hugging Face folders, weights to start from.

Imports common.
"""
