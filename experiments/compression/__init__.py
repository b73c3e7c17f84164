"""How small minutes of training make files, and whether drafts speed up decompression; see README.md.

recipe.toml     by preset: corpus, sample, what all cells share, and what each cell changes
results.jsonl   one line a finished cell and seed
"""
