"""AimMerging: the callback and its parts, from the decision to merge to its checkpoint."""
