"""Numbers about a run: bits per byte, multiple choice, open questions, the fastest drafts; `code` has pass@k.

Imports common, data, model, training (losses), decoding, sandbox and reports.
"""
