"""One task on ``transformers.Trainer``: rehearsal steps, probes, determinism."""
