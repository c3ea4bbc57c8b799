"""Images in place of texts; needs the extra ``merganser[images]`` (pillow). Imported only where a task has images.

``picture``       one encoded image, decoded when a batch is made
``sources``       a folder, IDX files or a table -> examples
``idx``           the IDX format of MNIST
``picture_file``  the images that a run directory stores
``image_sets``    class-incremental streams of published data sets
"""
