"""Small data: images, features, texts, and the folders that hold them."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bitgen.data.record_writer import write_dataset
from bitgen.data.records import DatasetInfo, Record
from bitgen.data.text_shards import TextInfo, TextShardWriter, encode_documents, tokenizer_sha256, write_text_info


def captions_for(index: int) -> list[str]:
    """One to three captions of an image."""
    return [f"image {index} seen {way}" for way in ("from afar", "from near", "from above")[: 1 + index % 3]]


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The bytes of a file of an image."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(seed: int, width: int = 20, height: int = 14) -> Image.Image:
    """An image of uniform noise."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def jpeg(seed: int, width: int = 32, height: int = 24) -> bytes:
    """The bytes of a JPEG file of noise."""
    return encode(noise(seed, width, height), "JPEG")


def picture(number: int) -> Image.Image:
    """Sixteen random colours in large squares: what an image tower tells from another such picture."""
    return noise(number, 4, 4).resize((40, 32), Image.Resampling.NEAREST)


def write_images(folder: Path, records: Iterable[Record], **options: Any) -> Path:
    """A dataset of images; returns its folder."""
    write_dataset(folder, records, DatasetInfo("images", "made up"), **options)
    return folder


def write_features(folder: Path, captions: list[list[str]], shape: tuple[int, int] = (4, 6), seed: int = 1) -> Path:
    """A dataset of random float32 features, one image for each list of captions; returns its folder."""
    rows = np.random.default_rng(seed).standard_normal((len(captions), *shape)).astype("<f4")
    records = [Record(f"{n}.png", row.tobytes(), own) for n, (row, own) in enumerate(zip(rows, captions, strict=True))]
    write_dataset(folder, records, DatasetInfo("features", "made up", feature_shape=shape, feature_dtype="float32"))
    return folder


def write_text_corpus(folder: Path, tokenizer: Any, sources: dict[str, list]) -> Path:
    """A text corpus; ``sources`` maps a name to documents, each ``(ids, words)`` or a text. Returns its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    counts = []
    for name, documents in sources.items():
        writer = TextShardWriter(folder, name, len(tokenizer))
        for document in documents:
            if isinstance(document, str):
                document = (encode_documents(tokenizer, [document])[0], len(document.split()))
            writer.add(*document)
        counts.append(writer.close())
    write_text_info(folder, TextInfo(tokenizer_sha256(tokenizer), len(tokenizer), "uint16", tuple(counts), {}, {}))
    return folder
