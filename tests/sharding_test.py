# mypy: disable-error-code="list-item"
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from research.base.errors import UserError
from research.devices.sharding import (
    batch_parts,
    batch_sharding,
    make_mesh,
    prefetch_to_device,
    process_rows,
    put_batch,
    state_shardings,
)


def test_data_axis_takes_the_remaining_devices():
    assert dict(make_mesh(fsdp=2).shape) == {"data": 4, "fsdp": 2, "tensor": 1}
    assert batch_parts(make_mesh(fsdp=2)) == 8
    assert batch_parts(make_mesh(tensor=2)) == 4


def test_mesh_sizes_must_match_the_devices():
    with pytest.raises(UserError, match="there are 8 devices"):
        make_mesh(data=3)
    with pytest.raises(UserError, match=r"mesh.fsdp=3 × mesh.tensor=1 is 3, which must divide .* 8"):
        make_mesh(fsdp=3)


STATE = {
    "params": {
        "kernel": jax.ShapeDtypeStruct((8, 6), jnp.float32),
        "bias": jax.ShapeDtypeStruct((6,), jnp.float32),
    }
}


def test_first_matching_rule_applies_and_the_rest_is_replicated():
    rules = [("params/kernel", ("fsdp",)), ("kernel", (None, "fsdp"))]
    placed = state_shardings(STATE, rules, make_mesh(fsdp=2))
    assert placed["params"]["kernel"].spec == PartitionSpec("fsdp")
    assert placed["params"]["bias"].spec == PartitionSpec()


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (("bias", ("fsdp", "tensor")), "2 axes"),
        (("bias", ("fspd",)), "the axis 'fspd'"),
        (("bias", (("data", "fsdp"),)), "6 of params/bias into 8 parts"),
    ],
)
def test_invalid_rules_are_rejected(rule, message):
    with pytest.raises(UserError, match=message):
        state_shardings(STATE, [rule], make_mesh(fsdp=2))


def test_batch_is_split_over_the_devices(rng):
    mesh = make_mesh()
    array = rng.standard_normal((16, 3))
    placed = put_batch({"x": array}, mesh)["x"]
    assert placed.sharding == batch_sharding(mesh)
    assert [shard.data.shape for shard in placed.addressable_shards] == [(2, 3)] * 8


def test_rows_are_placed_correctly_on_a_mesh_in_any_order(rng):
    """A mesh may order its devices to suit the hardware; row i of the global array is still row i."""
    array = rng.standard_normal((16, 3)).astype(np.float32)
    for devices in (jax.devices(), jax.devices()[::-1], jax.devices()[::2] + jax.devices()[1::2]):
        mesh = make_mesh(fsdp=2, tensor=2, devices=devices)
        np.testing.assert_array_equal(process_rows(mesh, 16), np.arange(16))
        np.testing.assert_array_equal(put_batch({"x": array}, mesh)["x"], array)


def test_rows_of_several_seeds_are_split_along_the_row_axis(rng):
    array = rng.standard_normal((3, 16, 2)).astype(np.float32)
    for devices in (jax.devices(), jax.devices()[::-1]):
        placed = put_batch({"x": array}, make_mesh(fsdp=2, tensor=2, devices=devices), axis=1)["x"]
        np.testing.assert_array_equal(placed, array)
        assert {shard.data.shape for shard in placed.addressable_shards} == {(3, 4, 2)}


@pytest.mark.parametrize(
    "rules",
    [
        ("linear",),
        (("linear",),),
        (("kernel", "fsdp"),),
        (("kernel", (0,)),),
        (("kernel", (("fsdp", None),)),),
        ((1, ("fsdp",)),),
        ((None, ()),),
        (("(", ()),),
        (("kernel", ("fsdp", "fsdp")),),
        (("kernel", (("fsdp", "fsdp"),)),),
        "linear",
        3,
    ],
)
def test_malformed_rules_are_one_line_errors(rules):
    with pytest.raises(UserError, match=r"mesh\.rules"):
        state_shardings(STATE, rules, make_mesh(fsdp=2))


def test_rules_read_from_json():
    placed = state_shardings(STATE, [["kernel", [["data", "fsdp"]]]], make_mesh(fsdp=2))
    assert placed["params"]["kernel"].spec == PartitionSpec(("data", "fsdp"))


def test_batches_are_prefetched_one_ahead():
    made = []

    def batches():
        for i in range(4):
            made.append(i)
            yield {"x": np.full((8, 2), i), "weight": np.ones(8, np.float32)}

    for i, (batch, placed) in enumerate(prefetch_to_device(batches(), make_mesh())):
        assert made == list(range(min(i + 2, 4)))
        assert (batch["x"] == i).all()
        np.testing.assert_array_equal(placed["x"], batch["x"])
        assert len(placed["x"].sharding.device_set) == 8
    assert made == [0, 1, 2, 3]
    assert list(prefetch_to_device(iter(()), make_mesh())) == []
