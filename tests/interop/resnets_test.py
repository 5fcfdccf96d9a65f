"""ResNets in transformers' layout: reading, initialization and export."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from research.base.errors import UserError
from research.config import load
from research.interop import pretrained, source
from research.interop.export import export
from research.runs.checkpoint import Checkpoints
from research.runs.rundir import RunDir
from research.training.experiment import prepare
from research.training.loop import restore_or_init
from tests import tiny
from tests.interop import tiny_encoder, tiny_resnet

STEM = "resnet.embedder.embedder.convolution.weight"


def _read(folder):
    kind, config = source.kind_of(folder)
    return kind.read(folder, config)


def _start(workdir, init_from, *overrides):
    experiment = load("configs/resnet_digits.py", [f"init_from={init_from}", *overrides])
    return pretrained.resolve_init_from(experiment.config, experiment.given, workdir)


class TestTheFolder:
    def test_folder_is_read(self, tmp_path):
        tiny_resnet.write(tmp_path, "bottleneck")
        found = _read(tmp_path)
        assert found.model.pop("mean") == pytest.approx((102.0, 127.5, 153.0))
        assert found.model.pop("std") == pytest.approx((51.0, 63.75, 76.5))
        assert found.model == {
            "block": "bottleneck",
            "stage_sizes": (1, 2),
            "width": 4,
            "stem": "imagenet",
            "shortcut": "projection",
            "norm": "batch",
        }
        assert found.batch["images"].shape == (1, 32, 32, 3)

    def test_config_defaults_are_those_of_resnet_50(self, tmp_path):
        (tmp_path / "config.json").write_text('{"model_type": "resnet"}')
        model = _read(tmp_path).model
        assert (model["block"], model["stage_sizes"], model["width"]) == ("bottleneck", (3, 4, 6, 3), 64)
        assert model["mean"] == pytest.approx((123.675, 116.28, 103.53))
        assert model["std"] == pytest.approx((58.395, 57.12, 57.375))

    def test_other_pixel_scaling(self, tmp_path):
        tiny_resnet.write(tmp_path, preprocessor={**tiny_resnet.PREPROCESSOR, "rescale_factor": 0.1})
        assert _read(tmp_path).model["mean"] == pytest.approx((4.0, 5.0, 6.0))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (
                {"downsample_in_bottleneck": True},
                "config.json has downsample_in_bottleneck True; only False is supported",
            ),
            (
                {"downsample_in_first_stage": True},
                "has downsample_in_first_stage True; only False is supported",
            ),
            ({"hidden_act": "gelu"}, "config.json has hidden_act 'gelu'; only 'relu' is supported"),
            ({"layer_type": "wide"}, "config.json has layer_type 'wide'; known: basic, bottleneck"),
            ({"depths": [1, "2"]}, r"config.json has depths \[1, '2'\]"),
            ({"depths": 3}, "config.json has depths 3"),
            ({"depths": None}, "config.json has depths None"),
            ({"layer_type": None}, "config.json has layer_type None"),
            ({"depths": [1, 10**9]}, "config.json: model.stage_sizes is "),
            ({"embedding_size": True}, "config.json has embedding_size True"),
            (
                {"hidden_sizes": [4, 12]},
                r"hidden_sizes \[4, 12\]; only \[4, 8\] is supported for 2 stages",
            ),
            ({"embedding_size": 8}, r"hidden_sizes \[4, 8\]; only \[8, 16\] is supported"),
        ],
    )
    def test_unsupported_value_is_a_one_line_error(self, change, message, tmp_path):
        tiny_resnet.write(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(UserError, match=message) as caught:
            _read(tmp_path)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        ("preprocessor", "message"),
        [
            ({"do_normalize": False}, "preprocessor_config.json has do_normalize False; only True is supported"),
            ({"do_rescale": False}, "preprocessor_config.json has do_rescale False; only True is supported"),
            ({"image_mean": ["x"]}, r"preprocessor_config.json has image_mean \['x'\]"),
            ({"rescale_factor": 0}, "rescale_factor 0"),
        ],
    )
    def test_other_normalization_is_a_one_line_error(self, preprocessor, message, tmp_path):
        tiny_resnet.write(tmp_path, preprocessor=preprocessor)
        with pytest.raises(UserError, match=message):
            _read(tmp_path)


# Computed by transformers 5.23 in float64 from the same files and normalized images, to seven digits.
GOLDEN = {
    "basic": [[-7.0516591, 8.777551, 19.1069218], [-1.5903422, 5.2232376, 8.3783789]],
    "bottleneck": [[-0.3990081, -1.245379, -1.1163904], [-0.3092939, -1.4314396, -1.412105]],
}


@pytest.mark.parametrize("block", tiny_resnet.CONFIGS)
def test_logits_match_transformers(block, tmp_path):
    """From bytes to logits, including the classifier. Measured: 5e-6 relative."""
    tiny_resnet.write(tmp_path, block)
    module, variables = pretrained.load(str(tmp_path))
    batch = {"images": tiny_resnet.images(), "weight": np.ones(2, np.float32)}
    logits = jax.jit(module.apply, static_argnames="train")(variables, batch, train=False)
    np.testing.assert_allclose(logits, GOLDEN[block], rtol=3e-5)


@pytest.mark.parametrize("block", tiny_resnet.CONFIGS)
def test_load_export_load_round_trips_every_byte(block, tmp_path):
    tensors = tiny_resnet.write(tmp_path / "F", block)
    assert export(tiny_resnet.write_run(tmp_path / "W", tmp_path / "F"), tmp_path / "out") == 7
    written = load_file(tmp_path / "out/model.safetensors")
    counters = {name for name in written if name.endswith("num_batches_tracked")}
    assert len(counters) == sum(name.endswith("running_var") for name in tensors)
    for name in counters:
        assert (written[name].dtype, written[name].shape, written.pop(name)) == (np.int64, (), 0)
    assert written.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (written[name].dtype, written[name].tobytes()) == (np.float32, tensor.tobytes()), name
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert {key: config[key] for key in tiny_resnet.CONFIGS[block]} == tiny_resnet.CONFIGS[block]
    images = json.loads((tmp_path / "out/preprocessor_config.json").read_text())
    for key, values in tiny_resnet.PREPROCESSOR.items():
        assert images[key] == pytest.approx(values)
    once, twice = (pretrained.load(str(tmp_path / name))[1] for name in ("F", "out"))
    tiny.assert_trees_equal(once, twice)


def test_exporting_a_regression_again_gives_the_same_bytes(tmp_path):
    tiny_resnet.write(tmp_path / "F", id2label={"0": "LABEL_0"}, label2id={"LABEL_0": 0})
    export(tiny_resnet.write_run(tmp_path / "once-run", tmp_path / "F"), tmp_path / "once")
    export(tiny_resnet.write_run(tmp_path / "twice-run", tmp_path / "once"), tmp_path / "twice")
    once, twice = ({path.name: path.read_bytes() for path in (tmp_path / out).iterdir()} for out in ("once", "twice"))
    assert once == twice
    config = json.loads(once["config.json"])
    assert (config["id2label"], config["problem_type"]) == ({"0": "LABEL_0"}, "regression")


def test_network_without_a_transformers_equivalent_is_not_exported(tmp_path):
    """Nothing is written."""
    tiny_resnet.write(tmp_path / "F")
    workdir = tiny_resnet.write_run(tmp_path / "W", tmp_path / "F")
    config = json.loads((workdir / "config.json").read_text())
    config["model"].update(stem="small", norm="group")
    (workdir / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"transformers has no model.stem='small', model.norm='group'"):
        export(workdir, tmp_path / "out")
    assert not (tmp_path / "out").exists()


class TestARun:
    def _first(self, start, workdir):
        """The state before the first step, and that without pretrained weights."""
        experiment = prepare(start.config)
        fresh = jax.device_get(experiment.init())
        with Checkpoints(workdir / "checkpoints", metric="accuracy", mode="max") as checkpoints:
            return restore_or_init(experiment, checkpoints, start.load_variables)[0], fresh

    @pytest.mark.parametrize("name", ["resnet", "resnet18"])
    def test_run_starts_from_the_weights_and_batch_statistics(self, name, tmp_path):
        """For any variant in the config. The classifier is initialized from the seed, even with as many classes."""
        tiny_resnet.write(tmp_path / "F", "basic", num_channels=1, preprocessor={"image_mean": [0.5], "image_std": [1]})
        experiment = load("configs/resnet_digits.py", [f"init_from={tmp_path / 'F'}", "model.num_classes=10"])
        config = experiment.config
        if name != "resnet":
            keys = ("num_classes", "norm", "stochastic_depth", "mean", "std", "test_flip")
            config.model = {"name": name} | {key: config.model[key] for key in keys}
        config.model.stochastic_depth = 0.1
        start = pretrained.resolve_init_from(config, experiment.given, tmp_path / "W")
        model = start.config.model
        assert (model.name, model.block, model.stage_sizes, model.width) == ("resnet", "basic", (1, 2), 4)
        assert (model.stem, model.shortcut, model.stochastic_depth) == ("imagenet", "projection", 0.1)
        assert (model.mean, model.std, model.num_classes) == ((127.5,), (255.0,), 10)
        assert start.note == (
            f"weights: {tmp_path}/F (resnet); fresh: classifier; not used: classifier.1.bias, classifier.1.weight"
        )
        state, fresh = self._first(start, tmp_path / "W")
        expected = pretrained.load(str(tmp_path / "F"))[1]
        for name in expected["params"].keys() - {"classifier"}:
            tiny.assert_trees_equal(state.params[name], expected["params"][name])
        tiny.assert_trees_equal(state.params["classifier"], fresh.params["classifier"])
        tiny.assert_trees_equal(state.model_state["batch_stats"], expected["batch_stats"])
        tensors = tiny_resnet.tensors("basic", 1)
        running = "resnet.embedder.embedder.normalization.running_var"
        np.testing.assert_array_equal(state.model_state["batch_stats"]["norm_stem"]["var"], tensors[running])
        kernel = tensors[STEM].transpose(2, 3, 1, 0)
        np.testing.assert_array_equal(state.params["conv_stem"]["kernel"], kernel)

    def test_run_starts_from_another_run(self, tmp_path):
        tiny_resnet.write(tmp_path / "F", num_channels=1, preprocessor={"image_mean": [0.5], "image_std": [1]})
        _, expected = pretrained.load(str(tmp_path / "F"))
        run = tiny_resnet.write_run(tmp_path / "first", tmp_path / "F")
        start = _start(tmp_path / "W", run, "model.num_classes=10")
        assert start.note == f"weights: the run {run}; fresh: classifier"
        state, fresh = self._first(start, tmp_path / "W")
        tiny.assert_trees_equal(state.params["classifier"], fresh.params["classifier"])
        tiny.assert_trees_equal(state.params["stage_1_block_1"], expected["params"]["stage_1_block_1"])
        tiny.assert_trees_equal(state.model_state["batch_stats"], expected["batch_stats"])
        tiny.assert_trees_equal(pretrained.load(str(run))[1], expected)

    def test_resuming_does_not_need_the_weights(self, tmp_path):
        """The settings of the run are restored, for any variant in its config."""
        tiny_resnet.write(tmp_path / "F", "bottleneck")
        workdir = tiny_resnet.write_run(tmp_path / "W", tmp_path / "F")
        config = json.loads((workdir / "config.json").read_text())
        (workdir / "config.json").write_text(json.dumps({**config, "init_from": str(Path.home() / "gone/away")}))
        experiment = load("configs/resnet_digits.py", ["init_from=~/gone/away"])
        keys = ("num_classes", "norm", "stochastic_depth", "mean", "std", "test_flip")
        experiment.config.model = {"name": "resnet18"} | {key: experiment.config.model[key] for key in keys}
        start = pretrained.resolve_init_from(experiment.config, experiment.given, workdir)
        assert start.load_variables is None
        model = start.config.model
        assert (model.name, model.block, model.stage_sizes, model.width) == ("resnet", "bottleneck", (1, 2), 4)
        assert model.mean == pytest.approx((102.0, 127.5, 153.0))

    def test_other_number_of_channels_is_a_one_line_error(self, tmp_path):
        """Digits have one channel, these weights three."""
        tiny_resnet.write(tmp_path / "F")
        with pytest.raises(UserError, match=r"model.mean has 3 values .*; images have 1 channels"):
            prepare(_start(tmp_path / "W", tmp_path / "F").config)
        start = _start(tmp_path / "W", tmp_path / "F", "model.mean=(8.0,)", "model.std=(6.0,)")
        with pytest.raises(UserError, match=r"params/conv_stem/kernel have shape \(7, 7, 3, 4\).*needs \(7, 7, 1, 4\)"):
            self._first(start, tmp_path / "W")
        run = tiny_resnet.write_run(tmp_path / "first", tmp_path / "F")
        start = _start(tmp_path / "W", run, "model.mean=(8.0,)", "model.std=(6.0,)")
        with pytest.raises(UserError, match=r"conv_stem/kernel .*\(7, 7, 3, 4\).*\(7, 7, 1, 4\)"):
            self._first(start, tmp_path / "W")

    def test_named_variant_is_kept(self, tmp_path):
        tiny_resnet.write(tmp_path / "F")
        experiment = load("configs/resnet_digits.py", [f"init_from={tmp_path / 'F'}"])
        config = experiment.config
        keys = ("num_classes", "norm", "stochastic_depth", "mean", "std", "test_flip")
        config.model = {"name": "resnet18"} | {key: config.model[key] for key in keys}
        with pytest.raises(UserError, match=r"has shape \(4,\); the model of this config needs \(64,\)"):
            pretrained.resolve_init_from(config, {*experiment.given, "model.name"}, tmp_path / "W")

    def test_weights_of_an_encoder_are_a_one_line_error(self, tmp_path):
        tiny_encoder.write(tmp_path / "F")
        with pytest.raises(UserError, match="has weights for models bert, bert_mlm; this config's is 'resnet'"):
            _start(tmp_path / "W", tmp_path / "F")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda tensors: {**tensors, STEM: np.zeros((4, 3, 3, 3), np.float32)},
            rf"tensor {STEM} of \S+ has shape \(4, 3, 3, 3\); the model of this config needs \(4, 3, 7, 7\)",
        ),
        (
            lambda tensors: {name: x for name, x in tensors.items() if "running_var" not in name or "stages.1" in name},
            r"lacks resnet.embedder.embedder.normalization.running_var, .*, which the model needs",
        ),
    ],
)
def test_mismatched_tensors_are_named(change, message, tmp_path):
    tiny_resnet.write(tmp_path)
    path = tmp_path / "model.safetensors"
    save_file(change(load_file(path)), path)
    with pytest.raises(UserError, match=message):
        pretrained.load(str(tmp_path))


def test_network_without_a_head_gets_a_random_one(tmp_path):
    """A file of ResNetModel: no prefix, no classifier."""
    tensors = tiny_resnet.write(tmp_path)
    bare = {name.removeprefix("resnet."): x for name, x in tensors.items() if not name.startswith("classifier")}
    save_file({**bare, "more": np.zeros(1)}, tmp_path / "model.safetensors")
    _, variables = pretrained.load(str(tmp_path), num_classes=5)
    np.testing.assert_array_equal(variables["params"]["conv_stem"]["kernel"], tensors[STEM].transpose(2, 3, 1, 0))
    head = variables["params"]["classifier"]["kernel"]
    assert head.shape == (8, 5)
    assert np.std(head) > 0


def test_hub_files_need_no_tokenizer(tmp_path, monkeypatch):
    """The download of a ResNet is complete without one."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub/models--some--resnet"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text("c0ffee")
    tiny_resnet.write(repository / "snapshots/c0ffee")
    assert source.missing("some/resnet") is None
    assert _read(source.folder("some/resnet")).model["mean"] == pytest.approx((102.0, 127.5, 153.0))


def test_run_directory_of_a_resnet_is_rejected_for_bert(tmp_path):
    tiny_resnet.write(tmp_path / "F")
    run = tiny_resnet.write_run(tmp_path / "first", tmp_path / "F")
    assert RunDir.open(run).config()["model"]["name"] == "resnet"
    experiment = load("configs/bert_sst2.py:embedded", [f"init_from={run}"])
    with pytest.raises(UserError, match="has weights for models resnet; this config's is 'bert'"):
        pretrained.resolve_init_from(experiment.config, experiment.given, tmp_path / "W")
