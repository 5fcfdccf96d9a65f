"""What all figures share: their size, titles, legends, and names that fit."""

import textwrap
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

MOST_LINES = 10  # lines with a name in the legend; more would be hard to distinguish
LONGEST_NAME = 40  # characters of a name next to an axis or in a legend
_TITLE_POINTS = 11
LETTER = 0.075  # upper bound in inches on the average width of a letter of 8 points


def new_figure(
    columns: int = 1, *, width: float = 5.5, height: float = 4.0, square: bool = False
) -> tuple[Figure, list[Axes]]:
    """Makes an empty figure. `square`: whether the axes will have equal scales, which needs another layout."""
    figure = Figure(figsize=(width * columns, height), layout="compressed" if square else "constrained")
    axes = list(figure.subplots(1, columns, squeeze=False)[0])
    for axis in axes:
        axis.grid(alpha=0.3)
    return figure, axes


def add_title(figure: Figure, text: str) -> None:
    """Adds a line of text above a figure, below any earlier one, wrapped to its width; the figure grows by it."""
    # The layout reserves space for a title's height, not for its width. A letter is about 0.6 of its size wide.
    width = int(figure.get_figwidth() * 72 / (0.6 * _TITLE_POINTS))
    lines = textwrap.wrap(literal(text), width, break_on_hyphens=False)
    figure.suptitle("\n".join(filter(None, (figure.get_suptitle(), *lines))), fontsize=_TITLE_POINTS)
    figure.set_figheight(figure.get_figheight() + len(lines) * 1.2 * _TITLE_POINTS / 72)


def class_name(c: int, names: Sequence[str]) -> str:
    """The name of class `c`; `names` is empty if the classes have none."""
    return names[c] if names else f"class {c}"


def literal(text: str) -> str:
    """The text escaped for matplotlib, in which a dollar sign would begin a formula."""
    return " ".join(text.split()).replace("$", r"\$")


def short(name: str, longest: int = LONGEST_NAME) -> str:
    """Shortens a name to fit next to an axis: keeps the beginning and the end."""
    half = (longest - 1) // 2
    return literal(name if len(name) <= longest else f"{name[:half]}…{name[-half:]}")


def width_beside(texts: Sequence[str]) -> float:
    """The width in inches of a legend of these texts next to an axis."""
    return 0.6 + LETTER * max(map(len, texts))


def legend_beside(axis: Axes) -> None:
    """Adds a legend to the right of the axis, where it hides nothing."""
    axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def tilt(axis: Axes, degrees: float) -> None:
    """Rotates the tick labels of the horizontal axis, each about its end, so that long ones don't overlap."""
    for mark in axis.get_xticklabels():
        mark.set(rotation=degrees, horizontalalignment="right", rotation_mode="anchor")
