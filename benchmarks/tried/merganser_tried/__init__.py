"""What was tried to make AimMerging better and is not a part of Merganser; see docs/research.md."""
