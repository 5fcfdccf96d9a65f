"""A JAX/Flax research codebase: one train loop for every model. README.md gives a reading order of the code."""

__version__ = "0.2.0"
