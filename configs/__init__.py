"""One file per experiment, each with `get_config(preset="")`: numbers and names only; `defaults.py` has all keys."""
