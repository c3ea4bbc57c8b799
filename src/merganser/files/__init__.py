"""Files on disk: complete or absent (``atomic``), the cache folder (``cache``), and safetensors files in slices."""
