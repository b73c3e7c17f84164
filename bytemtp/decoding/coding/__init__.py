"""The model as an arithmetic coder: `compress` and `decompress`.

Read codec.py; laws.py is what both sides must agree on, container.py the file.  Imports what decoding does.
"""
