"""TRM: the merge at the end of a task, found by optimising in the subspace of its trajectory."""
