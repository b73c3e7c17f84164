"""Does predicting several bytes ahead teach a model to look ahead?  `python -m experiments.planning`.

graphs.py       the questions
recipe.toml     the cells of both presets
results.jsonl   one line a finished cell and seed
README.md       what came out
"""
