"""Metrics of class-incremental learning: pure NumPy functions."""
