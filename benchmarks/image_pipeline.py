# mypy: disable-error-code="misc"
"""The image pipeline: decoding, augmentations, batches of CIFAR-10; and cropping on the host and on the device.

python benchmarks/image_pipeline.py

Prepare CIFAR-10 for TFDS first. Uses a temporary cache folder. Figures are images per second of CPU time of all
threads: the speed of one core, regardless of other load on the machine.
"""

import dataclasses
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np

ROUNDS = 7


def rate(images: int, action: Callable[[], Any]) -> float:
    """Images per second of CPU time: the median of several rounds of at least a tenth of a second."""
    action()
    rounds = []
    for _ in range(ROUNDS):
        repeats, began = 0, time.process_time()
        while time.process_time() - began < 0.1:
            action()
            repeats += 1
        rounds.append(repeats * images / (time.process_time() - began))
    return statistics.median(rounds)


def table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    print("\n| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for row in rows:
        print("| " + " | ".join(f"{x:,.0f}" if isinstance(x, float) else str(x) for x in row) + " |")


def photographs(count: int, size: int) -> np.ndarray:
    """uint8 [N, size, size, 3], about as detailed as photographs: noise at several scales."""
    from PIL import Image

    random = np.random.default_rng(0)
    images = np.zeros((count, size, size, 3))
    for scale in (4, 16, size):
        for i in range(count):
            noise = Image.fromarray(random.integers(0, 256, (scale, scale, 3), dtype=np.uint8))
            images[i] += (
                np.asarray(noise.resize((size, size), Image.Resampling.BICUBIC)) * (0.45, 0.45, 0.1)[scale == size]
            )
    return np.clip(images, 0, 255).astype(np.uint8)


def decoding() -> None:
    from PIL import Image

    from research.data.images.decoding import EvalTransform, decode

    def encoded(size: int, file_format: str, **options: Any) -> list[bytes]:
        files = []
        for image in photographs(32, size):
            file = io.BytesIO()
            Image.fromarray(image).save(file, file_format, **options)
            files.append(file.getvalue())
        return files

    rows: list[tuple[Any, ...]] = []
    for size, file_format in ((32, "PNG"), (224, "JPEG"), (400, "JPEG")):
        files = encoded(size, file_format, **({"quality": 90} if file_format == "JPEG" else {}))
        each = sum(map(len, files)) / len(files) / 1e3
        speed = rate(len(files), lambda files=files: [decode(file, 3) for file in files])
        rows.append((f"{file_format} {size}×{size}, {each:.1f} kB", speed))
    large, view = photographs(32, 400), EvalTransform(256, 224, "bilinear")
    rows.append(("resize 400 to 256, centre crop 224", rate(32, lambda: view.all(large))))
    table(("decoding", "images/s"), rows)


def augmentations() -> None:
    from research.configs import defaults
    from research.data import stateless_rng
    from research.data.images.augment import Augment
    from research.data.images.decoding import EvalTransform

    off, view = Augment(**defaults.image(channels=3).augment), EvalTransform(None, None, "bilinear")
    changes: dict[str, dict[str, Any]] = {
        "crop_padding": {"crop_padding": 4},
        "crop_padding, reflect": {"crop_padding": 4, "crop_border": "reflect"},
        "flip": {"flip": True},
        "crop_padding and flip": {"crop_padding": 4, "flip": True},
        "random_resized_crop": {"random_resized_crop": (0.08, 1.0)},
        "randaugment, 2 operations": {"randaugment_ops": 2},
        "erasing of a quarter": {"erasing": 0.25},
        "mixup": {"mixup": 0.2},
        "cutmix": {"cutmix": 1.0},
    }
    data = {}
    for size, count in ((32, 128), (224, 32)):
        data[size] = photographs(count, size), stateless_rng.keys(0, np.zeros(count), np.arange(count)[:, None])[:, 0]

    def speed(size: int, change: Augment) -> float:
        images, keys = data[size]
        if change.mixes:
            return rate(len(images), lambda: change.mixed(images, images[::-1], keys))
        return rate(len(images), lambda: change(images, keys, view))

    rows = [
        (name, *(speed(size, dataclasses.replace(off, **change)) for size in data)) for name, change in changes.items()
    ]
    table(("augmentation", "images/s, 128 of 32×32", "32 of 224×224"), rows)


def batches() -> None:
    from research.configs import defaults
    from research.data import load
    from research.data.pipeline import Rows, Stream, training_batches

    section = defaults.defaults().data
    section.name = "cifar10"
    section.transform = defaults.image(channels=3)
    for start in ("first", "second"):
        wall, processor = time.perf_counter(), time.process_time()
        load.load(section)
        spent = time.perf_counter() - wall, time.process_time() - processor
        print(f"\nCIFAR-10, {start} start: {spent[0]:.2f} s ({spent[1]:.2f} s of CPU time)")

    rows = []
    for name, change in (
        ("unchanged", {}),
        ("crop_padding and flip", {"crop_padding": 4, "flip": True}),
        ("these and mixup", {"crop_padding": 4, "flip": True, "mixup": 0.2}),
        ("these and randaugment", {"crop_padding": 4, "flip": True, "randaugment_ops": 2}),
    ):
        section.transform = defaults.image(channels=3)
        section.transform.augment.update(change)
        stream = Stream.unpacked(load.load(section).split("train"))

        def made(stream: Stream = stream) -> None:
            for _ in training_batches(
                stream, batch_rows=128, start_step=0, steps=50, total_rows=None, seed=0, rows=Rows()
            ):
                pass

        rows.append((name, rate(50 * 128, made)))
    table(("training batches of 128, CIFAR-10", "images/s"), rows)


def host_and_device() -> None:
    """Cropping and flipping in numpy, and in a jitted function on the device."""
    import jax
    import jax.numpy as jnp

    from research.data import stateless_rng
    from research.data.images.augment import flipped, padded_crops

    @jax.jit
    def on_device(images: jax.Array, key: jax.Array) -> jax.Array:
        batch, height, width, channels = images.shape
        wider = jnp.pad(images, ((0, 0), (4, 4), (4, 4), (0, 0)))
        places = jax.random.randint(key, (batch, 2), 0, 9)
        crop = jax.vmap(lambda image, at: jax.lax.dynamic_slice(image, (*at, 0), (height, width, channels)))
        mirrored = jax.random.bernoulli(key, 0.5, (batch, 1, 1, 1))
        crops = crop(wider, places)
        return jnp.where(mirrored, crops[:, :, ::-1], crops)

    def speeds(size: int, count: int) -> tuple[float, float]:
        images = photographs(count, size)
        keys = stateless_rng.keys(0, np.zeros(count), np.arange(count)[:, None])[:, 0]
        placed, key = jax.device_put(images), jax.random.key(0)
        return (
            rate(count, lambda: flipped(padded_crops(images, keys, padding=4, border="zero"), keys)),
            rate(count, lambda: on_device(placed, key).block_until_ready()),
        )

    rows = [(f"{count} of {size}×{size}", *speeds(size, count)) for size, count in ((32, 128), (32, 512), (224, 64))]
    table(("crop_padding and flip", "numpy, images/s", f"jax on {jax.devices()[0].device_kind}, images/s"), rows)


def main() -> None:
    with tempfile.TemporaryDirectory() as cache:
        os.environ["RESEARCH_CACHE"] = cache
        decoding()
        augmentations()
        batches()
        host_and_device()


if __name__ == "__main__":
    main()
