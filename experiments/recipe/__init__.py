"""Which settings give the fewest bits per byte in a few minutes on two cores: `python -m experiments.recipe`.

recipe.toml     the grids: corpus, what all cells share, and what each cell changes
tricks.py       ways of training that the toolkit has no setting for
results.jsonl   one line a finished cell and seed
"""
