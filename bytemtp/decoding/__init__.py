"""From prompts to bytes: the verify loop, drafters, sampling, the float64 judge; `engines` run the model in pieces.

Imports common and model; never training.
"""
