"""Certificates: statistics against closed forms, and files that changed."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from research.base.errors import UserError
from research.compress import certify
from research.compress.methods import Step
from research.compress.run import Compression
from research.core import quantization
from research.inference.predictor import Predictor
from research.runs.certificate import FILE, check_drop, read_certificate
from research.runs.rundir import RunDir
from research.serve import repository as repository_module
from research.serve.repository import Certified, Repository, Source, sources
from research.training.trained_run import TrainedRun
from tests.serve.conftest import LIMITS


@pytest.fixture(scope="session")
def certified(workdir, tmp_path_factory):
    """A run in int8, and its certificate."""
    folder = tmp_path_factory.mktemp("certified") / "int8"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantization, "_SMALLEST", 256)
        source = TrainedRun(RunDir.open(workdir), "last")
        compression = Compression(source, "last", say=lambda line: None)
        return folder, compression.run([Step.of("int8")], folder, None, seconds=0.01)


@pytest.fixture
def made(certified, tmp_path):
    """A copy of it."""
    folder, certificate = certified
    shutil.copytree(folder, tmp_path / "int8")
    return tmp_path / "int8", certificate


@pytest.mark.extended
def test_result_predicts_as_its_certificate_says(compression, made, workdir):
    folder, certificate = made
    assert read_certificate(RunDir.open(folder)) == certificate
    dataset = compression.source.dataset()
    labels = dataset.split("validation").labels
    records = [Predictor.open(path).predict(dataset.columns["validation"]) for path in (workdir, folder)]
    old, new = (np.array([record["prediction"] for record in each]) for each in records)
    assert certificate["metric"]["original"] == pytest.approx(np.mean(old == labels))
    assert certificate["metric"]["compressed"] == pytest.approx(np.mean(new == labels))
    assert certificate["agreement"] == pytest.approx(np.mean(old == new))
    assert [flip["index"] for flip in certificate["flipped"]] == np.flatnonzero(old != new).tolist()
    assert certificate["split"] == "validation"
    assert {(timing["rows"], timing["length"]) for timing in certificate["times"]["compressed"]} == {
        (1, 32), (16, 32), (8, 32),
    }  # fmt: skip
    assert RunDir.open(folder).summary()["metrics"]["validation"]["accuracy"] == pytest.approx(np.mean(new == labels))
    assert set(RunDir.open(folder).samples()["predictions"]) == {str(certificate["of"]["step"])}
    assert TrainedRun(RunDir.open(folder), "best").step == certificate["of"]["step"]


@pytest.mark.extended
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("assets/tokenizer.json", "assets/tokenizer.json was changed since"),
        ("config.json", "config.json was changed since"),
        ("checkpoints/ranking.json", "checkpoints/ranking.json was changed since"),
    ],
)
def test_changed_file_is_named(made, name, message):
    folder, _ = made
    path = folder / name
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(UserError, match=message):
        read_certificate(RunDir.open(folder))
    path.unlink()
    if name != "config.json":
        with pytest.raises(UserError, match=f"{name} is missing since"):
            read_certificate(RunDir.open(folder))


@pytest.mark.extended
def test_certificates_that_are_not_the_runs_are_refused(made, workdir, tmp_path):
    folder, certificate = made
    other = tmp_path / "other"
    shutil.copytree(workdir, other)
    shutil.copy(folder / FILE, other / FILE)
    with pytest.raises(UserError, match=r"other/\S+ (was changed|is missing|is new) since"):
        read_certificate(RunDir.open(other))
    (folder / FILE).write_text(json.dumps({**certificate, "agreement": 0.123}))
    with pytest.raises(UserError, match="was changed since it was written"):
        read_certificate(RunDir.open(folder))
    (folder / FILE).unlink()
    with pytest.raises(UserError, match=r"has no certificate\.json"):
        read_certificate(RunDir.open(folder))


@pytest.mark.extended
def test_service_refuses_what_is_not_certified(made, workdir):
    folder, certificate = made
    assert [source.name for source in sources([str(workdir)], [str(folder)])] == ["run", "int8"]
    drop = certificate["metric"]["drop"]
    check_drop(RunDir.open(folder), drop)
    with pytest.raises(UserError, match=r"accuracy fell by .* points when it was compressed; at most"):
        sources([str(folder)], certified=Certified(drop - 0.01))
    with pytest.raises(UserError, match=r"run has no certificate\.json.*--uncertified serves it"):
        sources([], [str(workdir)])
    (folder / FILE).unlink()
    with pytest.raises(UserError, match=r"has no certificate\.json"):  # the run says that it was compressed
        sources([str(folder)])
    assert sources([str(folder)], certified=Certified(None))[0].name == "int8"


@pytest.fixture
def loading(made, monkeypatch):
    """A repository of the run, in which every check finds another version; its source, and the models it installed."""
    (source,) = sources([str(made[0])])
    versions = iter(range(100))
    monkeypatch.setattr(Source, "version", lambda self: str(next(versions)))
    installed = []
    limits = dataclasses.replace(LIMITS, batch_rows=1, batch_items=4)
    return Repository([source], limits, installed.append, devices=jax.devices()[:1], poll_seconds=0.01), installed


@pytest.mark.extended
def test_a_changed_run_is_not_loaded_again(loading, made, caplog):
    repository, installed = loading
    path = made[0] / "assets" / "tokenizer.json"
    original = path.read_bytes()

    def check(contents):
        path.write_bytes(contents)
        repository._load_if_new(repository._sources[0])
        return len(installed), repository.states["int8"]

    assert check(original) == (1, "ready")
    assert check(original + b" ") == (1, "ready")  # the model that was checked goes on answering
    assert "tokenizer.json was changed since certificate.json was written" in caplog.text
    assert check(original) == (2, "ready")
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


@pytest.mark.extended
def test_a_certificate_of_other_code_is_a_warning(loading, caplog, monkeypatch):
    monkeypatch.setattr(repository_module, "code_hash", lambda: "other")
    repository, installed = loading
    repository._load_if_new(repository._sources[0])
    assert len(installed) == 1
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warning.startswith("model int8: its certificate is of other code than serves it")


@pytest.mark.extended
def test_nothing_is_overwritten(compression, workdir, tmp_path):
    (tmp_path / "note").write_text("mine")
    with pytest.raises(UserError, match="exists already; nothing was changed"):
        compression.run([Step.of("int8")], tmp_path, None)
    assert (tmp_path / "note").read_text() == "mine"


def test_interval_of_a_change():
    """Against the normal approximation of a mean of paired differences."""
    rng = np.random.default_rng(1)
    labels, size = rng.integers(2, size=800), 800
    old = np.where(rng.random(size) < 0.9, labels, 1 - labels)
    new = np.where(rng.random(size) < 0.03, 1 - old, old)
    low, high = certify.interval_of_change(
        "accuracy", {"label": labels, "prediction": old}, {"label": labels, "prediction": new}
    )
    changes = (new == labels) * 1.0 - (old == labels)
    error = changes.std() / size**0.5
    # 2,000 draws: an end of the interval has a standard error of about 0.06 standard errors of the mean.
    assert low == pytest.approx(changes.mean() - 1.96 * error, abs=0.25 * error)
    assert high == pytest.approx(changes.mean() + 1.96 * error, abs=0.25 * error)
    assert certify.interval_of_change("unknown", {"label": labels}, {"label": labels}) is None


@pytest.mark.extended
@pytest.mark.parametrize("metric", ["f1", "matthews"])
def test_intervals_of_metrics_of_splits_hold_the_change(metric):
    rng = np.random.default_rng(2)
    labels = rng.integers(2, size=300)
    old, new = (np.where(rng.random(300) < right, labels, 1 - labels) for right in (0.9, 0.8))
    low, high = certify.interval_of_change(
        metric, {"label": labels, "prediction": old}, {"label": labels, "prediction": new}
    )
    function = certify._OF_SPLITS[metric]
    change = function({"label": labels, "prediction": new}) - function({"label": labels, "prediction": old})
    assert low < change < high < 0.02


def test_calibration():
    rng = np.random.default_rng(0)
    confidence = np.full(10_000, 0.8)
    labels = (rng.random(10_000) < 0.7).astype(int)
    probabilities = np.stack([1 - confidence, confidence], axis=1)
    assert certify.calibration_error(probabilities, labels) == pytest.approx(0.8 - labels.mean())
    # The best temperature makes the confidence the accuracy: log(p / (1 − p)) / T = log(a / (1 − a)).
    accuracy = labels.mean()
    expected = np.log(0.8 / 0.2) / np.log(accuracy / (1 - accuracy))
    assert certify.temperature(probabilities, labels) == pytest.approx(expected, rel=1e-3)
