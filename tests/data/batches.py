"""Training batches and their rows, by which orders are compared."""

from research.data.pipeline import Rows, Stream, training_batches


def training(examples, *, batch_rows, steps, start=0, seed=0, rows=None, **options):
    """The batches of a run on examples in rows of their own."""
    return training_batches(
        Stream.unpacked(examples),
        batch_rows=batch_rows,
        start_step=start,
        steps=steps,
        total_rows=None,
        seed=seed,
        rows=rows or Rows(),
        **options,
    )


def as_rows(batches):
    """Each row of the batches, as bytes."""
    return [
        tuple(batch[name][row].tobytes() for name in sorted(batch))
        for batch in batches
        for row in range(len(batch["weight"]))
    ]


class Unread(dict):
    """Columns that must not be read."""

    def __getitem__(self, *_):
        raise AssertionError("the columns were read")

    __iter__ = __getitem__
