"""`python -m research.configs`: the configs, their presets, and which of them are available here."""

from research import cli, list

if __name__ == "__main__":
    cli.run(list.main_of_configs)
