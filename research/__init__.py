"""A JAX/Flax research codebase: one train loop for every model. Start reading at `research/training/loop.py`."""

__version__ = "0.2.0"
