# mypy: disable-error-code="arg-type"
"""ResNets against transformers' and torch: logits, gradients, running statistics, exported runs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from research.base.leaves import path_name
from research.interop import pretrained
from research.interop.export import export
from research.interop.resnets import NAMING
from research.interop.tensors import tensor_names
from tests.interop import tiny_resnet

pytestmark = pytest.mark.parity

CLASSES = 10
SETTINGS = {
    "resnet18": {"layer_type": "basic", "depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512]},
    "resnet50": {"layer_type": "bottleneck", "depths": [3, 4, 6, 3], "hidden_sizes": [256, 512, 1024, 2048]},
}


def _theirs(name):
    """A random network with scales, biases and statistics other than 0 and 1 that keep activations near size 1."""
    import torch
    import transformers

    torch.manual_seed(0)
    model = transformers.ResNetForImageClassification(
        transformers.ResNetConfig(num_labels=CLASSES, **SETTINGS[name])
    ).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.uniform_(0.2, 0.6)
                module.bias.normal_(0.0, 0.2)
                module.running_mean.normal_(0.0, 0.2)
                module.running_var.uniform_(0.5, 2.0)
    return model


def _turned(path, tensor):
    """Converts a torch tensor to the variable at `path`."""
    tensor = tensor.detach().numpy()
    axes = {("kernel", 2): (1, 0), ("kernel", 4): (2, 3, 1, 0)}
    return tensor.transpose(axes.get((path.split("/")[-1], tensor.ndim), range(tensor.ndim)))


@pytest.mark.parametrize(("train", "dtype"), [(False, "float32"), (True, "float32"), (True, "float64")])
@pytest.mark.parametrize("name", SETTINGS)
def test_logits_gradients_and_running_statistics(name, train, dtype, tmp_path):
    """Four images of 64×64, ResNet-18 and ResNet-50.

    Measured in float32: differences of logits of at most 9e-8 (ResNet-18) and 2e-7 (ResNet-50) in evaluation, 2e-6 and
    2e-5 in training, running statistics 2e-7 and 2e-5, gradients in evaluation 2e-6 relative to each tensor's largest
    entry. On a processor with AMX, ResNet-50's logits in training differ by 1.1e-4. In float64: logits 4e-14, running
    statistics 3e-14, gradients 4e-13 relative.

    Gradients in training are compared in float64. In float32 a ReLU whose input is 0 up to rounding may be active in
    one implementation only, and the last stages have so few pixels that a single one matters: the largest entry of
    ResNet-50's gradients has a relative error of 0.05 to 0.2 in both this project and torch, each compared with torch
    in float64.
    """
    import torch

    theirs = _theirs(name)
    theirs.save_pretrained(tmp_path)
    with jax.enable_x64(dtype == "float64"):
        module, variables = pretrained.load(str(tmp_path))
        module = module.clone(dtype=jnp.dtype(dtype))
        variables = jax.tree.map(lambda x: np.asarray(x, dtype), variables)
        images = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
        labels = np.arange(4)
        batch = {"images": images, "weight": np.ones(4, np.float32)}

        def loss(params):
            own = {**variables, "params": params}
            logits, updated = module.apply(own, batch, train=train, mutable=["batch_stats"])
            return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels)), (logits, updated)

        gradients, (logits, updated) = jax.device_get(jax.jit(jax.grad(loss, has_aux=True))(variables["params"]))

    normalized = (images - np.asarray(module.mean)) / np.asarray(module.std)
    theirs = theirs.to(getattr(torch, dtype)).train(train)
    pixels = torch.tensor(normalized.transpose(0, 3, 1, 2), dtype=getattr(torch, dtype))
    out = theirs(pixels, labels=torch.tensor(labels))
    out.loss.backward()

    exact = dtype == "float64"
    assert logits.dtype == dtype
    np.testing.assert_allclose(logits, out.logits.detach().numpy(), atol=1e-10 if exact else 5e-4)
    buffers = dict(theirs.named_buffers())
    for keys, ours in jax.tree_util.tree_leaves_with_path(updated):
        path = path_name(keys)
        statistic = _turned(path, buffers[tensor_names(NAMING, path)[0]])
        np.testing.assert_allclose(ours, statistic, atol=1e-10 if exact else 5e-4, err_msg=path)
    if train and not exact:
        return
    expected = dict(theirs.named_parameters())
    for keys, ours in jax.tree_util.tree_leaves_with_path({"params": gradients}):
        path = path_name(keys)
        grad = _turned(path, expected.pop(tensor_names(NAMING, path)[0]).grad)
        np.testing.assert_allclose(ours, grad, atol=(1e-10 if exact else 5e-4) * np.abs(grad).max(), err_msg=path)
    assert not expected


@pytest.mark.parametrize(("block", "outputs"), [("basic", 3), ("bottleneck", 3), ("basic", 1)])
def test_an_exported_run_has_the_same_logits_in_transformers(block, outputs, tmp_path):
    """From bytes to logits, with transformers' own preprocessing; one output means a regression.

    Measured: 1e-6 relative.
    """
    import torch
    import transformers

    labels = {str(i): f"LABEL_{i}" for i in range(outputs)}
    tiny_resnet.write(tmp_path / "F", block, id2label=labels, label2id={name: int(i) for i, name in labels.items()})
    export(tiny_resnet.write_run(tmp_path / "W", tmp_path / "F"), tmp_path / "out")
    module, variables = pretrained.load(str(tmp_path / "W"))
    images = tiny_resnet.images()
    logits = module.apply(variables, {"images": images, "weight": np.ones(2, np.float32)}, train=False)

    theirs, report = transformers.AutoModelForImageClassification.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not any(report.values())
    assert theirs.config.id2label == {int(i): name for i, name in labels.items()}
    assert theirs.config.problem_type == ("regression" if outputs == 1 else "single_label_classification")
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "out")
    inputs = processor(list(images), return_tensors="pt")
    assert inputs["pixel_values"].shape == (2, 3, 32, 32)
    with torch.no_grad():
        np.testing.assert_allclose(logits, theirs.eval()(**inputs).logits.numpy(), rtol=1e-4, atol=1e-4)
