"""Machinery that knows nothing of learning: devices, files, signals, the terminal."""
