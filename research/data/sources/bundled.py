"""The real datasets that come with scikit-learn: no network, no download."""

from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np

from research.data.cache import ArtifactCache
from research.data.columns import KEY
from research.data.examples import Columns

PARTS = ("train", "validation", "test")


def _load(loader: str, *, stratify: bool, shape: tuple[int, ...] = ()) -> dict[str, Columns]:
    """Splits 60/20/20 into train, validation and test; the split never changes (random state 0).

    An example's key is its index in scikit-learn's arrays.

    The columns are cached: importing scikit-learn takes longer than a small model's whole training.
    """

    def make() -> dict[str, np.ndarray]:
        columns = _read(loader, stratify=stratify, shape=shape)
        return {f"{part}.{name}": column for part in PARTS for name, column in columns[part].items()}

    kept = ArtifactCache(source=f"scikit-learn {version('scikit-learn')}").arrays("bundled", make, key=(2, loader))
    return {part: {name: np.array(kept[f"{part}.{name}"]) for name in ("features", "label", KEY)} for part in PARTS}


def _read(loader: str, *, stratify: bool, shape: tuple[int, ...]) -> dict[str, Columns]:
    import sklearn.datasets
    from sklearn.model_selection import train_test_split

    features, labels = getattr(sklearn.datasets, loader)(return_X_y=True)
    train, rest = train_test_split(
        np.arange(len(labels)), train_size=0.6, random_state=0, stratify=labels if stratify else None
    )
    validation, test = train_test_split(
        rest, train_size=0.5, random_state=0, stratify=labels[rest] if stratify else None
    )
    features = features.reshape(-1, *shape) if shape else features
    return {
        name: {"features": features[indices], "label": labels[indices], KEY: indices}
        for name, indices in zip(PARTS, (train, validation, test), strict=True)
    }


def diabetes() -> dict[str, Columns]:
    """442 patients, 10 features -> a measure of disease progression (25 to 346)."""
    return _load("load_diabetes", stratify=False)


def breast_cancer() -> dict[str, Columns]:
    """569 tumours, 30 features -> malignant (0) or benign (1)."""
    return _load("load_breast_cancer", stratify=True)


def digits() -> dict[str, Columns]:
    """1,797 handwritten digits as 8×8×1 images with values 0 to 16 -> the digit."""
    return _load("load_digits", stratify=True, shape=(8, 8, 1))


def iris() -> dict[str, Columns]:
    """150 irises, 4 features -> the species (0, 1, 2)."""
    return _load("load_iris", stratify=True)


def feature_names(name: str) -> tuple[str, ...]:
    """The names of a bundled dataset's features, scikit-learn's; empty if they have none."""
    return FEATURE_NAMES.get(name, ())


_NUCLEUS = (
    "radius", "texture", "perimeter", "area", "smoothness", "compactness", "concavity", "concave points", "symmetry",
    "fractal dimension",
)  # fmt: skip

# Written out, as importing scikit-learn takes longer than opening a run.
FEATURE_NAMES = {
    "breast_cancer": tuple(form % each for form in ("mean %s", "%s error", "worst %s") for each in _NUCLEUS),
    "diabetes": ("age", "sex", "bmi", "bp", "s1", "s2", "s3", "s4", "s5", "s6"),
    "digits": tuple(f"pixel_{row}_{column}" for row in range(8) for column in range(8)),
    "iris": ("sepal length (cm)", "sepal width (cm)", "petal length (cm)", "petal width (cm)"),
}

# The names of the classes of datasets that have names, not only numbers; scikit-learn's `target_names`.
CLASS_NAMES = {"breast_cancer": ("malignant", "benign"), "iris": ("setosa", "versicolor", "virginica")}


BUNDLED: dict[str, Callable[[], dict[str, Any]]] = {
    "breast_cancer": breast_cancer,
    "diabetes": diabetes,
    "digits": digits,
    "iris": iris,
}
