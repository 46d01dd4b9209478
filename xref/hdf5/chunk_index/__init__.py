"""Chunk indices: where each chunk of a dataset lies, for every kind of index."""
