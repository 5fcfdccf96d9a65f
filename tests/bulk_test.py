"""Predictions of whole files: equal to the predictor's, resumed after any interruption, and bad rows named."""

import json
import shutil
from typing import Any

import numpy as np
import pytest
from PIL import Image

from research import api, predict
from research.base.errors import UserError
from research.data.files import tables
from research.inference import bulk, prediction_file
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
    prediction_file.write_predictions(predictor, source, tmp_path / "whole", **options)
    pieces = bulk.predict_rows
    for stop in (0, 1, 3, 5):

        def interrupted(*arguments, stop=stop, **keywords):
            for i, piece in enumerate(pieces(*arguments, **keywords)):
                if i == stop:
                    raise KeyboardInterrupt
                yield piece

        output = tmp_path / f"out{stop}"
        with monkeypatch.context() as patch:
            patch.setattr(prediction_file, "predict_rows", interrupted)
            with pytest.raises(KeyboardInterrupt):
                prediction_file.write_predictions(predictor, source, output, **options)
        part = output.with_name(output.name + ".part")
        if part.exists():  # nothing is created before the first piece
            with part.open("a") as file:
                file.write('{"row": 9')
        starts = []

        def counted(*arguments, starts=starts, **keywords):
            starts.append(keywords["start"])
            return pieces(*arguments, **keywords)

        with monkeypatch.context() as patch:
            patch.setattr(prediction_file, "predict_rows", counted)
            assert prediction_file.write_predictions(predictor, source, output, **options) == 21
        assert starts == [4 * stop]
        assert output.read_text() == (tmp_path / "whole").read_text()


def _left(folder):
    return sorted(path.name for path in folder.glob("out*"))


@pytest.mark.parametrize(
    ("content", "key"),
    [
        ('{"sentence": "a"}\n{"sentence": 3}', r"row 1 \(counting from 0\) of"),
        ('{"sentence": "a"}\n{"text": "b"}', r"row 1 \(counting from 0\) of"),
        ('{"sentence": "a"}\n{"sentence": "b', r"line 2, column 14 of"),
    ],
)
def test_a_row_that_can_not_be_read_is_named_and_those_before_it_are_kept(content, key, run, tmp_path, capsys):
    path, output = tmp_path / "in.jsonl", tmp_path / "out"
    path.write_text(content)
    arguments = [f"--workdir={run}", f"--input={path}", f"--output={output}"]
    with pytest.raises(UserError, match=f"{key}.*; the 1 rows before it are in {output}.part$") as error:
        predict.main(arguments)
    assert "\n" not in str(error.value)
    assert [line["row"] for line in _lines(tmp_path / "out.part")] == [0]
    path.write_text('{"sentence": "c"}\n{"sentence": "b"}')  # all of it is predicted again
    assert predict.main(arguments) == 0
    assert f"starting over: {output}.part" in capsys.readouterr().err
    assert _left(tmp_path) == ["out"]
    assert [line["scores"] for line in _lines(output)] == [
        record["scores"] for record in Predictor.open(run).predict({"sentence": ["c", "b"]})
    ]


def test_a_refused_first_row_leaves_nothing(run, tmp_path):
    """So that what its error tells to do can be done at once."""
    path, output = tmp_path / "in.jsonl", tmp_path / "out" / "a.jsonl"
    path.write_text('{"review": "a"}\n')
    arguments = [f"--workdir={run}", f"--input={path}", f"--output={output}"]
    with pytest.raises(UserError, match=r"row 0 \(counting.*'sentence', which the model reads, but review;.*COLUMN$"):
        predict.main(arguments)
    with pytest.raises(UserError, match=r"no column 'id', but review"):
        predict.main([*arguments, "--column=sentence=review", "--key=id"])
    assert _left(tmp_path) == []
    assert predict.main([*arguments, "--column=sentence=review"]) == 0


def test_what_is_left_of_another_call_is_replaced(run, table, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tables, "PIECE_ROWS", 4)
    predictor = Predictor.open(run)
    source = bulk.open_source(str(table), predictor)
    output = tmp_path / "out"
    (tmp_path / "out.part").write_text('{"row": 0}\n' * 8)
    for about in ("", '{"step": 1}', "{"):
        (tmp_path / "out.part").write_text('{"row": 0}\n' * 8)
        if about:
            (tmp_path / "out.part.json").write_text(about)
        assert prediction_file.write_predictions(predictor, source, output, identity={"step": 2}, show=False) == 21
        assert capsys.readouterr().err.startswith(f"starting over: {output}.part was")
        assert [line["row"] for line in _lines(output)] == list(range(21))
        output.unlink()


def test_standard_input_is_never_continued(run):
    """What another call reads there may differ."""
    predictor = Predictor.open(run)
    assert bulk.open_source("-", predictor).state != bulk.open_source("-", predictor).state


def test_an_empty_file_has_no_predictions(run, tmp_path):
    (tmp_path / "in.jsonl").touch()
    assert predict.main([f"--workdir={run}", f"--input={tmp_path}/in.jsonl", f"--output={tmp_path}/out"]) == 0
    assert (tmp_path / "out").read_text() == ""
    assert _left(tmp_path) == ["out"]


@pytest.fixture(scope="module")
def table_run(tmp_path_factory):
    """Trained on two numbers and a category."""
    folder = tmp_path_factory.mktemp("table")
    rows = [f"{i},{i % 7},{('Lyon', 'Nice')[i % 2]},{'ab'[i % 2]}" for i in range(60)]
    (folder / "in.csv").write_text("\n".join(["age,income,city,label", *rows]) + "\n")
    overrides: dict[str, Any] = {"data.train": str(folder / "in.csv"), "train.steps": 1}
    return api.fit("tabular_files", workdir=folder / "run", show=False, **overrides).workdir


def test_categories_that_training_lacks_are_a_warning(table_run, tmp_path, capsys):
    path = tmp_path / "in.csv"
    path.write_text("age,income,city\n1,2,Lyon\n3,4,Berlin\n5,6,Rom\n")
    assert predict.main([f"--workdir={table_run}", f"--input={path}"]) == 0
    (warning,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning:")]
    assert "row 1 (counting from 0): city 'Berlin'" in warning
    assert "2 such rows" in warning
    path.write_text("age,income,city\n1,2,Lyon\n")
    assert predict.main([f"--workdir={table_run}", f"--input={path}"]) == 0
    assert "warning" not in capsys.readouterr().err


def test_a_missing_value_has_the_way_out_of_prediction(table_run, tmp_path):
    for row, name in (("1,,Lyon", "income"), ("1,2,", "city")):
        (tmp_path / "in.csv").write_text(f"age,income,city\n{row}\n")
        with pytest.raises(
            UserError, match=rf"row 0 .*column '{name}' has no value; give it or remove the row;.*train"
        ):
            predict.main([f"--workdir={table_run}", f"--input={tmp_path / 'in.csv'}"])


def test_a_folder_is_refused_with_the_columns_to_give(table_run, tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"this run reads a table with the columns age, income, city$"):
        bulk.open_source(str(tmp_path), Predictor.open(table_run))


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


@pytest.mark.extended
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
    with pytest.raises(UserError, match=r"row 1 \(counting from 0\) of .*, b/2.png: the image can't be decoded"):
        list(bulk.predict_rows(predictor, source))
    shutil.rmtree(folder / "a")
    shutil.rmtree(folder / "b")
    with pytest.raises(UserError, match="no images"):
        bulk.open_source(str(folder), predictor)
