"""Data: prepared datasets, how they are read, and batches on their way to the step."""
