"""Merganser: one language model that keeps learning, task after task, without forgetting."""
