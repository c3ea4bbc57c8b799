"""The command ``merganser``."""
