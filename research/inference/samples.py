"""Sample inputs of a run with the predictions for them, by which a service checks the model that it opens."""

import base64
import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from research.base.errors import UserError
from research.base.trees import jsonable
from research.data.encoder import Signature
from research.data.examples import Columns
from research.runs.rundir import RunDir

# Inputs of a run. A dtype in which a tenth of all inputs get another answer is right for 4 of them two times in three,
# and for 32 one time in thirty.
MOST, LEAST = 32, 4
_BYTES = 2**20  # of a run's inputs, if these are more than LEAST: images may be large

Records = Sequence[Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Samples:
    """Raw inputs by column, and for each version with predictions a record per input: `prediction`, `scores`.

    A version is the step of a run's checkpoint, or a hash of a folder's weights. `dtype`: what they were computed in.
    """

    columns: Columns
    predictions: Mapping[str, Records]
    dtype: str = "float32"


def write_samples(run: RunDir, columns: Columns, signature: Signature, records: Records, step: int) -> None:
    """Writes inputs from all over a split with their predictions at a step, from `records` of one model.

    Does nothing for examples that are cut from the columns, such as rows of documents.
    """
    if signature.kind == "documents":
        return
    chosen = _spread(records, MOST)
    rows = [[_saved(columns[name][record["index"]]) for name in signature.inputs] for record in chosen]
    fitting = MOST * _BYTES // max(1, len(json.dumps(rows)))
    if fitting < MOST:
        chosen, rows = (_spread(each, max(LEAST, fitting)) for each in (chosen, rows))
    inputs = {name: [row[i] for row in rows] for i, name in enumerate(signature.inputs)}
    kept = [{name: record[name] for name in ("prediction", "scores") if name in record} for record in chosen]
    run.write_samples({"inputs": inputs, "predictions": {str(step): jsonable(kept)}})


def _spread(values: Sequence[Any], most: int) -> list[Any]:
    """At most `most` of the values, from the first to the last: splits may be sorted, such as by class."""
    count = min(most, len(values))
    return [values[i] for i in np.linspace(0, len(values) - 1, count).astype(int)] if count else []


def add_predictions(run: RunDir, records: Records, step: int) -> None:
    """Adds the predictions at another step for the sample inputs that the run has."""
    saved = run.samples()
    assert saved is not None
    run.write_samples({**saved, "predictions": {**saved["predictions"], str(step): jsonable(list(records))}})


def read_samples(run: RunDir) -> Samples | None:
    """The samples of a run; None for one from before they were written. Raises UserError if they can't be read."""
    saved = run.samples()
    if saved is None:
        return None
    return parse_samples({**saved, "dtype": run.config()["dtype"]}, f"the samples of {run.path}")


def parse_samples(saved: Mapping[str, Any], where: str) -> Samples:
    """The samples in a file's JSON. Raises UserError, naming `where`, if there are none."""
    try:
        columns = {name: [_loaded(value) for value in values] for name, values in saved["inputs"].items()}
        return Samples(columns, dict(saved["predictions"]), saved["dtype"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{where} can't be read ({error})") from error


def _saved(value: Any) -> Any:
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return {"bytes": base64.b64encode(value).decode()}
    if isinstance(value, np.ndarray):
        contiguous = np.ascontiguousarray(value)
        data = base64.b64encode(contiguous.tobytes()).decode()
        return {"array": data, "dtype": contiguous.dtype.str, "shape": list(contiguous.shape)}
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and math.isnan(value) else value  # a missing number


def _loaded(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if "bytes" in value:
        return base64.b64decode(value["bytes"])
    data = np.frombuffer(base64.b64decode(value["array"]), np.dtype(value["dtype"]))
    return data.reshape(value["shape"])
