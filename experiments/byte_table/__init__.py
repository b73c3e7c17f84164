"""How good are programs of byte models with 1, 8, 16 and 32 heads?  `python -m experiments.byte_table`.

recipe.toml     the cells
__main__.py     pass@k, table and picture
results.jsonl   one line a finished cell and seed
README.md       what came out
"""
