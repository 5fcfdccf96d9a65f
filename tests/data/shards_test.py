# mypy: disable-error-code="arg-type, attr-defined, misc"
"""Corpora in shards: files read by index, the order of documents, and rows that follow from their position alone."""

import copy
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.base.errors import UserError
from research.configs import bert_mlm, gpt_wikitext
from research.data import load
from research.data.pipeline import Rows, evaluation_batches, training_batches
from research.data.shards import source
from research.data.shards.files import Shards, counts, find
from research.data.shards.order import Order, Schedule
from research.data.shards.rows import Plan, ShardStream
from tests import tiny
from tests.data.batches import as_rows

WEIGHTS = st.lists(st.sampled_from((0.1, 0.25, 0.3, 1.0, 2.0, 7.0)), min_size=1, max_size=4)


@settings(deadline=None, max_examples=100)
@given(weights=WEIGHTS, start=st.integers(0, 10**12))
def test_each_period_draws_sources_in_proportion_and_draws_are_counted(weights, start):
    schedule = Schedule.of(weights)
    sources, draws = schedule(np.arange(start, start + schedule.period))
    drawn = np.bincount(sources, minlength=len(weights))
    np.testing.assert_allclose(drawn / drawn.sum(), np.array(weights) / sum(weights), rtol=1e-12)
    for number in range(len(weights)):
        mine = draws[sources == number]
        np.testing.assert_array_equal(mine, mine[0] + np.arange(drawn[number]))  # whatever position a period begins at
    sources, draws = schedule(np.arange(3 * schedule.period))
    for number in range(len(weights)):
        np.testing.assert_array_equal(draws[sources == number], np.arange(3 * drawn[number]))


@pytest.mark.parametrize("weights", [(0.6, 0.4), (0.7, 0.2, 0.1), (0.99, 0.01), (5, 4, 3, 2, 1)])
def test_draws_of_a_source_are_spread_evenly(weights):
    sources, _ = Schedule.of(weights)(np.arange(1000))
    for number, weight in enumerate(weights):
        drawn = np.cumsum(sources == number)
        assert np.abs(drawn - np.arange(1, 1001) * weight / sum(weights)).max() < 1


@st.composite
def orders(draw):
    weights = draw(WEIGHTS)
    sizes = tuple(draw(st.integers(1, 10) | st.integers(10, 40)) for _ in weights)
    return Order(sizes, Schedule.of(weights), draw(st.integers(1, 7)))


@settings(deadline=None, max_examples=50)
@given(order=orders(), seed=st.integers(0, 2**32 - 1), start=st.integers(0, 250))
def test_an_epoch_of_a_source_has_each_document_once_and_seeking_is_iterating(order, seed, start):
    sources, indices = order(np.arange(300), seed)
    for number, size in enumerate(order.sizes):
        mine = indices[sources == number]
        for begin in range(0, len(mine) - size + 1, size):
            assert sorted(mine[begin : begin + size]) == list(range(size))
    found = order(np.arange(start, start + 50), seed)
    np.testing.assert_array_equal(found, (sources[start : start + 50], indices[start : start + 50]))


def test_epochs_seeds_and_sources_have_other_orders():
    order = Order((50, 50), Schedule.of((1, 1)))
    sources, indices = order(np.arange(200), 0)
    listed = [indices[sources == number][begin : begin + 50] for number in (0, 1) for begin in (0, 50)]
    listed.append(order(np.arange(100), 1)[1][sources[:100] == 0])
    assert len({tuple(each) for each in listed}) == 5


def test_runs_remain_neighbours():
    order = Order((1000,), Schedule.of((1,)), run=10)
    _, indices = order(np.arange(1000), 0)
    assert all(len(set(run // 10)) == 1 for run in indices.reshape(-1, 10))
    assert len(set(np.diff(indices[::10] // 10))) > 50


def test_documents_are_read_by_index_from_files_of_both_kinds(tmp_path):
    documents = tiny.texts(100)
    tiny.shard(tmp_path / "a.array_record-00000-of-00001", documents[:30])
    tiny.shard(tmp_path / "b.parquet", documents[30:95], group=16)
    tiny.shard(tmp_path / "c.parquet", [None, *documents[96:]])
    paths = find(f"{tmp_path}/a*, {tmp_path}/*.parquet", "data.train")
    shards = Shards.of(paths, [counts(path, "text") for path in paths], "text")
    assert len(shards) == 100
    order = np.random.default_rng(0).permutation(100)
    expected = [*documents[:95], "", *documents[96:]]
    read = [text.decode() if isinstance(text, bytes) else text for text in shards.texts(order)]
    assert read == [expected[i] for i in order]
    assert pickle.loads(pickle.dumps(shards)).texts(np.array([40])) == [documents[40]]


def section(folder, config=bert_mlm, **settings):
    """A `data` section of two corpora, of 40 and 90 documents."""
    if not (folder / "few.parquet").exists():
        tiny.shard(folder / "few.parquet", tiny.texts(40, 1))
        tiny.shard(folder / "many.array_record", tiny.texts(90, 2))
        tiny.shard(folder / "val.parquet", tiny.texts(20, 3))
    section = copy.deepcopy(config.get_config("embedded").data)
    section.name = "shards"
    section.train, section.validation = f"{folder}/few*,{folder}/many*", f"{folder}/val*"
    section.transform.update(row_length=24, vocab_size=320)
    section.shards.update(**{"weights": (1.0, 2.0), "rows": 6, "sample": 100, **settings})
    return section


def made(stream, *, batch_rows=8, steps=9, start=0, rows=None, **options):
    whole = {"total_rows": None, "seed": 5, "rows": rows or Rows(), **options}
    return list(training_batches(stream, batch_rows=batch_rows, start_step=start, steps=steps, **whole))


@pytest.mark.parametrize("config", [bert_mlm, gpt_wikitext])
def test_rows_are_a_function_of_their_position(config, tmp_path):
    stream = ShardStream.of(load.load(section(tmp_path, config)).split("train"))
    whole = as_rows(made(stream))
    assert len(set(whole)) > 60  # of 72: few are padding
    for start in (1, 4, 8):
        fresh = ShardStream.of(pickle.loads(pickle.dumps(stream.examples)))
        assert as_rows(made(fresh, start=start)) == whole[8 * start :]
    assert as_rows(made(stream, batch_rows=12, steps=6)) == whole
    assert as_rows(made(stream, seed=6)) != whole
    # Two processes' rows are those of one.
    halves = [made(stream, rows=Rows(lambda n, i=i: np.arange(n)[i * n // 2 : (i + 1) * n // 2])) for i in (0, 1)]
    joined = [{k: np.concatenate([a[k], b[k]]) for k in a} for a, b in zip(*halves, strict=True)]
    assert as_rows(joined) == whole


@pytest.mark.slow
def test_rows_of_worker_processes_are_the_same(tmp_path):
    stream = ShardStream.of(load.load(section(tmp_path, gpt_wikitext)).split("train"))
    assert as_rows(made(stream, workers=2)) == as_rows(made(stream))


def test_replicas_have_the_rows_of_their_seeds(tmp_path):
    stream = ShardStream.of(load.load(section(tmp_path)).split("train"))
    for batch, *alone in zip(made(stream, replicas=2), made(stream), made(stream, seed=6), strict=True):
        for i in (0, 1):
            np.testing.assert_array_equal(batch["tokens"][i], alone[i]["tokens"])
            np.testing.assert_array_equal(batch["labels"][i], alone[i]["labels"])


def test_a_group_has_the_tokens_of_its_documents_up_to_its_last_row(tmp_path):
    examples = load.load(section(tmp_path, gpt_wikitext, weights=(), documents=5)).split("train")
    encoder, stream = examples.encoder, ShardStream.of(examples)
    rows = made(stream, batch_rows=6, steps=40)
    cut = padding = 0
    seen = []
    for group, batch in enumerate(rows):
        texts = examples.documents(np.arange(group * 5, group * 5 + 5), 5)
        seen += texts
        tokens = encoder.encode({"text": texts}).sequence[:-1]
        real = batch["segments"] > 0
        np.testing.assert_array_equal(batch["tokens"][real], tokens[: 6 * 24])
        assert (batch["targets"][~real] == -1).all()
        cut, padding = cut + max(len(tokens) - 144, 0), padding + np.sum(~real)
    assert cut > 0
    assert padding > 0
    assert len(set(seen[:130])) == 130  # an epoch
    assert len(set(seen[130:200])) == 70
    assert seen[130:200] != seen[:70]
    assert examples.plan.fullness == pytest.approx(1 - padding / (40 * 144), abs=0.05)


def test_groups_are_filled_on_average_and_larger_ones_better():
    lengths = np.random.RandomState(0).lognormal(5, 1, 1000).astype(int)
    small, large = (Plan.of(lengths, 128.0, rows, None) for rows in (16, 256))
    assert large.documents == pytest.approx(16 * small.documents, abs=8)
    assert 1 - small.fullness > 3 * (1 - large.fullness)
    assert small.cut > 3 * large.cut
    assert Plan.of(lengths, 128.0, 16, 1).fullness < 0.2


def test_padding_of_a_batch_is_empty_rows(tmp_path):
    stream = ShardStream.of(load.load(section(tmp_path)).split("train"))
    (batch,) = made(stream, steps=1, total_rows=3)
    assert batch["weight"].ravel().tolist() == [1, 1, 1, 0, 0, 0, 0, 0]
    assert (batch["labels"][3:] == -1).all()
    assert (batch["segments"][:3] > 0).any(axis=1).all()


def test_evaluation_reads_a_split_whole_and_train_in_the_order_of_the_files(tmp_path):
    dataset = load.load(section(tmp_path, gpt_wikitext))
    alone = dataset.encoder.encode({"text": tiny.texts(20, 3)}, split="validation")
    np.testing.assert_array_equal(dataset.split("validation").sequence, alone.sequence)
    stream = ShardStream.of(dataset.split("train"))
    batches = list(evaluation_batches(stream, batch_rows=16, rows=Rows()))
    members = np.concatenate([members.ravel() for members, _ in batches])
    assert members[members >= 0].tolist() == list(range(len(stream.rows)))
    first = dataset.encoder.encode({"text": tiny.texts(40, 1)}).sequence
    real = batches[0][1]["segments"][0] > 0
    np.testing.assert_array_equal(batches[0][1]["tokens"][0][real], first[:24])


def test_a_plan_is_kept_with_the_run(tmp_path):
    first = load.load(section(tmp_path), tmp_path / "assets").split("train")
    (tmp_path / "assets/groups.json").write_text('{"documents": 3, "rows": 6, "fullness": 1.0, "cut": 0.0}')
    assert load.load(section(tmp_path), tmp_path / "assets").split("train").plan.documents == 3 != first.plan.documents


@pytest.mark.parametrize("change", ["longer", "same size", "gone", "weights"])
def test_a_corpus_that_changed_since_the_run_began_is_refused(change, tmp_path):
    given = section(tmp_path)
    load.load(given, tmp_path / "assets").split("train")
    path = tmp_path / "many.array_record"
    if change == "longer":
        tiny.shard(path, tiny.texts(91, 2))
    elif change == "same size":
        content = bytearray(path.read_bytes())
        content[100] ^= 1
        path.write_bytes(content)
    elif change == "weights":
        given.shards.weights = (1.0, 1.0)
    else:
        path.rename(tmp_path / "many.old.array_record")
    with pytest.raises(UserError, match=r"has changed since the run began"):
        load.load(given, tmp_path / "assets")


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path):
    tiny.shard(tmp_path / "a.parquet")
    paths = find(str(tmp_path / "a.parquet"), "data.train")
    shards = Shards.of(paths, [counts(paths[0], "text")], "text")
    tiny.shard(tmp_path / "a.parquet", tiny.texts(5))
    with pytest.raises(UserError, match=r"a\.parquet has changed since the run began: it had .* bytes, now"):
        shards.texts(np.array([3]))


def _refused(given, message):
    with pytest.raises(UserError, match=message) as raised:
        load.load(given).split("train")
    assert "\n" not in str(raised.value)


def test_unusable_files_are_refused(tmp_path):
    given = section(tmp_path, weights=())
    for name, documents in (("empty.parquet", []), ("empty.array_record", []), ("blank.parquet", ["", ""])):
        tiny.shard(tmp_path / name, documents)
    (tmp_path / "junk.parquet").write_bytes(b"junk")
    (tmp_path / "junk.array_record").write_bytes(b"junk")
    (tmp_path / "a.jsonl").write_text('{"text": "a"}')
    for name, message in {
        "none*": r"data\.train=.*none\* matches no file",
        "empty.parquet": r"empty\.parquet has no records",
        "empty.array_record": r"empty\.array_record has no records",
        "junk.parquet": r"junk\.parquet is not a valid Parquet file",
        "junk.array_record": r"junk\.array_record is not a valid array_record file",
        "a.jsonl": r"a\.jsonl is of no known kind: shards are \.array_record or \.parquet",
    }.items():
        given.train = str(tmp_path / name)
        _refused(given, message)
    given = section(tmp_path, gpt_wikitext, weights=())
    given.train = str(tmp_path / "blank.parquet")
    _refused(given, r"no token was found in 2 documents")
    given.train = str(tmp_path / "few.parquet")
    given.transform.inputs = ("body",)
    _refused(given, r"few\.parquet has no column 'body'; it has text")


def test_unusable_settings_are_refused(tmp_path):
    for weights, message in {
        (1.0,): r"has 1 weights for 2 globs",
        (1.0, 0.0): r"weights is \(1\.0, 0\.0\); each must be above 0",
        (1.0, -2.0): r"each must be above 0 and finite",
        (1.0, 0.123456): r"exact only in 17,554 documents; at most 10,000",
    }.items():
        _refused(section(tmp_path, weights=weights), message)
    for key, value, message in (
        ("heading", "x", r"data\.transform\.heading is 'x', which data\.name=shards does not support"),
        ("name", "wordpiece", r"it must be language_model or masked_lm"),
    ):
        given = section(tmp_path)
        given.transform[key] = value
        _refused(given, message)
    given = section(tmp_path)
    given.train = None
    _refused(given, r"data\.train is missing")
    given = section(tmp_path)
    given.train_fraction = 0.5
    _refused(given, r"data\.train_fraction is 0\.5, which")


def test_a_split_without_files_is_refused(tmp_path):
    given = section(tmp_path)
    given.validation = None
    dataset = load.load(given)
    with pytest.raises(
        UserError, match=r"data\.validation is missing: no split is cut off data\.train; name its shards"
    ):
        dataset.split("validation")
    with pytest.raises(UserError, match=r"have no split 'dev'; known: train, validation, test"):
        dataset.split("dev")


def test_a_split_that_is_read_whole_has_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "_IN_MEMORY_BYTES", 100)
    dataset = load.load(section(tmp_path))
    with pytest.raises(UserError, match=r"data\.validation has .* bytes of shards, which are read into memory"):
        dataset.split("validation")
