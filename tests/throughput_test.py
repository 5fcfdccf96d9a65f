import pytest

from research.throughput import seconds_of_a_seed


@pytest.mark.parametrize(
    ("summary", "seconds"),
    [
        ({"step": 50, "throughput": {"step_time_ms": 20.0}}, 1.0),
        ({"step": 50, "throughput": {"step_time_ms": 20.0}, "seeds": 4}, 0.25),
        ({"step": 50, "throughput": {"step_time_ms": None}, "seeds": 4}, None),
        ({"status": "failed"}, None),
    ],
)
def test_what_a_seed_took(summary, seconds):
    assert seconds_of_a_seed(summary) == seconds
