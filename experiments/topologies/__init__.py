"""Which topology of heads is best at equal parameters, and is a trunk lazy?  `python -m experiments.topologies`.

recipe.toml     the cells
trunk.py        what the trunk's output holds
results.jsonl   one line a finished cell and seed
README.md       what came out
"""
