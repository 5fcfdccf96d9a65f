"""Bodies that are invalid in some way, for every path of the service that reads one: see tests/serve_fuzz.py."""

import base64
import dataclasses
import functools
import io
import json
import random
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from tests.serve_text_bodies import write


@dataclasses.dataclass(frozen=True)
class Case:
    """A request, and what is wrong with it."""

    kind: str
    path: str
    headers: dict[str, str]
    body: bytes
    method: str = "POST"


class Raw(str):
    """JSON that Python's `json` does not write."""


# fmt: off
NASTY: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 1.5, -0.0, "", " ", "a dull film", "é", "日本語", "🎬", "\0", "\n", "x" * 2000, [], {},
    [[]], [{}], [None], [0], [""], ["a", "b"], ["a", "b", "c"], [["a", "b", "c"]], {"a": 1}, {"": None}, [1, "a", None],
    [[[[[]]]]], 2**31, 2**32, 2**53 + 1, 2**63, 2**64, -(2**63) - 1, 10**30,
    *map(Raw, (
        "NaN", "Infinity", "-Infinity", "1e400", "-1e400", "1e-400", "1E5", "9" * 5000, "1" + "0" * 400,
        "-" + "9" * 400, "1e39", "1e308", "-1e308", "5e-324", '"\\ud800"', '"\\udfff\\ud800"', '"\\u0000"', "'a'", "01",
        "+1", ".5", "1.", "nul", "undefined", '"\x01"', '{"a":1,"a":2}', "[1,]", "/**/1",
    )),
)
TEXTS: tuple[str, ...] = (
    "a gripping, moving film", "dull", "word " * 100_000, "x" * 100_000, "x" * 100_001, "\u0301" * 50_000,
    "\ufdfa" * 5000, "\u200b" * 3000, "[CLS] [SEP] [PAD] [MASK]", "\x00\x01\x02", "ß" * 100, "\u2028",
    "a\u0300" * 9000, "🏳️‍🌈" * 500, "中" * 20_000, ", " * 40_000,
)
CONTENT_TYPES = (
    "application/json", "", "text/plain", "application/octet-stream", "multipart/form-data",
    "multipart/form-data; boundary=", "multipart/form-data; boundary=x", 'multipart/form-data; boundary="',
    "application/x-www-form-urlencoded", "multipart/form-data; boundary=" + "b" * 300, "*/*", "image/png",
    "application/json; charset=utf-16", "multipart/mixed; boundary=x",
    "multipart/form-data; charset=nonsense; boundary=x",
)
# Bodies of nearly 8 MiB that repeat a part, which take long to read: (before, part, after).
LONG = (
    (b'{"inputs":[', b"0,", b"0]}"), (b'{"inputs":[[', b"0,", b"0]]}"), (b'{"inputs":[', b"[],", b"[]]}"),
    (b'{"inputs":[', b"{},", b"{}]}"), (b'{"inputs":[', b'"",', b'""]}'), (b'{"inputs":[', b'"",0,', b'""]}'),
    (b'{"inputs":[', b'{"a":[0]},', b"{}]}"), (b'{"inputs":[', b'["a"],', b'["a"]]}'), (b'{"ids":[', b"1,", b"1]}"),
    (b'{"inputs":[{"name":"features","shape":[', b"1,", b'1],"datatype":"FP32","data":[]}]}'),
    (b'{"inputs":[{"name":"features","shape":[1,10],"datatype":"FP32","data":[', b"[],", b"0]}]}"),
    (b'{"inputs":[{"name":"sentence","shape":[2000000],"datatype":"BYTES","data":[', b'"",', b'""]}]}'),
    (b'{"inputs":[],"outputs":[', b"{},", b"{}]}"), (b'{"query":"a","texts":[', b"0,", b"0]}"), (b"", b" ", b"0"),
    (b"", b"[", b""), (b'{"a":"', b"\\u00e9", b'"}'), (b"", b'{"a":', b""), (b'{"prompt":[', b"1,", b"1]}"),
    (b'{"prompt":"', b"a ", b'"}'), (b'{"prompt":[', b'"a",', b'"a"]}'), (b'{"prompt":"a","stop":[', b'"a",', b'"a"]}'),
    (b'{"messages":[', b'{"role":"user","content":"a"},', b"0]}"), (b'{"messages":[', b"{},", b"0]}"),
    (b'{"messages":[{"role":"user","content":"', b"a", b'"}]}'),
    (b'{"messages":[{"role":"user","content":[', b'{"type":"text","text":"a"},', b'{"type":"text","text":"a"}]}]}'),
    (b"--x\r\n", b"a:b\r\n", b""),
    (b'--x\r\nContent-Disposition: form-data; name="features"; filename="a"\r\n\r\n', b"\r\n--", b"\r\n--x--"),
)
# fmt: on


def _png(width: int, height: int, bits: int = 1) -> bytes:
    """A black PNG of any size, made line by line."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    packer, line = zlib.compressobj(9), bytes(1 + (width * bits + 7) // 8)
    data = b"".join(packer.compress(line) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def _file(form: str, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    found = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(found, form)
    return found.getvalue()


@functools.cache
def images() -> tuple[bytes, ...]:
    """Files: valid ones of many formats and modes, bombs, a program in PostScript, and a chunk that unpacks to much."""
    forms = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "ICO", "PPM", "TGA", "PCX", "SGI", "EPS", "PDF", "DDS")
    valid = [_file(form) for form in forms]
    modes = [_file("PNG", mode=mode) for mode in ("1", "L", "P", "RGBA", "LA", "I;16")] + [_file("TIFF", mode="F")]
    sizes = [_file("PNG", size) for size in ((1, 1), (1, 500), (9, 8))] + [_file("JPEG", (8, 8), "CMYK")]
    bombs = [_png(50_000, 50_000), _png(4096, 4096, 8), _png(16_000_000, 1), _png(1, 65_000)]
    text = b"Comment\0\0" + zlib.compress(bytes(50_000_000), 9)
    chunk = struct.pack(">I", len(text)) + b"zTXt" + text + struct.pack(">I", zlib.crc32(b"zTXt" + text))
    small = _file("PNG", mode="L")
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n{} loop\n%%EOF\n"
    return (
        *valid,
        *modes,
        *sizes,
        *bombs,
        small[:33] + chunk + small[33:],
        script,
        b"",
        b"\x89PNG\r\n\x1a\n",
        b"GIF89a",
    )


def dumped(value: Any) -> str:
    """JSON, in which `Raw` stands as it is."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(name)}:{dumped(each)}" for name, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(dumped, value)) + "]"
    return json.dumps(value)


def _text(rng: random.Random) -> str:
    return rng.choice(TEXTS[:2] * 20 + TEXTS)


def _image(rng: random.Random) -> bytes:
    found = rng.choice(images())
    if found and rng.random() < 0.5:
        found = found[: rng.randrange(len(found))] if rng.random() < 0.5 else _flipped(rng, found)
    return found


def _input(rng: random.Random, model: str) -> Any:
    if model == "features":
        return [rng.uniform(-0.1, 0.1) for _ in range(10)]
    if model == "image":
        pixels = np.zeros(rng.choice([(8, 8, 1)] * 5 + [(8, 8), (8, 8, 3), (9, 9, 1), (0, 8, 1), (64, 64, 1)]))
        return rng.choice((base64.b64encode(_image(rng)).decode(), pixels.tolist()))
    if model == "table":
        return {"size": rng.choice((1, 2.5, "3", -1)), "group": rng.choice("abz")}
    texts = {"text": ("sentence",), "pair": ("sentence1", "sentence2")}[model]
    return {name: _text(rng) for name in texts} if model == "pair" else _text(rng)


def _predict(rng: random.Random) -> tuple[str, Any]:
    model = rng.choice(MODELS)
    inputs = [_input(rng, model) for _ in range(rng.choice((1, 1, 1, 2, 5, 64, 65)))]
    return f"/models/{model}/predict", {"inputs": inputs, "truncate": rng.random() < 0.8}


def _infer(rng: random.Random) -> tuple[str, Any]:
    model = rng.choice(MODELS)
    names = {"pair": ("sentence1", "sentence2"), "text": ("sentence",), "table": ("size", "group")}
    tensors = []
    for name in names.get(model, ("image" if model == "image" and rng.random() < 0.5 else "features",)):
        data: Any = [_text(rng)]
        tensor: dict[str, Any] = {"name": name, "shape": [1], "datatype": "BYTES", "data": data}
        if model == "features" or name == "size":
            shape = rng.choice(([1, 10], [1], [10], [1, -10], [2**40, 2**40], [0], [1] * 9, [10, 1], []))
            kind = rng.choice(("FP32", "FP64", "FP16", "INT64", "UINT8", "BOOL", "BF16", "BYTES"))
            tensor = {"name": name, "shape": shape, "datatype": kind, "data": [0.5] * rng.choice((1, 10, 10, 11))}
        elif model == "image":
            tensor["data"] = [base64.b64encode(_image(rng)).decode()]
        if rng.random() < 0.2:
            tensor["parameters"] = {"binary_data_size": rng.choice((0, 1, -1, 40, 2**62, "4", 1.5, True, None))}
            tensor.pop("data" if rng.random() < 0.7 else "shape")
        tensors.append(tensor)
    body: dict[str, Any] = {"id": "a", "inputs": tensors}
    if rng.random() < 0.3:
        body["outputs"] = [{"name": rng.choice(("scores", "label", "prediction", "outputs", "x"))}]
        body["parameters"] = {"binary_data_output": rng.choice((True, False, 1, "true"))}
    version = rng.choice(("",) * 8 + ("/versions/3", "/versions/x"))
    return f"/v2/models/{model}{version}/infer", body


def _tei(rng: random.Random) -> tuple[str, Any]:
    path = rng.choice(("predict", "rerank", "embed", "embed_all", "similarity", "tokenize", "decode", "v1/embeddings"))
    tokens = [rng.randrange(-1, 400) for _ in range(rng.choice((0, 1, 10, 600)))]
    text: Any = rng.choice((_text(rng), [_text(rng)], [_text(rng), _text(rng)], [[_text(rng), "b"]], tokens, [tokens]))
    shapes: dict[str, dict[str, Any]] = {
        "rerank": {"query": _text(rng), "texts": text if isinstance(text, list) else [text], "model": "pair"},
        "similarity": {"inputs": {"source_sentence": _text(rng), "sentences": [_text(rng)]}},
        "decode": {"ids": tokens},
        "v1/embeddings": {"input": text, "encoding_format": rng.choice(("float", "base64", "x"))},
    }
    body = shapes.get(path, {"inputs": text})
    options = {
        "model": rng.choice((None, "text", "text", *MODELS, "x", "../x")),
        "truncate": rng.choice((True, False, None)),
        "truncation_direction": rng.choice(("left", "Right")),
        "dimensions": rng.choice((1, 16, 17, 0, -1, 2**70)),
        "raw_scores": True,
        "normalize": False,
    }
    return f"/{path}", {**body, **{key: options[key] for key in rng.sample(sorted(options), rng.choice((0, 0, 1, 2)))}}


MODELS = ("text", "image", "features", "table", "pair")
BODIES: tuple[Callable[[random.Random], tuple[str, Any]], ...] = (_predict, _infer, _tei, write)


def _mutated(rng: random.Random, value: Any) -> Any:
    """The value with something in it replaced, left out, added, repeated or nested."""
    if isinstance(value, dict) and value and rng.random() < 0.8:
        name = rng.choice(sorted(value))
        if rng.random() < 0.1:
            return {key: each for key, each in value.items() if key != name}
        if rng.random() < 0.05:
            return {**value, rng.choice(("more", "", "x" * 1000)): rng.choice(NASTY)}
        return {**value, name: _mutated(rng, value[name])}
    if isinstance(value, list) and value and rng.random() < 0.8:
        place = rng.randrange(len(value))
        if rng.random() < 0.1:
            return value * rng.choice((2, 70, 1000)) if len(dumped(value)) < 2000 else value[:place]
        return [*value[:place], _mutated(rng, value[place]), *value[place + 1 :]]
    if rng.random() < 0.05:
        depth = rng.choice((10, 150, 1000, 100_000))
        return Raw("[" * depth + "]" * depth) if rng.random() < 0.5 else Raw('{"a":' * depth + "1" + "}" * depth)
    return rng.choice(NASTY)


def _flipped(rng: random.Random, body: bytes) -> bytes:
    found = bytearray(body)
    for _ in range(rng.choice((1, 1, 3, 20))):
        if found:
            found[rng.randrange(len(found))] = rng.randrange(256)
    return bytes(found)


def _damaged(rng: random.Random, body: bytes) -> bytes:
    """The bytes cut, changed, in another encoding, or replaced."""
    place = rng.randrange(len(body) + 1)
    return rng.choice(
        (
            lambda: body[:place],
            lambda: _flipped(rng, body),
            lambda: (
                body[:place] + rng.choice((b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\x00", b"\xf8\x88")) + body[place:]
            ),
            lambda: b"\xef\xbb\xbf" + body,
            lambda: body.decode("utf-8", "replace").encode("utf-16"),
            lambda: body + body,
            lambda: zlib.compress(body),
            lambda: rng.randbytes(rng.choice((1, 100, 5000))),
            lambda: b"",
            lambda: b" " * rng.choice((1, 9 * 2**20)),
        )
    )()


def _form(rng: random.Random) -> Case:
    """Multipart: fields of one model with files or text, and its syntax broken."""
    model = rng.choice(("image", "image", "table", "text"))
    names = {"image": ["features"], "table": ["size", "group"], "text": ["sentence"]}[model]
    names = rng.choice((names, names, [*names, "more"], names[:-1], names * rng.choice((2, 64, 65, 1100)), [""]))
    parts = []
    for name in names:
        content = _image(rng) if model == "image" and len(names) < 5 else _text(rng).encode()[:1000]
        file = rng.choice(("", '; filename="a.png"', "; filename*=utf-8''%ff", '; filename="' + "a" * 5000 + '"'))
        head = f'Content-Disposition: form-data; name="{name}"{file}\r\n'
        head += rng.choice(("", "", "Content-Type: image/png\r\n", "X: " + "y" * 20_000 + "\r\n", "no colon\r\n"))
        parts.append(f"--x\r\n{head}\r\n".encode() + content + b"\r\n")
    body = b"".join(parts) + rng.choice((b"--x--\r\n", b"--x--\r\n", b"", b"--x", b"--y--\r\n"))
    if rng.random() < 0.3:
        body = _damaged(rng, body)
    kind = rng.choice(("multipart/form-data; boundary=x",) * 4 + CONTENT_TYPES)
    return Case("form", f"/models/{model}/predict", {"Content-Type": kind}, body)


def _binary(rng: random.Random) -> Case:
    """The binary extension of the Open Inference Protocol, with a wrong size somewhere."""
    path, body = _infer(rng)
    tail = rng.randbytes(rng.choice((0, 1, 4, 40, 40, 41, 1000)))
    if rng.random() < 0.3:
        tail = struct.pack("<I", rng.choice((0, 4, 2**31, 2**32 - 1))) + tail
    for tensor in body["inputs"]:
        tensor.pop("data", None)
        tensor["parameters"] = {"binary_data_size": rng.choice((len(tail), len(tail), 40, 0, -1, 2**63, 10**30))}
    head = dumped(_mutated(rng, body) if rng.random() < 0.3 else body).encode()
    length = rng.choice((len(head),) * 6 + (0, -1, len(head) + 1, len(head) + len(tail), "x", "", "1e3", "9" * 30, "٣"))
    name = "Inference-Header-Content-Length"
    return Case("binary", path, {"Content-Type": "application/octet-stream", name: str(length)}, head + tail)


def _json(rng: random.Random) -> Case:
    path, body = rng.choice(BODIES)(rng)
    kind = rng.choice(("mutated",) * 4 + ("plain", "plain", "plain", "damaged", "damaged"))
    if kind == "mutated":
        body = _mutated(rng, body)
    found = dumped(body).encode()
    if kind == "damaged":
        found = _damaged(rng, found)
    headers = {"Content-Type": rng.choice(("application/json",) * 40 + CONTENT_TYPES)}
    if rng.random() < 0.05:
        headers[rng.choice(("Content-Encoding", "Accept", "X-Request-Id", "Api-Key"))] = rng.choice(
            ("gzip", "x" * 3000, "é")
        )
    method = rng.choice(("POST",) * 30 + ("PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "GET"))
    return Case(kind, path, headers, found, method)


def _long(rng: random.Random) -> Case:
    before, part, after = rng.choice(LONG)
    body = before + part * ((8 * 2**20 - len(before) - len(after)) // len(part)) + after
    path, _ = rng.choice(BODIES)(rng)
    headers = {"Content-Type": "multipart/form-data; boundary=x"} if before.startswith(b"--") else {}
    return Case("long", f"/models/{rng.choice(MODELS)}/predict" if headers else path, headers, body)


def case(seed: int, number: int) -> Case:
    """Deterministic for a given seed and number."""
    rng = random.Random(f"{seed} {number}")
    return rng.choices((_json, _form, _binary, _long), (0.7, 0.15, 0.14, 0.01))[0](rng)
