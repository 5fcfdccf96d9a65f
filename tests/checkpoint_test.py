import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.base.errors import UserError
from research.core.state import TrainState
from research.devices.sharding import make_mesh, state_shardings
from research.runs.checkpoint import Checkpoints, Progress


def _state(value):
    return TrainState(
        step=jnp.int32(value),
        params={"w": jnp.full((8, 4), float(value))},
        model_state={},
        opt_state=(jnp.full(3, float(value)),),
        average={"params": {"w": jnp.full((8, 4), float(value))}, "model_state": {}},
    )


def _saved(checkpoints, step, value=None):
    """Saves a state of `step`, and ranks it if a value is given."""
    progress = Progress(step=step)
    checkpoints.save(_state(step), progress)
    if value is not None:
        checkpoints.rank(progress.evaluated(value))


def _open(folder):
    return Checkpoints(folder, metric="accuracy", mode="max")


ABSTRACT = jax.eval_shape(lambda: _state(0))


def test_restore_returns_the_saved_state(tmp_path):
    progress = Progress(step=3, position=96, history=((2, 0.5), (3, 0.75)))
    with _open(tmp_path) as checkpoints:
        checkpoints.save(_state(3), progress)
    with _open(tmp_path) as checkpoints:
        state, restored = checkpoints.restore(ABSTRACT, 3)
    assert restored == progress
    jax.tree.map(np.testing.assert_array_equal, state, _state(3))


def test_requested_variables_or_their_averages_are_restored(tmp_path):
    """The average is saved as a weighted sum: after 3 steps with a decay of 0.5 its weights sum to 0.875."""
    with _open(tmp_path) as checkpoints:
        checkpoints.save(dataclasses.replace(_state(3), average={"params": {"w": jnp.full((8, 4), 7.0)}}), Progress(3))
    with _open(tmp_path) as checkpoints:
        abstract = checkpoints.variables(3)
        np.testing.assert_array_equal(checkpoints.restore_variables(abstract, 3)["params"]["w"], 3.0)
        mean = checkpoints.restore_variables(abstract, 3, average=0.5)
    assert mean["params"]["w"].shape == (8, 4)
    np.testing.assert_array_equal(mean["params"]["w"], 8.0)


def test_last_and_best_are_kept(tmp_path):
    with _open(tmp_path) as checkpoints:
        for step, value in [(1, 0.5), (2, 0.9), (3, None), (4, 0.7), (5, None)]:
            _saved(checkpoints, step, value)
    with _open(tmp_path) as checkpoints:
        assert checkpoints.steps == [2, 5]
        assert checkpoints.best_step == 2


def test_best_may_be_the_smallest(tmp_path):
    with Checkpoints(tmp_path, metric="loss", mode="min") as checkpoints:
        for step, value in [(1, 0.5), (2, 0.1), (3, 0.2)]:
            _saved(checkpoints, step, value)
    with Checkpoints(tmp_path, metric="loss", mode="min") as checkpoints:
        assert checkpoints.best_step == 2


def test_value_added_after_saving_ranks_the_checkpoint(tmp_path):
    """Also in another process, although the checkpoint itself does not hold the value."""
    progress = Progress(step=2, position=64, history=((1, 0.5),))
    with _open(tmp_path) as checkpoints:
        _saved(checkpoints, 1, 0.5)
        checkpoints.save(_state(2), progress)
        assert checkpoints.best_step == 1
        checkpoints.rank(progress.evaluated(0.75))
    with _open(tmp_path) as checkpoints:
        assert (checkpoints.steps, checkpoints.best_step) == ([2], 2)
        assert checkpoints.restore(ABSTRACT, 2)[1] == progress.evaluated(0.75)


def test_restored_history_excludes_later_steps(tmp_path):
    """A run that lost its last checkpoint evaluates again."""
    with _open(tmp_path) as checkpoints:
        _saved(checkpoints, 1, 0.9)
        _saved(checkpoints, 2, 0.5)
    shutil.rmtree(tmp_path / "2")
    with _open(tmp_path) as checkpoints:
        assert checkpoints.restore(ABSTRACT, 1)[1].history == ((1, 0.9),)


def test_best_is_found_if_checkpoints_hold_their_values(tmp_path):
    """As in runs from before ranking.json existed."""
    with _open(tmp_path) as checkpoints:
        for step, value in ((1, 0.9), (2, 0.5)):
            custom = {"position": step, "history": [[step, value]]}
            checkpoints._checkpointer.save(step, _state(step), metrics={"accuracy": value}, custom_metadata=custom)
            checkpoints._values[step] = value
    with _open(tmp_path) as checkpoints:
        assert (checkpoints.steps, checkpoints.best_step) == ([1, 2], 1)


def test_saving_does_not_see_later_steps(tmp_path):
    """The next step reuses the state's buffers while the write may still be in progress."""
    step = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    with _open(tmp_path) as checkpoints:
        state = _state(1)
        state = jax.tree.map(lambda x: jnp.broadcast_to(x, (1000, *x.shape)).copy(), state)
        checkpoints.save(state, Progress(step=1))
        for _ in range(10):
            state = step(state)
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
    with _open(tmp_path) as checkpoints:
        restored, _ = checkpoints.restore(abstract, 1)
    for leaf in jax.tree.leaves(restored):
        np.testing.assert_array_equal(leaf, 1.0)


def test_evaluating_a_live_run_ignores_a_checkpoint_being_written(tmp_path):
    state = _state(1).replace(params={"w": jnp.zeros(10_000_000)})  # slow to write
    with _open(tmp_path) as checkpoints:
        checkpoints.save(state, Progress(step=1))
        with Checkpoints(tmp_path, metric="accuracy", mode="max", writable=False):
            pass
    with _open(tmp_path) as checkpoints:
        assert checkpoints.steps == [1]


def test_checkpoint_is_restored_on_another_mesh(tmp_path):
    with _open(tmp_path) as checkpoints:
        checkpoints.save(_state(1), Progress(step=1))
    shardings = state_shardings(ABSTRACT, [("params/w", ("fsdp",))], make_mesh(data=2, fsdp=4))
    abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), ABSTRACT, shardings)
    with _open(tmp_path) as checkpoints:
        state, _ = checkpoints.restore(abstract, 1)
    assert state.params["w"].addressable_shards[0].data.shape == (2, 4)
    np.testing.assert_array_equal(state.params["w"], 1.0)


def test_checkpoint_of_another_model_is_rejected(tmp_path):
    with _open(tmp_path) as checkpoints:
        checkpoints.save(_state(1), Progress(step=1))
    other = jax.eval_shape(lambda: _state(0).replace(params={"other": jnp.zeros(3)}))
    with _open(tmp_path) as checkpoints, pytest.raises(UserError, match="can't be restored"):
        checkpoints.restore(other, 1)


def test_damaged_checkpoint_is_a_one_line_error(tmp_path):
    with _open(tmp_path) as checkpoints:
        checkpoints.save(_state(1), Progress(step=1))
    for path in (tmp_path / "1").rglob("*"):
        if path.is_file() and path.parent.name == "d":
            path.write_bytes(path.read_bytes()[:5])
    with _open(tmp_path) as checkpoints, pytest.raises(UserError, match="can't be restored"):
        checkpoints.restore(ABSTRACT, 1)


@pytest.mark.parametrize("name", ["lr[1e-3]", "seed=[1]/run", "back\\slash", "a*b", "why?", "{a,b} %20 #1: ~"])
def test_path_may_contain_any_characters(name, tmp_path):
    """Orbax finds its files by an unescaped glob of the path."""
    folder = tmp_path / name / "checkpoints"
    with _open(folder) as checkpoints:
        _saved(checkpoints, 3, 0.75)
    assert (folder / "3").is_dir()
    with Checkpoints(folder, metric="accuracy", mode="max", writable=False) as checkpoints:
        assert checkpoints.best_step == 3
        state, _ = checkpoints.restore(ABSTRACT, 3)
        variables = checkpoints.restore_variables(checkpoints.variables(3), 3)
    jax.tree.map(np.testing.assert_array_equal, state, _state(3))
    np.testing.assert_array_equal(variables["params"]["w"], 3.0)
