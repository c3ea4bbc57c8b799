"""What is asked of the file system: whole files or none, locks, caches, safetensors read by slices."""
