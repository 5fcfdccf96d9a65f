# mypy: disable-error-code="arg-type"
"""The search for methods: which results are worth having, and when it stops."""

from types import SimpleNamespace

import pytest

from research.base.errors import UserError
from research.compress import search as module
from research.compress.__main__ import main
from research.compress.search import Candidate, fastest, plot, search, table
from research.compress.tuning import Tuning
from research.runs.certificate import read_certificate
from research.runs.rundir import RunDir
from research.serve.repository import Certified, sources

FOUND = [
    Candidate("slow and exact", None, 0.90, 0.0, 10.0, 10.0, 100),
    Candidate("small", None, 0.895, 0.5, 5.0, 10.0, 25),
    Candidate("fast and wrong", None, 0.80, 10.0, 1.0, 10.0, 25),
    Candidate("beaten", None, 0.894, 0.6, 6.0, 10.0, 30),
]


def test_pareto_and_the_best():
    beaten = {each.name for each in FOUND if any(each.is_beaten_by(other) for other in FOUND)}
    assert beaten == {"beaten"}
    assert not FOUND[0].is_beaten_by(FOUND[0])
    assert fastest(FOUND, 0.5).name == "small"
    assert fastest(FOUND, 20).name == "fast and wrong"
    assert fastest(FOUND, -1) is None
    lines = table(FOUND, "accuracy", 0.5).splitlines()
    assert [line[2:4] for line in lines[1:]] == [" *", ">*", "  ", " *"]
    assert plot(FOUND, "accuracy", 0.5).axes[0].get_ylabel() == "accuracy, points lost"


class Clocked:
    """A compression whose chains take known times."""

    def __init__(self, seconds):
        self.now, self.seconds, self.made = 0.0, seconds, []
        self.original = SimpleNamespace(
            variables={"params": {"encoder": {}}},
            config=SimpleNamespace(model=SimpleNamespace(num_layers=4)),
        )

    def run(self, steps, folder, tuning):
        name = "-".join(map(str, steps))
        self.made.append(name)
        self.now += self.seconds.get(name, 1.0)
        if name == "bfloat16":
            raise UserError("not here")
        times = [{"p50_ms": 1.0}]
        return {
            "metric": {"compressed": 0.9, "drop": 0.1},
            "times": {"compressed": times, "original": times},
            "bytes_in_memory": {"compressed": 1},
        }


def test_budget_and_failures(tmp_path):
    said, clocked = [], Clocked({"ffn=0.5-int8": 100.0})
    options = {"max_drop": 0.5, "say": said.append, "clock": lambda: clocked.now}
    found = search(clocked, tmp_path, minutes=3, tuning=Tuning(), **options)
    # 100 s of 180 are gone after ffn: what trains may take as long again.
    assert clocked.made == ["int8", "bfloat16", "int8_weights", "vocab-int8", "ffn=0.5-int8"]
    assert [each.name for each in found] == ["int8", "int8_weights", "vocab-int8", "ffn0.5-int8"]
    assert said[0] == "bfloat16: not here"
    assert len(said) == 3
    assert search(Clocked({"int8": 10.0}), tmp_path, minutes=0, tuning=None, **options) == []


@pytest.mark.extended
def test_search_names_the_best_and_goes_on(workdir, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(module, "candidates", lambda compression: [("int8",), ("layers=9",)])
    folder = tmp_path / "found"
    command = [f"--workdir={workdir}", "--checkpoint=last", "--search", f"--to={folder}", "--max_drop=50"]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "the encoder has 3 layers" in out
    assert (folder / module.PLOT).is_file()
    before = read_certificate(RunDir.open(folder / "best"))
    assert before["methods"] == ["int8"]
    assert sources([], [str(folder / "best")], certified=Certified(50.0))
    assert main(command) == 0
    assert read_certificate(RunDir.open(folder / "best")) == before  # not made again
    with pytest.raises(UserError, match="leave --method out"):
        main([*command, "--method=int8"])
