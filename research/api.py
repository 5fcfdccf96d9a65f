"""The project from Python: `fit` trains a config, `open_run` opens a run directory; both return a `Run`.

>>> import research
>>> run = research.fit("linear_diabetes", workdir="runs/diabetes", show=False)
>>> run.metrics["test"]["r2"]
0.48
>>> run.predict({"features": features})
[{'index': 0, 'prediction': 151.2}, …]
"""

import base64
import copy
import datetime
import difflib
import html
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from research.base.errors import UserError
from research.base.paths import expanded, local
from research.base.registry import ALIASES, nearest
from research.config import LoadedConfig, load, override
from research.overrides import declared
from research.runs.rundir import RunDir


def fit(
    config: str | Path | ConfigDict, *, workdir: str | Path | None = None, show: bool = True, **overrides: Any
) -> "Run":
    """Trains a config and evaluates it, or resumes the run in `workdir` -> the run.

    Args:
      config: "bert_sst2:embedded", the path of a config file, or a config, which is not changed.
      workdir: the run directory; by default runs/CONFIG-PRESET-UTCTIME.
      show: whether to print, and to draw a progress bar.
      **overrides: config keys, whole (`**{"train.steps": 50}`) or the last part where only one key has it
        (`learning_rate=3e-4`). As on the command line, steps take the place of epochs, and epochs that of steps.

    Raises:
      UserError: a key, a value, the data or the workdir is invalid.
    """
    keys = declared(config if isinstance(config, ConfigDict) else load(str(config)).config)
    texts = [f"{_key(name, keys)}={value}" for name, value in overrides.items()]
    if isinstance(config, ConfigDict):
        own = copy.deepcopy(config)  # ConfigDict(config) would share what may be None
        loaded = LoadedConfig(own, Path("config"), None, override(own, texts))
    else:
        loaded = load(str(config), texts)
    if show and loaded.note:
        print(loaded.note)
    return Run(train_loaded(loaded, workdir, show=show)[0])


def train_loaded(
    loaded: LoadedConfig,
    workdir: str | Path | None = None,
    *,
    show: bool = True,
    should_stop: Callable[[], bool] = lambda: False,
) -> tuple[Path, dict[str, Any]]:
    """Trains a loaded config, from the weights of its `init_from` if it has one -> run directory, summary.

    The arguments are those of `fit` and of `research.training.loop.train_and_evaluate`. Raises UserError as they do.
    """
    from research.training import own_files
    from research.training.loop import train_and_evaluate

    folder = _new_workdir(loaded) if workdir is None else local(workdir)
    config, lines = own_files.fill_in(loaded.config, loaded.given)
    if show and lines:
        print("\n".join(lines), flush=True)
    load_variables = None
    if config.init_from or config.init_fresh:
        from research.interop import pretrained  # imports the libraries that read weights

        start = pretrained.resolve_init_from(config, loaded.given, folder, say=print if show else lambda line: None)
        if show and start.note:
            print(start.note, flush=True)
        config, load_variables = start.config, start.load_variables
    summary = train_and_evaluate(
        config,
        folder,
        note=loaded.note,
        config_file=loaded.file if loaded.file.is_file() else None,
        load_variables=load_variables,
        should_stop=should_stop,
        show=show,
    )
    return folder, summary


def _new_workdir(loaded: LoadedConfig) -> Path:
    """runs/CONFIG-PRESET-UTCTIME, with a number added if it exists: two runs may start within a second."""
    now = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S")
    folder = Path("runs") / f"{loaded.file.stem}-{loaded.config.preset}-{now}"
    others = (folder.with_name(f"{folder.name}-{i}") for i in itertools.count(2))
    return next(path for path in itertools.chain([folder], others) if not path.exists())


def open_run(workdir: str | Path) -> "Run":
    """Opens a run directory. Raises UserError if it is not one."""
    return Run(workdir)


class Run:
    """A run directory: what was trained, and what can be done with it."""

    def __init__(self, workdir: str | Path):
        self._run = RunDir.open(workdir, writer=True)
        self._predictors: dict[str, Any] = {}

    @property
    def workdir(self) -> Path:
        """The run directory."""
        return self._run.path

    @property
    def config(self) -> ConfigDict:
        """The resolved config; changing it does not change the run."""
        return ConfigDict(self._run.config())

    @property
    def summary(self) -> dict[str, Any]:
        """The contents of summary.json; empty for a run that has not ended."""
        return self._run.summary() or {}

    @property
    def metrics(self) -> dict[str, dict[str, float | None]]:
        """The metrics at the end of the run, by split."""
        return dict(self.summary.get("metrics", {}))

    @property
    def history(self) -> dict[str, dict[str, np.ndarray]]:
        """By split, "step" [N] and each metric [N], NaN where it has no value, over the course of the run."""
        lines = self._run.metrics()
        history: dict[str, dict[str, np.ndarray]] = {}
        for split in dict.fromkeys(line["split"] for line in lines):
            own = [line for line in lines if line["split"] == split]
            names = [name for name in own[-1] if name not in ("split", "step", "values")]
            history[split] = {
                "step": np.asarray([line["step"] for line in own]),
                **{name: np.asarray([line.get(name) for line in own], np.float64) for name in names},
            }
        return history

    def predict(self, inputs: Any, *, checkpoint: str = "last") -> list[dict[str, Any]]:
        """Returns a record for each input, in order: the prediction, and for classes the scores and the label's name.

        Args:
          inputs: columns by name, a mapping or a DataFrame; a list of rows, values by column; for a model with one
            input column also a list or an array [N, …] of its values; or the path of a file or a folder of images.
          checkpoint: "last" or "best".

        Raises:
          UserError: a column is missing, or a value is not valid for the model.
        """
        from research.inference.bulk import open_source, predict_rows
        from research.inference.predictor import Predictor

        if checkpoint not in self._predictors:
            self._predictors[checkpoint] = Predictor.open(self.workdir, checkpoint)
        predictor = self._predictors[checkpoint]
        if isinstance(inputs, Path) or (isinstance(inputs, str) and expanded(inputs).exists()):
            source = open_source(str(inputs), predictor)
            return [record for piece in predict_rows(predictor, source) for record in piece]
        if isinstance(inputs, str):
            raise UserError(f"{inputs!r:.60} is neither a file nor a list of inputs; for one text give a list, [text]")
        return predictor.predict(_columns(inputs, predictor.signature.inputs))

    def evaluate(
        self, split: str = "validation", *, data: str | None = None, checkpoint: str = "last"
    ) -> dict[str, Any]:
        """Evaluates a split of the run's dataset, or of the dataset `data`, and writes its predictions to the run.

        Returns "step", "split", "metrics" and "predictions", the file. Raises UserError as `research.evaluate` does.
        """
        from research.training.trained_run import TrainedRun

        return TrainedRun(self._run, checkpoint).evaluate(split, data=data)

    def plot(self, *what: str, split: str | None = None, checkpoint: str = "last") -> list[Path]:
        """Draws the plots `what`, by default all that apply to the run and need no training -> the PNGs.

        Raises UserError for an unknown plot, and for one that is named and does not apply.
        """
        from research.analysis.plots import PlotContext, draw, draw_all

        context = PlotContext(self._run, checkpoint, split)
        context.trained.predictions(context.of_split)
        if what:
            return [draw(context, name) for name in what]
        return [path for _, path, _ in draw_all(context) if path]

    def export(self, folder: str | Path, *, checkpoint: str = "last") -> Path:
        """Writes the model as a folder for transformers. Raises UserError for a model that it does not know."""
        from research.interop.export import export

        export(self.workdir, folder, checkpoint=checkpoint)
        return expanded(folder)

    def __repr__(self) -> str:
        return f"Run({str(self.workdir)!r})\n{_text_table(compare(self))}"

    def _repr_html_(self) -> str:
        """The metrics as a table, and the training curve."""
        curve = self._run.plots / "training_curve.png"
        image = ""
        if curve.is_file():
            content = base64.b64encode(curve.read_bytes()).decode()
            image = f'<img src="data:image/png;base64,{content}" style="max-width: 100%" alt="training curve">'
        return f"<p><code>{html.escape(str(self.workdir))}</code></p>{compare(self)._repr_html_()}{image}"


class Comparison(list[dict[str, Any]]):
    """A row per run: what differs in the configs, and the final metrics. Shown as a table; a DataFrame takes it."""

    def __repr__(self) -> str:
        return _text_table(self)

    def _repr_html_(self) -> str:
        names = _names(self)
        head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
        rows = (
            "<tr>" + "".join(f"<td>{html.escape(_shown(row.get(name)))}</td>" for name in names) + "</tr>"
            for row in self
        )
        return f"<table><tr>{head}</tr>{''.join(rows)}</table>"


def compare(*runs: Run) -> Comparison:
    """Compares runs: the keys in which their configs differ, status, step, and the metrics as "split/metric"."""
    from research.base.trees import flatten

    configs = [flatten(run.config.to_dict()) for run in runs]
    keys = dict.fromkeys(key for config in configs for key in config)
    differing = [key for key in keys if len({repr(config.get(key)) for config in configs}) > 1]
    rows = []
    for run, config in zip(runs, configs, strict=True):
        summary = run.summary
        rows.append(
            {
                "run": run.workdir.name,
                **{key: config.get(key) for key in differing},
                "status": summary.get("status", "not ended"),
                "step": summary.get("step"),
                **{f"{split}/{name}": x for split, values in run.metrics.items() for name, x in values.items()},
            }
        )
    return Comparison(rows)


def _key(name: str, keys: Mapping[str, Any]) -> str:
    """The config key that a name stands for. Raises UserError if it may be several, or is unknown and like one.

    `load` refuses other unknown ones.
    """
    if name in keys or "." in name:
        return name
    meant = [key for key in ALIASES.get(name, ()) if key in keys] or [
        key for key in keys if key.rpartition(".")[2] == name
    ]
    if len(meant) > 1:
        raise UserError(f"{name} may be {', '.join(meant)}; give the whole key: **{{{meant[0]!r}: …}}")
    if not meant and nearest(name, keys).startswith("known"):  # too short for `load` to suggest one
        lasts = {key.rpartition(".")[2].lower(): key for key in keys}
        for last in difflib.get_close_matches(name.lower(), lasts, n=1):
            raise UserError(f"config key {name!r} is unknown; did you mean {lasts[last]!r}?")
    return meant[0] if meant else name


def _columns(inputs: Any, names: Sequence[str]) -> Mapping[str, Any]:
    """Inputs by column: of a mapping, of a DataFrame, of rows that are mappings, or of the values of the only column.

    Raises UserError for values of several columns, and for a row that lacks one.
    """
    if isinstance(inputs, Mapping):
        return inputs
    if hasattr(inputs, "columns") and hasattr(inputs, "to_dict"):  # a DataFrame, of whichever library
        return {str(name): list(inputs[name]) for name in inputs.columns}
    if isinstance(inputs, Sequence) and all(isinstance(row, Mapping) for row in inputs):
        for i, row in enumerate(inputs):
            for name in names:
                if name not in row:
                    raise UserError(f"row {i} (counting from 0) has no column {name!r}; it has {', '.join(row)}")
        return {name: [row[name] for row in inputs] for name in names}
    if len(names) != 1:
        raise UserError(f"the model reads the columns {', '.join(names)}; give a dict of them, or a list of rows")
    return {names[0]: inputs}


def _names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _text_table(rows: Sequence[Mapping[str, Any]]) -> str:
    names = _names(rows)
    cells = [names, *([_shown(row.get(name)) for name in names] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(names))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
    )
