"""From batches to a trained run: start, loss, optimizer, run folder, resuming, progress, and the trainer itself.

Imports common, data and model; never decoding.
"""
