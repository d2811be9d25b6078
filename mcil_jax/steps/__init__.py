"""Functions that are jitted, and the settings and caches that they read."""
