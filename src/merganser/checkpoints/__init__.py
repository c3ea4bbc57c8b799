"""Merging of model files on disk: finding, planning, streaming and writing them."""
