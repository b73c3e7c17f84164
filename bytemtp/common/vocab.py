"""The vocabulary: 256 bytes, one document boundary, seven rows of padding.

Ids 0-255 are the bytes themselves, so encoding is the identity and any byte string round-trips.
"""

EOT = 256
"""Id of `<|endoftext|>`.  It ends one document and opens the next."""

VOCAB_SIZE = 257
"""Ids that can have probability: the bytes and EOT."""

PADDED_VOCAB_SIZE = 264
"""Rows of the unembedding: a multiple of 8 for fast matrix products.  Ids 257-263 never get probability."""
