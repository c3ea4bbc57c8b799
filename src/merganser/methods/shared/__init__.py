"""What several methods have in common; one file per method lies beside this folder."""
