"""Embeddings and output layers: vocabularies of different sizes, and tied weights."""
