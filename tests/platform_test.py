import jax
import pytest

from research.platform import keep_compiled_programs


@pytest.fixture(autouse=True)
def _restore():
    before = jax.config.jax_compilation_cache_dir
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def test_compiled_programs_go_to_the_users_cache_by_processor(monkeypatch, tmp_path):
    monkeypatch.setenv("RESEARCH_CACHE", str(tmp_path))
    jax.config.update("jax_compilation_cache_dir", None)
    keep_compiled_programs()
    folder = jax.config.jax_compilation_cache_dir
    assert folder.startswith(f"{tmp_path}/xla/")
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setattr("research.platform._processor", lambda: "another")
    keep_compiled_programs()
    assert jax.config.jax_compilation_cache_dir == f"{tmp_path}/xla/another" != folder


@pytest.mark.parametrize("own", ["", "/somewhere"])
def test_a_choice_of_the_users_stays(own):
    jax.config.update("jax_compilation_cache_dir", own)
    keep_compiled_programs()
    assert jax.config.jax_compilation_cache_dir == own
