"""What do eight heads cost head 1, and which schedule of their weight costs least?  `python -m experiments.harm`.

recipe.toml     the cells
results.jsonl   one line a finished cell and seed
README.md       what came out
"""
