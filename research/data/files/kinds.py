"""The kinds of a table's columns, inferred from all of its rows.

A column is of one of these KINDS:
  number: a feature; numbers, or text that is a number in every row.
  category: a feature; text with few distinct values.
  text: sentences.
  image: the paths of image files, relative to the table's folder.
  json: lists and objects, such as chats, read as their JSON; never inferred.
  key: names the row; not a feature.
  ignored: not read.
"""

import dataclasses
import shlex
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from research.base.errors import UserError
from research.data.files import folders
from research.data.files.batches import Batch, read_batches
from research.data.files.tables import row_name

KINDS = ("number", "category", "text", "image", "json", "key", "ignored")

# Text that stands for a missing number. In other columns only an empty value is missing.
MISSING_NUMBERS = ("", "NA", "N/A", "NaN", "nan", "null", "NULL", "None")

# A column with more distinct values than this is not a category.
MOST_CATEGORIES = 1000
# Text that has more words on average than this is sentences, unless it has fewer distinct values than the next number.
_WORDS_OF_A_NAME = 3.0
_FEW_VALUES = 10

_NUMBER = r"^[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?$"
_DATE = r"^\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}.*)?$|^\d{1,2}[/.]\d{1,2}[/.]\d{2,4}( .*)?$"
_KEYS = ("id", "idx", "index", "key", "uuid", "guid", "row", "")

# Names under which a column of labels is found.
LABELS = ("label", "labels", "target", "class", "y")


@dataclasses.dataclass
class Summary:
    """What is known of a column. Rows are counted from 0; `first_…` is the row and the value.

    Attributes:
      rows: rows read so far, with those before the column appeared.
      values: those that are not missing; `numbers` of them are numbers, `dates` are dates, `images` paths of images.
      integral: whether all numbers are integers.
      distinct: the distinct values as text, in order of appearance, and how often each occurs; None: more than
        MOST_CATEGORIES.
      words: the number of words in all values.
    """

    rows: int = 0
    values: int = 0
    numbers: int = 0
    dates: int = 0
    images: int = 0
    integral: bool = True
    typed: bool = False
    distinct: dict[str, int] | None = dataclasses.field(default_factory=dict)
    words: int = 0
    first_missing: int | None = None
    first_other: tuple[int, str] | None = None  # the first value that is not a number

    @property
    def missing(self) -> int:
        return self.rows - self.values


def summarize(path: Path, ignored: Collection[str] = (), *, nested: bool = False) -> dict[str, Summary]:
    """Summaries of the columns of a table but `ignored` ones, in one pass; `nested` as in `read_batches`.

    Raises UserError as `read_batches`, for a column of an unknown type, and without any row.
    """
    found: dict[str, Summary] = {}
    rows = 0
    for batch in read_batches(path, "inspecting", lambda name: name not in ignored, nested=nested):
        size = len(next(iter(batch.values()))) if batch else 0
        for name in {**found, **batch}:
            summary = found.setdefault(name, Summary(rows, first_missing=0 if rows else None))
            if name in batch:
                _add(summary, batch, name, path)
            elif summary.first_missing is None:
                summary.first_missing = rows
            summary.rows = rows + size
        rows += size
    if not rows:
        raise UserError(f"{path} has no rows")
    return found


def _add(summary: Summary, batch: Batch, name: str, path: Path) -> None:
    import pyarrow
    import pyarrow.compute as pc

    array, kind = batch[name], batch[name].type
    if pyarrow.types.is_temporal(kind):
        summary.dates += len(array) - array.null_count
        summary.values += len(array) - array.null_count
        return
    elif pyarrow.types.is_boolean(kind):
        array = array.cast(pyarrow.int8())
    elif pyarrow.types.is_decimal(kind):
        array = array.cast(pyarrow.float64())
    if not (pyarrow.types.is_string(array.type) or pyarrow.types.is_null(kind) or _is_number(array.type)):
        raise UserError(
            f"{path}: column {name!r} is of type {kind}; numbers, text and booleans can be read; to leave it out: "
            f"{declare(name, 'ignored')}"
        )
    if pyarrow.types.is_string(array.type):
        _add_text(summary, array)
    else:
        _add_numbers(summary, array, pc.invert(pc.is_null(array, nan_is_null=True)))
        summary.typed = summary.typed or array.null_count < len(array)
    if summary.typed and summary.first_other and summary.numbers:
        row, value = summary.first_other
        raise UserError(f"{row_name(row, path)}: column {name!r} is {value!r:.40}, and a number in other rows")


def _is_number(kind: Any) -> bool:
    import pyarrow

    return bool(pyarrow.types.is_integer(kind) or pyarrow.types.is_floating(kind))


def _add_numbers(summary: Summary, array: Any, given: Any) -> None:
    import pyarrow
    import pyarrow.compute as pc

    count = pc.sum(given).as_py() or 0
    _note_missing(summary, given, count)
    summary.values += count
    summary.numbers += count
    if count and summary.integral and pyarrow.types.is_floating(array.type):
        known = array.filter(given)
        summary.integral = bool(pc.all(pc.and_(pc.is_finite(known), pc.equal(pc.floor(known), known))).as_py())
    if count and summary.integral:
        _add_distinct(summary, array.filter(given), lambda value: str(int(value)))
    elif not summary.integral:
        summary.distinct = None


def _add_text(summary: Summary, array: Any) -> None:
    import pyarrow
    import pyarrow.compute as pc

    given = pc.fill_null(pc.not_equal(pc.utf8_trim_whitespace(array), ""), False)
    numbers = as_numbers(array)
    if numbers is not None:
        # Missing numbers count as missing only while the column has no other text.
        known = pc.invert(pc.is_null(numbers))
        if summary.first_other is None:
            known_count = pc.sum(known).as_py() or 0
            _note_missing(summary, known, known_count)
            summary.values += known_count
            summary.numbers += known_count
            _numbers_as_text(summary, array, numbers, known)
            return
    count = pc.sum(given).as_py() or 0
    _note_missing(summary, given, count)
    present = array.filter(given)
    is_number = pc.match_substring_regex(pc.utf8_trim_whitespace(present), _NUMBER)
    numeric = pc.sum(is_number).as_py() or 0
    if numeric < count and summary.first_other is None:
        rows = pc.indices_nonzero(given)
        first = pc.index(is_number, pyarrow.scalar(False)).as_py()
        summary.first_other = (summary.rows + rows[first].as_py(), present[first].as_py())
    summary.values += count
    summary.numbers += numeric
    summary.dates += pc.sum(pc.match_substring_regex(present, _DATE)).as_py() or 0
    summary.images += pc.sum(pc.match_substring_regex(pc.utf8_lower(present), _images())).as_py() or 0
    summary.words += (
        pc.sum(pc.list_value_length(pc.utf8_split_whitespace(pc.utf8_trim_whitespace(present)))).as_py() or 0
    )
    _add_distinct(summary, pc.utf8_trim_whitespace(present), str)


def _numbers_as_text(summary: Summary, array: Any, numbers: Any, known: Any) -> None:
    import pyarrow.compute as pc

    given = numbers.filter(known)
    if summary.integral and len(given):
        summary.integral = bool(pc.all(pc.and_(pc.is_finite(given), pc.equal(pc.floor(given), given))).as_py())
    if summary.integral:
        _add_distinct(summary, pc.utf8_trim_whitespace(array.filter(known)), str)
    else:
        summary.distinct = None
    summary.words += len(given)


def as_numbers(array: Any) -> Any:
    """Text as float64, null where it is one of MISSING_NUMBERS; None if some of it is not a number."""
    import pyarrow
    import pyarrow.compute as pc

    trimmed = pc.utf8_trim_whitespace(array)
    try:
        return pc.cast(trimmed, pyarrow.float64())  # quick where nothing is missing
    except pyarrow.ArrowInvalid:
        pass
    missing = pc.is_in(trimmed, pyarrow.array(MISSING_NUMBERS))
    try:
        return pc.cast(pc.if_else(missing, None, trimmed), pyarrow.float64())
    except pyarrow.ArrowInvalid:
        return None


def _note_missing(summary: Summary, given: Any, count: int) -> None:
    import pyarrow
    import pyarrow.compute as pc

    if count < len(given) and summary.first_missing is None:
        summary.first_missing = summary.rows + pc.index(given, pyarrow.scalar(False)).as_py()


def _add_distinct(summary: Summary, values: Any, text: Any) -> None:
    import pyarrow.compute as pc

    if summary.distinct is None:
        return
    unique = pc.value_counts(values)
    if len(unique) > MOST_CATEGORIES:
        summary.distinct = None
        return
    for value, count in zip(*(unique.field(name).to_pylist() for name in ("values", "counts")), strict=True):
        summary.distinct[text(value)] = summary.distinct.get(text(value), 0) + count
    if len(summary.distinct) > MOST_CATEGORIES:
        summary.distinct = None


def _images() -> str:
    return r"\.(" + "|".join(suffix.removeprefix(".") for suffix in folders.SUFFIXES) + r")$"


def infer(name: str, summary: Summary, path: Path) -> str:
    """The kind of a column.

    Raises UserError for a column that is nearly all numbers, or nearly all dates, and for dates, which are not
    features; the message has the row, and how to declare the kind.
    """
    count = summary.values
    if not count:
        return "ignored"
    if summary.dates == count:
        raise UserError(
            f"{path}: column {name!r} has dates, which are not features; leave it out ({declare(name, 'ignored')}), or "
            f"give what counts in a column of numbers; to split by it: --config.data.time_by={name}"
        )
    if summary.numbers == count:
        return "key" if _names_rows(name, summary) else "number"
    if summary.first_other and summary.numbers >= 0.9 * count:
        row, value = summary.first_other
        raise UserError(
            f"{row_name(row, path)}: column {name!r} is {value!r:.40}, and a number in {summary.numbers:,} of "
            f"{count:,} rows; mend it, or declare the column: {declare(name, 'category')}"
        )
    if summary.images == count:
        return "image"
    few = summary.distinct is not None and len(summary.distinct) <= max(_FEW_VALUES, count // 20)
    if summary.words > _WORDS_OF_A_NAME * count and not few:
        return "text"
    if summary.distinct is None or (_names_rows(name, summary) or (len(summary.distinct) > 0.5 * count and not few)):
        return "key"
    return "category"


def _names_rows(name: str, summary: Summary) -> bool:
    """Whether a column is called like a key, and its values may be distinct."""
    called = name.lower().rpartition("_")[2] in _KEYS or name.lower().startswith("unnamed:")
    distinct = summary.distinct is None or len(summary.distinct) == summary.values
    return called and distinct and (summary.numbers < summary.values or summary.integral)


def declare(name: str, kind: str) -> str:
    """The flag that declares the kind of a column."""
    text = f"{name}={kind}"
    return "--config.data.kinds=" + shlex.quote(repr((text,)) if "," in name else text)


def declared(kinds: tuple[str, ...], names: Mapping[str, Any] | tuple[str, ...]) -> dict[str, str]:
    """The kinds declared by "COLUMN=KIND" strings. Raises UserError for an unknown column or kind."""
    from research.base.registry import nearest

    found = {}
    for text in kinds:
        name, equals, kind = text.rpartition("=")
        if not equals or kind not in KINDS:
            raise UserError(f"data.kinds has {text!r}; write COLUMN=KIND, where KIND is one of {', '.join(KINDS)}")
        if name not in names:
            raise UserError(f"data.kinds has {text!r}, and there is no column {name!r}; {nearest(name, list(names))}")
        found[name] = kind
    return found
