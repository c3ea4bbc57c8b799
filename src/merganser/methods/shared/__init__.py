"""Helpers that several methods share; each method has one file beside this folder."""
