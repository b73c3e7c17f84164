"""Results for eyes: curves of runs, decoded bytes as a web page, and on a terminal.

Imports common and decoding.
"""
