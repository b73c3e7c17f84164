"""The model: attention, the transformer layer, head topologies, ByteMTP, checkpoints, export to Hugging Face.

Imports common.
"""
