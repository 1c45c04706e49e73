"""Checkpoints on disk: their format, and the store that writes them."""
