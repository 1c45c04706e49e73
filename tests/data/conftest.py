"""What the data tests share: tiny images, a tiny tokenizer, small datasets."""

from pathlib import Path

import numpy as np
import pytest

from bitgen.data.record_writer import write_dataset
from bitgen.data.records import DatasetInfo, Record
from bitgen.data.tokenizer import train_bpe
from bitgen.model.processing_bitgen import BitGenProcessor
from support.data import captions_for, encode, noise, write_images


@pytest.fixture(scope="session")
def tokenizer():
    return train_bpe([caption for index in range(20) for caption in captions_for(index)], 300)


@pytest.fixture
def processor(tokenizer) -> BitGenProcessor:
    return BitGenProcessor(tokenizer, image_size=8, max_length=32)


@pytest.fixture
def image_folder(tmp_path) -> Path:
    """Ten 20 x 14 PNG images with 1, 2, 3, 1, ... captions: 19 in all."""
    records = [Record(f"{index}.png", encode(noise(index)), captions_for(index)) for index in range(10)]
    return write_images(tmp_path / "images", records)


@pytest.fixture
def feature_folder(tmp_path) -> Path:
    """Six int8 feature rows [4, 3]; scale 0.5, zero point 7."""
    rows = np.random.default_rng(0).integers(-128, 128, (6, 4, 3), dtype=np.int8)
    records = [Record(f"{index}.jpg", rows[index].tobytes(), captions_for(index)) for index in range(6)]
    info = DatasetInfo("features", "made up", feature_shape=(4, 3), feature_dtype="int8", scale=0.5, zero_point=7)
    write_dataset(tmp_path / "features", records, info)
    np.save(tmp_path / "rows.npy", rows)
    return tmp_path / "features"
