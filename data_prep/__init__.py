"""From raw files to prepared TFDS datasets, one module per kind of source."""
