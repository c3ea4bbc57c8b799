"""PEFT adapters: reading, merging, and models with an adapter applied."""
