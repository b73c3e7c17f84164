"""How much of the bytes to come does one hidden state hold?  `python -m experiments.future_lens`.

recipe.toml     the cells of both presets
contexts.py     contexts, the model's states at their ends, and what it writes after them
branches.py     many continuations of one beginning, layer by layer
probes.py       linear maps of a state, and the bigrams that they have to beat
transplants.py  a state in the place of another one, after a fixed or a learnt prompt
report.py       table and picture
results.jsonl   one line a finished cell and seed
README.md       what came out
"""
