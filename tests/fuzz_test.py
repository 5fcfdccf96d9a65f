"""Some commands of tests/fuzz.py: those that are quickly rejected or traced."""

import pytest

from tests import fuzz

QUICK = ("configs/linear_line.py:embedded", "configs/logistic_digits.py:embedded")


def test_no_override_ends_in_a_stack_trace(tmp_path):
    results = [fuzz.run(case, f"{tmp_path}/{i}", whole=False) for i, case in enumerate(fuzz.cases(40, 0, QUICK))]
    assert [result for result in results if result not in ("accepted", "refused")] == []
    assert {"accepted", "refused"} == set(results)


@pytest.mark.slow
def test_no_override_of_any_config_ends_in_a_stack_trace():
    assert fuzz.main(["--count=200", "--seed=3"]) == 0
