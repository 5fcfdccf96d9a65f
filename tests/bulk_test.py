"""Predictions of whole files: equal to the predictor's, resumed after any interruption, and bad rows named."""

import json
import shutil
from typing import Any

import numpy as np
import pytest
from PIL import Image

from research import predict
from research.base.errors import UserError
from research.data.files import tables
from research.inference import bulk
from research.inference.predictor import Predictor
from research.training.loop import train_and_evaluate
from tests import tiny


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        tiny.few_sentences(patch)
        train_and_evaluate(tiny.bert(steps=1), folder, show=False)
    return folder


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "in.csv"
    words = ["fine", "bad", "long", "dull", "good"]
    rows = [f"{i},a {words[i % 5]} film {'and so on ' * (5 * (i % 3))}" for i in range(21)]
    path.write_text("\n".join(["id,sentence", *rows]))
    return path


def _lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_file_is_predicted_as_the_predictor_does(run, table, tmp_path):
    output = tmp_path / "out.jsonl"
    arguments = [f"--workdir={run}", f"--input={table}", f"--output={output}", "--key=id"]
    assert predict.main(arguments) == 0
    rows = list(tables.read_rows(table))
    expected = Predictor.open(run).predict({"sentence": [row["sentence"] for row in rows]})
    found = _lines(output)
    assert [line["row"] for line in found] == list(range(21))
    assert [line["id"] for line in found] == [row["id"] for row in rows]
    for line, record in zip(found, expected, strict=True):
        assert {k: line[k] for k in ("prediction", "scores", "label_name")} == {
            k: record[k] for k in ("prediction", "scores", "label_name")
        }
    assert any(line["truncated"] for line in found) != all(line["truncated"] for line in found)
    assert not list(tmp_path.glob("*.part*"))
    with pytest.raises(UserError, match="exists"):
        predict.main(arguments)


def test_an_interrupted_call_is_continued(run, table, tmp_path, monkeypatch):
    """Stopped after each possible piece, and in the middle of a line: no line is lost, doubled or different."""
    monkeypatch.setattr(tables, "PIECE_ROWS", 4)
    predictor = Predictor.open(run)
    source = bulk.open_source(str(table), predictor)
    options: dict[str, Any] = {"identity": {"step": 1}, "show": False}
    bulk.write_predictions(predictor, source, tmp_path / "whole", **options)
    pieces = bulk.predict_rows
    for stop in (0, 1, 3, 5):

        def interrupted(*arguments, stop=stop, **keywords):
            for i, piece in enumerate(pieces(*arguments, **keywords)):
                if i == stop:
                    raise KeyboardInterrupt
                yield piece

        output = tmp_path / f"out{stop}"
        with monkeypatch.context() as patch:
            patch.setattr(bulk, "predict_rows", interrupted)
            with pytest.raises(KeyboardInterrupt):
                bulk.write_predictions(predictor, source, output, **options)
        part = output.with_name(output.name + ".part")
        with part.open("a") as file:
            file.write('{"row": 9')
        with pytest.raises(UserError, match="another model"):
            bulk.write_predictions(predictor, source, output, identity={"step": 2}, show=False)
        starts = []

        def counted(*arguments, starts=starts, **keywords):
            starts.append(keywords["start"])
            return pieces(*arguments, **keywords)

        with monkeypatch.context() as patch:
            patch.setattr(bulk, "predict_rows", counted)
            assert bulk.write_predictions(predictor, source, output, **options) == 21
        assert starts == [4 * stop]
        assert output.read_text() == (tmp_path / "whole").read_text()


@pytest.mark.parametrize(
    ("content", "key"),
    [
        ('{"sentence": "a"}\n{"sentence": 3}', "row 2"),
        ('{"sentence": "a"}\n{"text": "b"}', "row 2"),
        ('{"a": "b"}', "row 1 of .*'sentence', which the model reads, but a;"),
    ],
)
def test_a_row_that_can_not_be_read_is_named(content, key, run, tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text(content)
    predictor = Predictor.open(run)
    with pytest.raises(UserError, match=key) as error:
        bulk.write_predictions(predictor, bulk.open_source(str(path), predictor), None, identity={}, show=False)
    assert "\n" not in str(error.value)


def test_columns_of_other_names(run, tmp_path):
    """A text file's lines are the only input; other columns are named, or are an error that says how."""
    predictor = Predictor.open(run)
    (tmp_path / "in.txt").write_text("a fine film\n")
    (tmp_path / "in.csv").write_text("review\na fine film\n")
    (expected,) = predictor.predict({"sentence": ["a fine film"]})
    for source in (
        bulk.open_source(str(tmp_path / "in.txt"), predictor),
        bulk.open_source(str(tmp_path / "in.csv"), predictor, columns={"sentence": "review"}),
    ):
        ((record,),) = bulk.predict_rows(predictor, source)
        assert record["scores"] == expected["scores"]
    with pytest.raises(UserError, match="'sentense' is not an input"):
        bulk.open_source(str(tmp_path / "in.csv"), predictor, columns={"sentense": "review"})


def test_a_folder_of_images(tmp_path):
    """Sorted by path; a corrupt image among good ones is named."""
    run, folder = tmp_path / "run", tmp_path / "images"
    train_and_evaluate(tiny.resnet(steps=1), run, show=False)
    predictor = Predictor.open(run)
    rng = np.random.default_rng(0)
    for name in ("b/2.png", "a/1.png", ".hidden/3.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(folder / name)
    (folder / "notes.txt").write_text("not an image")
    (folder / "loop").symlink_to(folder)
    source = bulk.open_source(str(folder), predictor)
    (records,) = bulk.predict_rows(predictor, source)
    assert [record["file"] for record in records] == ["a/1.png", "b/2.png"]
    assert "tokens" not in records[0]
    (folder / "b/2.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"row 2 of .*b/2.png"):
        list(bulk.predict_rows(predictor, source))
    shutil.rmtree(folder / "a")
    shutil.rmtree(folder / "b")
    with pytest.raises(UserError, match="no images"):
        bulk.open_source(str(folder), predictor)
