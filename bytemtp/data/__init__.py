"""From files to batches: paths to sources, decompression, documents, rows, and the resumable stream of batches.

Imports common.
"""
