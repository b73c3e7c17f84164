"""Do heads teach a small model to copy a name that it has just read?  `python -m experiments.induction`.

names.py        names of two random parts
stories.py      stories by templates
tinystories.py  stories from files, with such names put in
scoring.py      which bytes of names a model expects
report.py       tables and picture
recipe.toml     the cells of both presets
results.jsonl   one line a finished cell and seed
README.md       what came out
"""
