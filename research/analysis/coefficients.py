"""Coefficients of a linear model in the units of the data, i.e. with its standardization folded in."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from research.analysis.canvas import class_name
from research.base.errors import UserError
from research.core.tasks import Classification, Regression
from research.data import load as data
from research.devices.platform import x64
from research.runs.rundir import RunDir
from research.training.trained_run import TrainedRun

# The largest standard error of a training example's logit that is meaningful; regular problems have less than ten.
LARGEST_ERROR = 100.0

# For more parameters, the Hessian would take minutes to invert.
MOST_PARAMETERS = 2000

# The models that have coefficients.
LINEAR = ("linear", "logistic", "sparse_logistic")


@dataclasses.dataclass(frozen=True)
class Coefficients:
    """Coefficients of D features in C columns: one for regression or two classes (the second), otherwise one per class.

    Standard errors, and what follows from them, are for unpenalized models: s² (XᵀX)⁻¹ with Student's t for least
    squares, the inverse Hessian of the log-likelihood with the normal distribution for logistic regression (Wald;
    Hastie et al. 2009, sections 3.2 and 4.4). They are None if a penalty or class weights would make them wrong, if the
    features are sparse or depend on each other, if there are over 2,000 parameters, or if these are not at the optimum.
    """

    names: tuple[str, ...]  # [D]
    columns: tuple[str, ...]  # [C], the class of each column; an empty name for regression
    values: np.ndarray  # [D, C], for the features in the data; for texts, their tf-idf
    intercept: np.ndarray  # [C]
    # For the features as the model reads them: data.transform `standardize` gives them standard deviation 1.
    standardized: np.ndarray  # [D, C]
    standardized_intercept: np.ndarray  # [C]
    scale: np.ndarray  # [D], values = scale · standardized
    errors: np.ndarray | None  # [D, C], standard errors of `values`
    intercept_errors: np.ndarray | None  # [C]
    distribution: Any  # of coefficient / standard error if the coefficient is 0: one of scipy.stats, or None

    @property
    def intervals(self) -> tuple[np.ndarray, np.ndarray] | None:
        """The ends of the 95 % intervals of `values`: low and high, [D, C] each."""
        return None if self.errors is None else _interval(self.values, self.errors, self.distribution)

    def label(self, index: int) -> str:
        """The label of the coefficient at `index` of the raveled [D, C]; the intercepts follow after these."""
        feature, column = divmod(index, self.values.shape[1])
        return (*self.names, "intercept")[feature] + (f", {self.columns[column]}" if len(self.columns) > 1 else "")


def coefficients(workdir: str | Path, which: str = "last") -> Coefficients:
    """The coefficients of the `last` or `best` checkpoint of a run; for several seeds, of the first.

    They refer to the data that the run trained on: for a bundled dataset the split `train` of
    `research.data.sources.bundled`, or the `data.train_fraction` of it.

    Raises UserError if the run's model is not linear.
    """
    run = RunDir.open(workdir)
    trained = TrainedRun(run, which)
    name = trained.config.model.name
    if name not in LINEAR:
        raise UserError(f"model {name!r} has no coefficients; models with coefficients: {', '.join(LINEAR)}")
    with x64(trained.config.dtype):
        params = trained.model.single.variables["params"]
        linear = params.get("linear", params)
        kernel, bias = (np.asarray(linear[key], np.float64) for key in ("kernel", "bias"))
    mean, scale = _affine(trained, len(kernel))
    # (x − mean) · scale · w + b
    values = scale[:, None] * kernel
    intercept = bias - mean @ values
    errors, distribution = _errors(trained, kernel, bias, (mean, scale))
    return Coefficients(
        names=_names(trained, len(kernel)),
        columns=_columns(trained, len(bias)),
        values=values,
        intercept=intercept,
        standardized=kernel,
        standardized_intercept=bias,
        scale=scale,
        errors=None if errors is None else errors[:-1],
        intercept_errors=None if errors is None else errors[-1],
        distribution=distribution,
    )


def _interval(values: np.ndarray, errors: np.ndarray, distribution: Any) -> tuple[np.ndarray, np.ndarray]:
    reach = distribution.ppf(0.975) * errors
    return values - reach, values + reach


def _affine(trained: TrainedRun, features: int) -> tuple[np.ndarray, np.ndarray]:
    """The mean and scale [D] with which the transform computed features: (x − mean) · scale."""
    transform = trained.config.data.transform
    if transform.name == "pixels":
        mean, std = (np.resize(np.asarray(transform[key], np.float64), features) for key in ("mean", "std"))
        return mean, 1 / std
    return trained.affine or (np.zeros(features), np.ones(features))


def _names(trained: TrainedRun, features: int) -> tuple[str, ...]:
    kind = "bucket" if trained.config.data.transform.name == "bag_of_words" else "feature"
    return trained.feature_names(features) or tuple(f"{kind} {i}" for i in range(features))


def _columns(trained: TrainedRun, count: int) -> tuple[str, ...]:
    if isinstance(trained.model.task, Regression):
        return ("",)
    num_classes = trained.config.model.num_classes
    names = trained.label_names(num_classes)
    return tuple(class_name(c, names) for c in range(num_classes))[-count:]


def _errors(
    trained: TrainedRun, kernel: np.ndarray, bias: np.ndarray, affine: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray | None, Any]:
    """Standard errors [D + 1, C] of the coefficients in the data's units, intercepts last, and the distribution of
    coefficient / standard error under the null hypothesis.

    `affine`: the mean and scale [D] that convert the data's features to those that the model reads.
    """
    found = _design(trained, kernel.shape[1])
    if found is None:
        return None, None
    design, labels = found
    likelihood = _least_squares if isinstance(trained.model.task, Regression) else _logistic
    curved = likelihood(design, labels, design @ np.vstack([kernel, bias]))
    if curved is None:
        return None, None
    score, covariance, distribution = curved
    # A Newton step from here: if it is more than a hundredth of an error, this is not the optimum.
    step = (covariance @ score.ravel()).reshape(-1, kernel.shape[1])
    standard = np.sqrt(np.maximum(np.diag(covariance), 0)).reshape(step.shape)
    if (np.abs(step) > 0.01 * standard + 1e-9).any():
        return None, None
    columns, (mean, scale) = kernel.shape[1], affine
    # As a linear map of the parameters [w; b].
    fold = np.block([[np.diag(scale), np.zeros((len(scale), 1))], [-(mean * scale)[None, :], np.ones((1, 1))]])
    whole = np.kron(fold, np.eye(columns))
    variances = np.einsum("ij,jk,ik->i", whole, covariance, whole, optimize=True)
    return np.sqrt(np.maximum(variances, 0)).reshape(-1, columns), distribution


def _design(trained: TrainedRun, columns: int) -> tuple[np.ndarray, np.ndarray] | None:
    """The training data: features and a column of ones [N, D + 1], and labels [N]; None without standard errors.

    There are none if a penalty, class weights or label smoothing bias the fit, if the dataset is unavailable, if the
    features are sparse or linearly dependent, or if there are too many parameters.
    """
    config, task = trained.config, trained.model.task
    penalized = any(config.optimizer[key] for key in ("weight_decay", "C", "alpha"))
    if penalized or not isinstance(task, (Classification, Regression)):
        return None
    if isinstance(task, Classification) and (config.task.class_weight is not None or task.label_smoothing):
        return None
    if data.missing(config.data):
        return None
    stream = trained.streams()("train")
    if "features" not in stream.examples.batch(stream.members[:1, None]):
        return None
    batch = stream.examples.batch(stream.members[:, None])
    design = np.column_stack([np.asarray(batch["features"], np.float64), np.ones(len(stream.members))])
    if design.shape[1] * columns > MOST_PARAMETERS or np.linalg.matrix_rank(design) < design.shape[1]:
        return None
    return design, batch["labels"]


# The gradient of the log-likelihood [D + 1, C], the covariance of the parameters [(D + 1) C, (D + 1) C], and the
# distribution of a parameter over its standard error.
_Curvature = tuple[np.ndarray, np.ndarray, Any]


def _least_squares(design: np.ndarray, labels: np.ndarray, outputs: np.ndarray) -> _Curvature | None:
    """For least squares with outputs [N, 1]; None without degrees of freedom."""
    from scipy import stats

    freedom = len(design) - design.shape[1]
    if freedom < 1:
        return None
    residuals = labels[:, None] - outputs
    variance = np.sum(residuals**2) / freedom
    return design.T @ residuals / variance, variance * np.linalg.inv(design.T @ design), stats.t(freedom)


def _logistic(design: np.ndarray, labels: np.ndarray, outputs: np.ndarray) -> _Curvature | None:
    """For logistic regression with outputs [N, C], one column for two classes; None if a class is separable."""
    from scipy import stats

    count = outputs.shape[1]
    logits = np.column_stack([np.zeros(len(outputs)), outputs]) if count == 1 else outputs
    probabilities = np.exp(logits - np.logaddexp.reduce(logits, axis=1)[:, None])[:, -count:]
    classes = np.arange(count)
    own = labels[:, None] == np.arange(logits.shape[1])[None, -count:]
    # For several columns only the differences are determined: the pseudo-inverse is for those that sum to 0.
    second = -probabilities[:, :, None] * probabilities[:, None, :]
    second[:, classes, classes] += probabilities
    hessian = np.einsum("ni,ncd,nj->icjd", design, second, design, optimize=True)
    size = design.shape[1] * count
    covariance = np.linalg.pinv(hessian.reshape(size, size), hermitian=True)
    # If a class is separable, the likelihood has no maximum, and the logits of some example are unbounded.
    by_class = covariance.reshape(design.shape[1], count, design.shape[1], count)
    variances = np.einsum("ni,icjc,nj->nc", design, by_class, design, optimize=True)
    if variances.max() > LARGEST_ERROR**2:
        return None
    return design.T @ (own - probabilities), covariance, stats.norm()


def table(found: Coefficients, most: int) -> str:
    """The coefficients and intercepts as a Markdown table, in the data's order.

    If there are more than `most`, only those that are largest when standardized. p is the p-value of the hypothesis
    that a coefficient is 0.
    """
    values = np.vstack([found.values, found.intercept])
    columns = {"coefficient": values}
    if found.errors is not None and found.intercept_errors is not None:
        errors = np.vstack([found.errors, found.intercept_errors])
        low, high = _interval(values, errors, found.distribution)
        p = 2 * found.distribution.sf(np.abs(values) / errors)
        columns |= {"standard error": errors, "low": low, "high": high, "p": p}
    columns["standardized"] = np.vstack([found.standardized, found.standardized_intercept])
    largest = np.argsort(-np.abs(found.standardized.ravel()), kind="stable")[:most]
    of = found.columns[0] if len(found.columns) == 1 else ""
    lines = [f"| {of} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for index in [*np.sort(largest), *range(found.values.size, values.size)]:
        numbers = " | ".join(f"{column.ravel()[index]:.4g}" for column in columns.values())
        lines.append(f"| {found.label(int(index))} | {numbers} |")
    return "\n".join(lines) + "\n"
