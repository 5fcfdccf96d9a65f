"""The metrics of several replicas as one text for Prometheus."""

from collections.abc import Mapping


def merged(texts: Mapping[str, str]) -> str:
    """Texts of the same service by replica -> all their samples, with the label `replica`.

    The samples of a metric have to follow each other, after the lines that describe it.
    """
    described: dict[str, dict[str, None]] = {}
    samples: dict[str, list[str]] = {}
    for replica, text in sorted(texts.items()):
        metric = ""
        for line in text.splitlines():
            if line.startswith("#"):
                metric = line.split(" ", 3)[2]
                described.setdefault(metric, {})[line] = None
            else:
                samples.setdefault(metric, []).append(_labelled(line, replica))
    return "".join(f"{line}\n" for metric, lines in described.items() for line in [*lines, *samples.get(metric, ())])


def _labelled(sample: str, replica: str) -> str:
    name, brace, rest = sample.partition("{")
    if brace:
        return f'{name}{{replica="{replica}",{rest}'
    name, _, value = sample.partition(" ")
    return f'{name}{{replica="{replica}"}} {value}'
