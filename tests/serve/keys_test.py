"""API keys."""

import hashlib
import os
import time

import pytest

from research import serve_keys
from research.base.errors import UserError
from research.serve import keys
from research.serve.keys import Keys, new_key, read_keys

HASH = hashlib.sha256(b"secret").hexdigest()


@pytest.fixture
def file(tmp_path):
    return tmp_path / "keys"


@pytest.fixture
def _at_once(monkeypatch):
    monkeypatch.setattr(keys, "_CHECK_SECONDS", 0.0)


def test_a_key_is_known_by_its_hash(file):
    key, line = new_key("ana")
    file.write_text(f"# clients\n\n{line}  # a comment\nbob sha256:{HASH.upper()}\n")
    found = Keys(file)
    assert [found.client(text) for text in (key.encode(), b"secret")] == ["ana", "bob"]
    for wrong in (b"", b"secre", b"secret ", HASH.encode(), bytes.fromhex(HASH)):
        assert found.client(wrong) is None
    assert key not in line


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"a sha256:{HASH}\n\na sha256:{HASH}\n", ":3 has the name 'a' a second time"),
        (f"a sha256:{HASH}\nmy-own-key\n", ":2 is not 'NAME sha256:HEX'"),
        (f"a sha256:{HASH[1:]}\n", ":1 is not"),
        (f"a md5:{HASH}\n", ":1 is not"),
        (f"a b sha256:{HASH}\n", ":1 is not"),
        ("# none\n", "has no keys"),
    ],
)
def test_invalid_files_are_refused_in_one_line(file, text, said):
    file.write_text(text)
    with pytest.raises(UserError) as error:
        read_keys(file)
    assert f"{file}" in str(error.value)
    assert said in str(error.value)
    assert "my-own-key" not in str(error.value)  # whoever wrote a key there must not find it in logs
    assert "\n" not in str(error.value)


def test_a_file_that_cannot_be_read(file):
    with pytest.raises(UserError, match="cannot be read: FileNotFoundError"):
        Keys(file)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="cannot be read: UnicodeDecodeError"):
        Keys(file)


@pytest.mark.usefixtures("_at_once")
def test_the_file_is_read_again_when_it_changes(file, caplog):
    file.write_text(f"ana sha256:{HASH}\n")
    found = Keys(file)
    assert found.client(b"secret") == "ana"
    file.write_text(f"bob sha256:{HASH}\n")
    os.utime(file, (time.time() + 5,) * 2)
    assert found.client(b"secret") == "bob"
    for change in (lambda: file.write_text("broken\n"), file.unlink):
        change()
        assert [found.client(b"secret") for _ in range(3)] == ["bob"] * 3
    errors = [record.message for record in caplog.records if record.levelname == "ERROR"]
    assert len(errors) == 2  # once for each change
    assert f"{file}:1" in errors[0]
    key, line = new_key("eve")
    file.write_text(line)
    assert [found.client(text) for text in (key.encode(), b"secret")] == ["eve", None]


def test_the_command_prints_a_new_key_and_its_line(file, capsys):
    lines = set()
    for _ in range(2):
        assert serve_keys.main(["ana"]) == 0
        said = capsys.readouterr()
        file.write_text(said.out)
        assert Keys(file).client(said.err.split()[-1].encode()) == "ana"
        lines.add(said.out)
    assert len(lines) == 2
    with pytest.raises(UserError, match="not 1 to 64 letters"):
        serve_keys.main(["a b"])
