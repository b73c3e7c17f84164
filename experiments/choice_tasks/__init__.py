"""Do heads hurt recall and help reasoning?  `python -m experiments.choice_tasks`.

world.py        facts to know by heart, puzzles to think about, and questions on both
report.py       tables and picture
recipe.toml     the cells of both presets
results.jsonl   one line a finished cell and seed
README.md       what came out
"""
