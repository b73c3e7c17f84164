"""Does the price of several heads fall as models grow?  `python -m experiments.scaling`.

recipe.toml     the cells
__main__.py     the price against one head, table and picture
results.jsonl   one line a finished cell and seed
README.md       what came out
"""
