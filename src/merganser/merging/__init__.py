"""Merging rules and their mathematics: arrays in, arrays out. One file per rule."""
