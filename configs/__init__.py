"""One file per experiment, each with `get_config(preset="")`: numbers and names only. Shared keys are in `defaults.py`."""
