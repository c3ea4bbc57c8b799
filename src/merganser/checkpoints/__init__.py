"""Model files that are merged on disk: where they lie, what is merged, and how it is streamed."""
