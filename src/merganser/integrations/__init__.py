"""Other programs: losses of TRL's trainers, a plugin of Axolotl, tasks of lm-evaluation-harness. No package is needed
to import it."""
