"""AimMerging in other programs: losses of TRL's trainers, a plugin of Axolotl. No package is needed to import it."""
