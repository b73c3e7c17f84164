"""From prompts to bytes: `generate`, the verify loop, drafters, sampling, the float64 judge; `coding` compresses files.

Read generate.py, then loop.py; `engines` run the model in pieces.
Imports common and model; never training.
"""
