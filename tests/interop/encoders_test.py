import pytest

from research.base.errors import UserError
from research.interop import source
from tests.interop import tiny_encoder


def _read(folder):
    kind, config = source.kind_of(folder)
    return kind.read(folder, config)


class TestTheFolder:
    """The contents of its config and tokenizer files."""

    def test_folder_is_read(self, tmp_path):
        tiny_encoder.write(tmp_path)
        assert _read(tmp_path).transform == {"tokenizer": f"{tmp_path}/vocab.txt", "lowercase": True, "vocab_size": 57}
        (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
        assert not _read(tmp_path).transform["lowercase"]

    def test_an_embedding_may_have_more_rows_than_the_tokenizer_has_tokens(self, tmp_path):
        """Published embeddings are padded to a multiple of 8 or 64."""
        tiny_encoder.write(tmp_path, vocab_size=64)
        found = _read(tmp_path)
        assert (found.model["vocab_size"], found.transform["vocab_size"]) == (64, 57)

    def test_tokenizer_json_comes_first(self, tmp_path):
        tiny_encoder.write(tmp_path, "roberta")
        (tmp_path / "vocab.txt").write_text("x\n")
        assert _read(tmp_path).transform["tokenizer"] == f"{tmp_path}/tokenizer.json"

    @pytest.mark.parametrize(
        ("files", "message"),
        [
            ({"config.json": None}, r"config.json can't be read: \[Errno 2\] No such file"),
            ({"config.json": "{"}, "config.json can't be read: Expecting property name"),
            ({"config.json": "[]"}, "config.json is not a JSON object"),
            ({"config.json": '{"model_type": "t5"}'}, "config.json is of model_type 't5'; known: bert, .*, resnet"),
            ({"vocab.txt": None}, "has neither tokenizer.json nor vocab.txt"),
            ({"vocab.txt": "[PAD]\n[UNK]\n"}, r"vocab.txt lacks \[CLS\], \[SEP\], \[MASK\]"),
            ({"tokenizer.json": "{}"}, "tokenizer.json can't be read"),
            ({"tokenizer_config.json": '{"do_lower_case": null}'}, "tokenizer_config.json has do_lower_case None"),
            ({"tokenizer_config.json": '{"do_lower_case": "no"}'}, "tokenizer_config.json has do_lower_case 'no'"),
            ({"tokenizer_config.json": '{"strip_accents": false}'}, "sets strip_accents or tokenize_chinese_chars"),
            (
                {"vocab.txt": "\n".join([*tiny_encoder.VOCABULARY, "more"])},
                r"vocab.txt has token ids up to 57, .* 57 rows \(vocab_size in config.json\)",
            ),
        ],
    )
    def test_invalid_folder_is_a_one_line_error(self, files, message, tmp_path):
        tiny_encoder.write(tmp_path)
        for name, content in files.items():
            (tmp_path / name).unlink() if content is None else (tmp_path / name).write_text(content)
        with pytest.raises(UserError, match=message) as caught:
            _read(tmp_path)
        assert "\n" not in str(caught.value)
