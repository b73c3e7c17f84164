"""Does one module for the byte after next help, as in DeepSeek-V3?  `python -m experiments.deepseek`.

recipe.toml     the cells
results.jsonl   one line a finished cell and seed
README.md       what came out
"""
