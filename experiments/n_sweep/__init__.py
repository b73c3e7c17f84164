"""How many bytes ahead should a small model predict?  `python -m experiments.n_sweep`.

recipe.toml     the cells
results.jsonl   one line a finished cell and seed
README.md       what came out
"""
