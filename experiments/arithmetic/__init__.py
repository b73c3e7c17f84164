"""Do heads help a model to calculate with polynomials?  `python -m experiments.arithmetic`.

ring.py         polynomials modulo a prime, without powers from X^k on
questions.py    expressions as bytes, and which are held out
report.py       tables and picture
recipe.toml     the cells of both presets
results.jsonl   one line a finished cell and seed
README.md       what came out
"""
