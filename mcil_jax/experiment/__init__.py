"""The host side of a run: its tasks, its state, and what it writes."""
