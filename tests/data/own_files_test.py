"""Own files: what is inferred of their columns, how they are cut into splits, and what is refused."""

import json
import os
import re
from typing import Any

import numpy as np
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pyarrow import parquet
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from research import api, train
from research.base.errors import UserError
from research.config import load as load_config
from research.configs import bert_mlm, image_files, tabular_files, text_files
from research.data import load as data
from research.data.cache import NO_CACHE
from research.data.columns import KEY, keys
from research.data.files import tables
from research.data.files.columns import Texts, read_columns
from research.data.files.cutting import cut
from research.data.files.kinds import infer, summarize
from research.data.table import as_category
from research.training.own_files import fill_in


@pytest.fixture
def write(tmp_path):
    def write(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(text, list):
            text = "\n".join(map(json.dumps, text)) + "\n"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def table(rows=60):
    """A CSV of numbers, a category and a label that depends on them."""
    lines = ["id,size,colour,note,kind"]
    for i in range(rows):
        colour = ("red", "green", "blue")[i % 3]
        lines.append(f"{i},{i * 0.5},{colour},a note of five words {i},{'big' if i >= rows // 2 else 'small'}")
    return "\n".join(lines) + "\n"


def tabular(path, preset="embedded", **section):
    config = tabular_files.get_config(preset)
    config.data.train = str(path)
    config.data.transform.label = section.pop("label", "kind")
    for key, value in section.items():
        config.data[key] = value
    return config


def test_kinds_of_columns(write):
    path = write("a.csv", table())
    found = {name: infer(name, summary, path) for name, summary in summarize(path).items()}
    assert found == {"id": "key", "size": "number", "colour": "category", "note": "text", "kind": "category"}


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["1", "2", "", "4"] * 5, "number"),
        (["1.5e3", "-2", "+.5", " 7 "] * 5, "number"),
        (["1", "NA", "3", "nan"] * 5, "number"),
        (["yes", "no"] * 10, "category"),
        ([f"code{i}" for i in range(20)], "key"),
        ([f"a sentence with number {i}" for i in range(20)], "text"),
        ([f"images/{i}.PNG" for i in range(20)], "image"),
        ([""] * 20, "ignored"),
    ],
)
def test_kind_of_values(write, values, kind):
    path = write("a.csv", "x,y\n" + "".join(f'"{value}",1\n' for value in values))
    summary = summarize(path)["x"]
    assert infer("x", summary, path) == kind
    assert summary.rows == len(values)
    if "" in values:
        assert summary.first_missing == values.index("")


def test_same_columns_from_every_format(write, tmp_path):
    rows = [{"x": i / 2, "city": "ab"[i % 2], "label": "yn"[i % 2]} for i in range(40)]
    csv = "x,city,label\n" + "".join(f"{row['x']},{row['city']},{row['label']}\n" for row in rows)
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    paths = [
        write("a.csv", csv),
        write("a.tsv", csv.replace(",", "\t")),
        write("bom.csv", b"\xef\xbb\xbf" + csv.encode()),
        write("a.jsonl", rows),
        tmp_path / "a.parquet",
    ]
    found = []
    for path in paths:
        config, _ = fill_in(tabular(path, label="label"), ())
        assert config.data.kinds == ("city=category", "label=category", "x=number")
        train = data.raw(config.data)["train"]
        found.append((np.asarray(train["x"]).tolist(), list(train["city"]), train["label"].tolist()))
    assert all(one == found[0] for one in found)
    assert len(found[0][0]) == 36


def test_features_are_those_of_scikit_learn(write):
    config, _ = fill_in(tabular(write("a.csv", table()), test_fraction=0.2), ())
    columns = data.raw(config.data)
    dataset = data.load(config.data)
    for split in ("train", "validation", "test"):
        examples = dataset.split(split)
        batch = examples.batch(np.arange(len(examples))[:, None])
        size = [np.asarray(columns[name]["size"])[:, None] for name in ("train", split)]
        colour = [np.array(list(columns[name]["colour"]))[:, None] for name in ("train", split)]
        scaled = StandardScaler().fit(size[0]).transform(size[1])
        onehot = OneHotEncoder(sparse_output=False, handle_unknown="ignore").fit(colour[0]).transform(colour[1])
        np.testing.assert_allclose(batch["features"], np.concatenate([scaled, onehot], axis=1), atol=1e-12)
        np.testing.assert_array_equal(batch["labels"], columns[split]["kind"])
    assert dataset.encoder.feature_names == ("size", "colour=blue", "colour=green", "colour=red")


def test_missing_values_are_an_error_or_imputed(write):
    text = table().replace("\n4,2.0,green", "\n4,,green").replace("\n6,3.0,red", "\n6,3.0,")
    config, _ = fill_in(tabular(write("a.csv", text), validation_fraction=0.0, test_fraction=0.1), ())
    with pytest.raises(UserError, match=r"row (4|6) \(counting from 0\) of .*a\.csv: column '(size|colour)'"):
        data.load(config.data).split("train")
    config.data.transform.missing = "impute"
    dataset = data.load(config.data)
    encoder = dataset.encoder
    examples = encoder.encode({"size": [None, 1.0], "colour": ["red", None]}, labels=False)
    features = examples.batch(np.array([[0], [1]]))["features"]
    assert encoder.feature_names == ("size", "colour=blue", "colour=green", "colour=red", "colour=(missing)")
    np.testing.assert_array_equal(features[0], [0, 0, 0, 1, 0])  # the mean
    np.testing.assert_array_equal(features[1, 1:], [0, 0, 0, 1])


def test_a_label_of_numbers_is_a_regression(write):
    rows = "x,y\n" + "".join(f"{i},{1000 + 7.5 * i}\n" for i in range(100))
    config, _ = fill_in(tabular(write("a.csv", rows), label="y"), ())
    assert (config.task.name, config.model.num_classes, config.eval.metric) == ("regression", 1, "loss")
    assert config.model.output_mean == pytest.approx(1371, abs=30)
    assert config.model.output_std > 100
    config, _ = fill_in(tabular(write("a.csv", rows), "linear", label="y"), ())
    assert (config.model.name, config.optimizer.name, config.optimizer.alpha) == ("linear", "closed_form", 1.0)


def test_filling_in_is_idempotent(write):
    once, _ = fill_in(tabular(write("a.csv", table())), ())
    again, _ = fill_in(once, ())
    assert once.to_dict() == again.to_dict()


def test_keys_of_the_user_are_kept(write):
    config = tabular(write("a.csv", table()))
    config.train.epochs, config.train.batch_size = 2.0, 7
    filled, _ = fill_in(config, {"train.epochs", "train.batch_size"})
    assert (filled.train.epochs, filled.train.batch_size) == (2.0, 7)


def test_whole_numbers_are_classes_in_their_order(write):
    path = write("a.csv", "x,label\n" + "".join(f"{i},{(10, 9, 2)[i % 3]}\n" for i in range(30)))
    config, _ = fill_in(tabular(path, label="label"), ())
    assert data.label_names(config.data, "label") == ("2", "9", "10")
    assert config.model.num_classes == 3
    declared, _ = fill_in(tabular(path, label="label", kinds=("label=number",)), ())
    assert declared.task.name == "regression"


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 4), min_size=20, max_size=300),
    st.floats(0.05, 0.4),
    st.floats(0.05, 0.4),
    st.integers(0, 9),
)
def test_stratified_cut(classes, validation, test, seed):
    classes = np.array(classes)
    splits = cut(len(classes), {"validation": validation, "test": test}, seed=seed, classes=classes)
    assert sorted(np.concatenate(list(splits.values())).tolist()) == list(range(len(classes)))
    for name, fraction in (("validation", validation), ("test", test)):
        assert abs(len(splits[name]) - fraction * len(classes)) <= 1
        assert (np.diff(splits[name]) > 0).all()
        for one in range(5):  # each class has its share, up to the rounding of five classes
            assert abs((classes[splits[name]] == one).sum() - fraction * (classes == one).sum()) <= 3


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=60, max_size=300), st.integers(0, 9))
def test_group_cut(groups, seed):
    groups = np.unique(groups, return_inverse=True)[1]
    try:
        splits = cut(len(groups), {"validation": 0.3}, seed=seed, groups=groups)
    except UserError:
        assert np.bincount(groups).max() > 0.3 * len(groups)
        return
    assert not set(groups[splits["validation"]]) & set(groups[splits["train"]])
    assert sum(map(len, splits.values())) == len(groups)


def test_time_cut():
    times = np.array([5, 3, 9, 1, 7, 2, 8, 4, 6, 0])
    splits = cut(10, {"validation": 0.2, "test": 0.3}, seed=0, times=times)
    assert {name: sorted(times[rows].tolist()) for name, rows in splits.items()} == {
        "train": [0, 1, 2, 3, 4],
        "validation": [5, 6],
        "test": [7, 8, 9],
    }


def test_cuts_by_columns(write):
    lines = "".join(f"{i},g{i % 10},2024-01-{28 - i % 28:02},{'ab'[i % 2]}\n" for i in range(100))
    path = write("a.csv", "x,who,day,kind\n" + lines)
    config, _ = fill_in(tabular(path, group_by="who", kinds=("day=ignored",), validation_fraction=0.3), ())
    columns = data.raw(config.data)
    rows = {split: {int(x) % 10 for x in np.asarray(columns[split]["x"])} for split in columns}
    assert not rows["train"] & rows["validation"]
    config, _ = fill_in(tabular(path, time_by="day", kinds=("who=ignored",), validation_fraction=0.25), ())
    columns = data.raw(config.data)
    days = {split: [28 - int(x) % 28 for x in np.asarray(columns[split]["x"])] for split in columns}
    assert max(days["train"]) <= min(days["validation"])


def test_keys_are_those_of_the_file(write):
    config, _ = fill_in(tabular(write("a.csv", table())), ())
    train = data.raw(config.data)["train"]
    sizes = np.asarray(train["size"])
    assert [float(keys(train)(i)) / 2 for i in range(len(sizes))] == sizes.tolist()
    config, _ = fill_in(tabular(write("a.csv", table()), kinds=("id=ignored",)), ())
    train = data.raw(config.data)["train"]
    assert [keys(train)(i) / 2 for i in range(len(sizes))] == sizes.tolist()  # the rows, from 0
    assert KEY in train


def images(folder, names=("circle", "square"), count=6, size=12):
    rng = np.random.default_rng(0)
    for name in names:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            Image.fromarray(rng.integers(0, 255, (size, size, 3), np.uint8)).save(folder / name / f"{i}.png")
    return folder


def of_images(folder):
    config = image_files.get_config("embedded")
    config.data.train = str(folder)
    config.data.validation_fraction = 0.34
    return config


def test_folder_of_images(tmp_path):
    config, _ = fill_in(of_images(images(tmp_path / "all")), ())
    assert config.model.num_classes == 2
    assert (config.data.transform.channels, config.data.transform.size) == (3, 12)
    assert config.train.epochs * round(12 * 0.66) / config.train.batch_size >= 1000  # updates
    np.testing.assert_allclose(config.model.mean, 127, atol=5)
    np.testing.assert_allclose(config.model.std, 73, atol=5)
    dataset = data.load(config.data)
    examples = dataset.split("validation")
    assert examples.batch(np.arange(4)[:, None])["images"].shape == (4, 12, 12, 3)
    assert data.label_names(config.data, "label") == ("circle", "square")
    assert keys(dataset.columns["validation"])(0).startswith("circle/")


def test_images_of_one_size_are_unchanged_without_crops(tmp_path):
    config = of_images(images(tmp_path / "all"))
    config.data.transform.augment.random_resized_crop = None
    config, _ = fill_in(config, ())
    assert (config.data.transform.resize, config.data.transform.size) == (None, None)


def test_images_of_several_sizes_are_resized(tmp_path):
    images(tmp_path / "all")
    images(tmp_path / "all", names=("square",), count=2, size=40)
    config, _ = fill_in(of_images(tmp_path / "all"), ())
    assert (config.data.transform.size, config.data.transform.resize) == (64, 64)
    examples = data.load(config.data).split("train")
    assert examples.batch(np.arange(3)[:, None])["images"].shape == (3, 64, 64, 3)


def test_images_named_by_a_table(tmp_path, write):
    folder = images(tmp_path)
    path = write(
        "a.csv", "file,label\n" + "".join(f"{n}/{i}.png,{n}\n" for n in ("circle", "square") for i in range(6))
    )
    config, _ = fill_in(of_images(path), ())
    assert config.data.kinds == ("file=image", "label=category")
    assert data.load(config.data).split("train").batch(np.array([[0]]))["images"].shape == (1, 12, 12, 3)
    (folder / "square" / "3.png").unlink()
    with pytest.raises(UserError, match=r"square/3\.png"):
        fill_in(of_images(path), ())


def text_config(path):
    config = text_files.get_config("embedded")
    config.data.train = str(path)
    return config


def test_texts(write):
    rows = [{"words": f"this is sentence number {i}", "label": ("no", "yes")[i % 2]} for i in range(40)]
    config, _ = fill_in(text_config(write("a.jsonl", rows)), ())
    assert config.data.transform.inputs == ("words",)
    config.data.transform.vocab_size = 300
    dataset = data.load(config.data)
    assert (len(dataset.split("train")), len(dataset.split("validation"))) == (36, 4)
    assert dataset.columns["train"]["words"][0].startswith("this is sentence number")


def test_lines_of_text_for_pretraining(write):
    config = bert_mlm.get_config("embedded")
    config.data.name, config.data.train = "files", str(write("a.txt", "a line of text\n" * 50))
    config, _ = fill_in(config, ())
    assert (config.task.name, config.data.kinds) == ("masked_lm", ("text=text",))
    config.data.transform.vocab_size = 60
    assert len(data.load(config.data).split("train")) > 1


def test_stray_quotes_are_refused_as_in_prediction(write):
    text = "text\tkind\n" + '"hello world\t1\nfoo\t0\nbar" baz\t1\nlast\t0\n'
    with pytest.raises(UserError, match=r"line 4 of .*a\.tsv"):
        summarize(write("a.tsv", text))


def test_quoted_values_are_read(write):
    path = write("a.csv", 'x,kind\n"1,5 is not ""one"" number","a\nb"\nplain,c\n')
    columns = read_columns(path, {"x": "text", "kind": "category"}, NO_CACHE)
    assert list(columns["x"]) == ['1,5 is not "one" number', "plain"]
    assert columns["kind"].names == ("a\nb", "c")


def test_a_column_that_another_file_lacks_is_an_error(write):
    train, other = write("a.csv", table()), write("b.csv", "id,size,kind\n1,2,big\n")
    config, _ = fill_in(tabular(train, test=str(other)), ())
    with pytest.raises(UserError, match=r"b\.csv has no column 'colour'"):
        data.load(config.data)


def test_classes_and_categories_have_no_spaces_around(write):
    path = write("a.csv", "x,label\n" + "1,neg\n2, neg\n3,pos\n4,pos \n" * 9)
    config, _ = fill_in(tabular(path, label="label"), ())
    assert config.model.num_classes == 2
    assert data.label_names(config.data, "label") == ("neg", "pos")


def test_inputs_may_be_what_splits_them(write):
    path = write("a.csv", "x,who,kind\n" + "".join(f"{i},{i % 10},{'ab'[i % 2]}\n" for i in range(100)))
    config = tabular(path, group_by="who", validation_fraction=0.3)
    config.data.transform.inputs = ("x", "who")
    config, _ = fill_in(config, {"data.transform.inputs"})
    assert config.data.transform.inputs == ("x", "who")


def test_inputs_can_be_set_by_a_flag():
    config = load_config("tabular_files", ["data.transform.inputs=age", "data.kinds=age=number,a b=text"]).config
    assert (config.data.transform.inputs, config.data.kinds) == (("age",), ("age=number", "a b=text"))


def test_typed_values_are_the_same_text_in_training_and_prediction(tmp_path):
    values: dict[str, list[Any]] = {"flag": [True, False, None], "size": [1.0, 1e20, float("nan")], "whole": [3, 4, 5]}
    parquet.write_table(pyarrow.table(values), tmp_path / "a.parquet")
    columns = read_columns(tmp_path / "a.parquet", dict.fromkeys(values, "category"), NO_CACHE)
    for name, typed in values.items():
        assert list(columns[name]) == [as_category(value) for value in typed]


def test_large_strings_and_dictionaries_of_parquet(tmp_path):
    text = pyarrow.array(["1", "NA", "3"] * 9, pyarrow.large_string())
    names = pyarrow.array(["a", "b", "a"] * 9).dictionary_encode()
    parquet.write_table(pyarrow.table({"x": text, "kind": names}), tmp_path / "a.parquet")
    columns = read_columns(tmp_path / "a.parquet", {"x": "number", "kind": "category"}, NO_CACHE)
    np.testing.assert_array_equal(columns["x"][:3], [1, np.nan, 3])
    assert columns["kind"].names == ("a", "b")


def test_an_ignored_column_may_hold_anything(write):
    rows = [{"x": i, "tags": ["a"], "label": "ab"[i % 2]} for i in range(20)]
    path = write("a.jsonl", rows)
    with pytest.raises(UserError, match="tags=ignored"):
        fill_in(tabular(path, label="label"), ())
    fill_in(tabular(path, label="label", kinds=("tags=ignored",)), ())


def test_a_missing_image_is_named_with_its_row(tmp_path, write):
    images(tmp_path)
    train = write(
        "a.csv", "file,label\n" + "".join(f"{n}/{i}.png,{n}\n" for n in ("circle", "square") for i in range(6))
    )
    other = write("b.csv", "file,label\ncircle/1.png,circle\ncircle/99.png,circle\n")
    config = of_images(train)
    config.data.test = str(other)
    filled, _ = fill_in(config, ())
    with pytest.raises(UserError, match=r"row 1 .*of .*b\.csv"):
        data.load(filled.data)


def test_a_label_around_zero(write):
    path = write("a.csv", "x,y\n" + "".join(f"{i},{i - 50 + 0.5}\n" for i in range(100)))
    config = tabular(path, label="y", validation=str(path))
    config, _ = fill_in(config, ())
    assert (config.model.output_mean, config.model.output_std) == (pytest.approx(0), pytest.approx(28.866, abs=1e-3))


def test_infinity_is_refused_with_its_row(write):
    path = write("a.jsonl", '{"x": 1.0, "kind": "a"}\n{"x": Infinity, "kind": "b"}\n' * 9)
    config, _ = fill_in(tabular(path), ())
    with pytest.raises(UserError, match=r"row \d+ .*of .*a\.jsonl: column 'x' is inf"):
        data.load(config.data)


BAD = {
    "surrogate": ("a.jsonl", '{"x": "a \\ud83d", "kind": "a"}\n', r"row 0 .*of .*a\.jsonl: column 'x'"),
    "ragged": ("a.csv", "x,kind\n1,a\n2,b,c\n", r"line 3 of .*a\.csv"),
    "mixed": ("a.csv", "x,kind\n" + "1,a\n2,b\n" * 20 + "oops,a\n", r"row 40 .*of .*a\.csv: column 'x' is 'oops'"),
    "latin1": ("a.csv", "x,kind\n1,a\n2,caf\xe9\n".encode("latin1"), r"line 3 of .*a\.csv is not UTF-8"),
    "utf16": ("a.csv", "x,kind\n1,a\n".encode("utf-16"), r"UTF-16"),
    "empty": ("a.csv", "", r"a\.csv is empty"),
    "no rows": ("a.csv", "x,kind\n", r"a\.csv has no rows"),
    "one class": ("a.csv", "x,kind\n" + "1,a\n" * 9, r"'kind' is 'a' in all rows"),
    "duplicate columns": ("a.csv", "x,x,kind\n1,2,a\n", r"two columns called 'x'"),
    "missing label": ("a.csv", "x,kind\n1,a\n2,b\n3,\n", r"row 2 .*of .*a\.csv: the label 'kind' is missing"),
    "no label": ("a.csv", "x,y2\n1,a\n", r"no column 'kind'"),
    "dates": ("a.csv", "x,day,kind\n" + "1,2024-01-05,a\n2,2024-01-06,b\n" * 9, r"column 'day' has dates"),
    "bad json": ("a.jsonl", '{"x": 1, "kind": "a"}\n{"x": 2,\n', r"line 2, column \d+ of .*a\.jsonl is not valid JSON"),
    "json types": ("a.jsonl", [{"x": 1, "kind": "a"}, {"x": "b", "kind": "b"}], r"row 1 .*of .*a\.jsonl: column 'x'"),
    "json lists": ("a.jsonl", [{"x": [1], "kind": "a"}], r"row 0 .*of .*a\.jsonl: column 'x' is a list"),
    "not parquet": ("a.parquet", "x,kind\n1,a\n", r"a\.parquet can't be read as Parquet"),
    "unknown suffix": ("a.xlsx", "x", r"a\.xlsx is not a table"),
}


@pytest.mark.parametrize("name", BAD)
def test_malformed_tables_are_refused_in_one_line(write, name):
    file, content, message = BAD[name]
    path = write(file, content)
    with pytest.raises(UserError, match=message) as error:
        fill_in(tabular(path), ())
    assert "\n" not in str(error.value)


def test_a_label_that_is_only_in_test_is_refused(write):
    train, test = write("a.csv", table()), write("b.csv", "id,size,colour,note,kind\n1,2,red,n,huge\n")
    config, _ = fill_in(tabular(train, test=str(test)), ())
    assert config.eval.splits == ("validation", "test")
    with pytest.raises(UserError, match=re.escape("row 0 (counting from 0) of " + str(test)) + ".*'huge'"):
        data.load(config.data)


def test_a_changed_file_is_refused_on_resume(write, tmp_path):
    path = write("a.csv", table())
    config, _ = fill_in(tabular(path), ())
    data.load(config.data, tmp_path / "assets")
    data.load(config.data, tmp_path / "assets")
    path.write_text(table().replace("\n7,3.5", "\n7,3.6"))
    os.utime(path, (1, 1))
    with pytest.raises(UserError, match="has changed"):
        data.load(config.data, tmp_path / "assets")


def broken_image(folder):
    (folder / "square" / "bad.png").write_bytes(b"no image")


def loop(folder):
    os.symlink(folder / "square" / "loop.png", folder / "square" / "loop.png")


def loose_image(folder):
    (folder / "loose.png").write_bytes(b"")


def empty_class(folder):
    (folder / "triangle").mkdir()


@pytest.mark.parametrize(
    ("damage", "message"),
    [(broken_image, "bad.png"), (loop, "loop.png"), (loose_image, "loose.png"), (empty_class, "triangle")],
)
def test_damaged_folders_are_refused(tmp_path, damage, message):
    folder = images(tmp_path / "all")
    damage(folder)
    with pytest.raises(UserError, match=message):
        fill_in(of_images(folder), ())


def test_links_to_folders_do_not_loop(tmp_path):
    folder = images(tmp_path / "all")
    os.symlink(folder, folder / "square" / "up")
    config, _ = fill_in(of_images(folder), ())
    assert len(data.raw(config.data)["train"][KEY]) == 8


def test_folder_of_splits_is_refused(tmp_path):
    images(tmp_path / "all" / "train")
    images(tmp_path / "all" / "test")
    with pytest.raises(UserError, match=r"data\.train=.*all/train"):
        fill_in(of_images(tmp_path / "all"), ())


@pytest.mark.parametrize(
    ("declared", "message"),
    [("nothing=number", "nothing"), ("size=real", "COLUMN=KIND"), ("size", "COLUMN=KIND")],
)
def test_declared_kinds_are_checked(write, declared, message):
    with pytest.raises(UserError, match=message):
        fill_in(tabular(write("a.csv", table()), kinds=(declared,)), ())


def test_affine_of_a_table_undoes_the_features(write):
    config, _ = fill_in(tabular(write("a.csv", table())), ())
    dataset = data.load(config.data)
    examples = dataset.split("train")
    mean, scale = dataset.encoder.affine
    features = examples.batch(np.arange(len(examples))[:, None])["features"]
    np.testing.assert_allclose((features / scale + mean)[:, 0], np.asarray(dataset.columns["train"]["size"]))
    np.testing.assert_array_equal((mean[1:], scale[1:]), (np.zeros(3), np.ones(3)))


def test_a_refused_file_leaves_nothing(write, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "_stop_on_signals", list)
    path = write("data/a.csv", BAD["ragged"][1])
    with pytest.raises(UserError, match="line 3"):
        train.main(["--config=tabular_files", f"--config.data.train={path}", f"--workdir={tmp_path / 'runs' / 'one'}"])
    assert [entry.name for entry in tmp_path.iterdir()] == ["data"]


def test_texts_that_are_empty_or_missing_are_refused_in_every_split(write):
    """The first of them is named, in whichever file."""
    good = [{"words": f"sentence {i}", "label": "ab"[i % 2]} for i in range(40)]
    for value in ({"words": ""}, {"words": " \t"}, {"words": None}, {}):
        bad = [*good[:7], {"label": "a", **value}, *good[8:20], {"label": "b", **value}, *good[21:]]
        config, _ = fill_in(text_config(write("a.jsonl", bad)), ())
        with pytest.raises(UserError, match=r"row 7 .*of .*a\.jsonl: column 'words' has no value, as in 2 of 40 rows"):
            data.load(config.data)
        config = text_config(write("b.jsonl", good))
        config.data.validation = str(write("c.jsonl", bad))
        config, _ = fill_in(config, ())
        with pytest.raises(UserError, match=r"row 7 .*of .*c\.jsonl"):
            data.load(config.data)


@given(st.lists(st.text(" \ta\u00e4", max_size=3), max_size=20))
def test_empty_texts_are_found(values):
    encoded = [value.encode() for value in values]
    offsets = np.cumsum([0, *map(len, encoded)])
    texts = Texts(np.frombuffer(b"".join(encoded), np.uint8), offsets)
    assert texts.empty().tolist() == [i for i, value in enumerate(values) if not value.strip()]


def test_empty_lines_of_texts_without_labels_are_read(write):
    config = bert_mlm.get_config("embedded")
    config.data.name, config.data.train = "files", str(write("a.txt", "a line of text\n\n" * 50))
    config, _ = fill_in(config, ())
    data.load(config.data)


def test_classes_are_counted_and_those_of_one_row_are_a_warning(write, tmp_path):
    path = write("a.csv", "x,kind\n" + "1,free\n" * 12 + "2,basic\n" * 7 + "3,gold\n")
    _, lines = fill_in(tabular(path), ())
    assert "  label: kind (3 classes: basic 7, free 12, gold 1)" in lines
    assert [line for line in lines if "warning" in line] == [
        "  warning: class 'gold' has 1 row: it cannot be in both train and validation"
    ]
    _, lines = fill_in(tabular(path, validation=str(path)), ())
    assert not any("warning" in line for line in lines)
    images(tmp_path / "all")
    images(tmp_path / "all", names=("triangle",), count=1)
    _, lines = fill_in(of_images(tmp_path / "all"), ())
    assert any("warning: class 'triangle'" in line for line in lines)


def test_counts_are_those_of_all_batches(write, monkeypatch):
    monkeypatch.setattr(tables, "PIECE_ROWS", 4)
    rows = [{"x": i, "kind": "ab"[i % 3 == 0]} for i in range(30)]
    assert summarize(write("a.jsonl", rows))["kind"].distinct == {"a": 20, "b": 10}


def test_paths_are_printed_as_in_the_current_folder(write, tmp_path, monkeypatch):
    path = write("data/a.csv", table())
    monkeypatch.chdir(tmp_path)
    config, lines = fill_in(tabular(path), ())
    assert lines[0].startswith("data: data/a.csv: ")
    assert config.data.train == str(path)


def test_a_solver_is_not_told_how_to_change_its_epochs(write):
    _, lines = fill_in(tabular(write("a.csv", table()), "linear"), ())
    assert "train.epochs" not in lines[-1]
    _, lines = fill_in(tabular(write("a.csv", table())), ())
    assert lines[-1].endswith("--config.train.epochs, --config.train.batch_size")


@pytest.mark.extended
def test_a_classifier_no_better_than_the_majority_is_a_warning(write, tmp_path, capsys):
    rng = np.random.default_rng(0)
    noise = "x,kind\n" + "".join(f"{rng.random()},{'ab'[int(rng.random() < 0.3)]}\n" for _ in range(90))
    for name, text, warned in (("noise", noise, True), ("clear", table(), False)):
        overrides: dict[str, Any] = {"data.train": str(write(f"{name}.csv", text)), "data.transform.label": "kind"}
        run = api.fit("tabular_files:linear", workdir=tmp_path / name, **overrides)
        found = [line for line in run.summary["warnings"] if line.startswith("on validation, accuracy ")]
        assert bool(found) == warned
        accuracy = run.metrics["validation"]["accuracy"]
        assert not warned or f"{accuracy:.4f}" in found[0]
        assert (f"warning: {''.join(found)}" in capsys.readouterr().out) or not warned
