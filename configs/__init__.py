"""One file per experiment, each with `get_config(preset="")`: numbers and names only. Every key is in `defaults.py`."""
