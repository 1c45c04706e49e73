"""The on-disk dataset: one Arrow row an image, written once (``record_writer.py``) and memory-mapped by training.

A dataset is a folder in the layout of ``datasets.Dataset.save_to_disk`` plus a sidecar ``bitgen_dataset.json``.
Columns:

- ``image_id: string``, the image's name in its source,
- ``image: binary`` (the encoded file, byte for byte) or ``features: binary`` (a row ``[P, C]``, C order,
  little-endian),
- ``captions: list<string>``, all captions of the image together, so that a row is everything known of it.

Bytes stay encoded or quantised on disk, which keeps a row many times smaller than its tensor. This module knows
nothing of models or tokenizers: the scripts in ``data_prep/`` use it too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from bitgen.data.arrow_folder import open_table
from bitgen.data.column_types import streamed_alone, wrong_columns
from bitgen.data.sidecar import FORMAT_VERSION, SIDECAR, read_sidecar

if TYPE_CHECKING:
    import pyarrow as pa

FEATURE_DTYPES = ("int8", "uint8", "float16", "float32")
_NULL = type(None)
_FIELDS: dict[str, type | tuple[type, ...]] = {
    "kind": str,
    "source": str,
    "num_images": int,
    "num_captions": int,
    "feature_shape": (list, _NULL),
    "feature_dtype": (str, _NULL),
    "scale": (float, int, _NULL),
    "zero_point": (int, _NULL),
    "encoder": (str, _NULL),
    "format_version": int,
}

HOW_TO_MAKE = (
    "make it with `python data_prep/flickr8k.py --captions captions.txt --split split_train.txt --images DIR "
    "--output {folder}`, `python data_prep/coco.py --annotations captions.json --images DIR --output {folder}`, "
    "`python data_prep/image_folder.py --folder DIR --output {folder}` for images of your own, or another script of "
    "data_prep/ (each explains itself with --help)"
)


class Record(NamedTuple):
    """An image and its captions; ``payload``: the encoded image file, or the raw bytes of its ``[P, C]``."""

    image_id: str
    payload: bytes
    captions: list[str]


@dataclass(frozen=True)
class DatasetInfo:
    """The sidecar: what a folder holds. ``feature_*``, ``scale`` and ``zero_point`` belong to ``kind == "features"``.

    Quantised features dequantise as ``(value - zero_point) * scale``.
    """

    kind: str
    source: str
    num_images: int = 0
    num_captions: int = 0
    feature_shape: tuple[int, int] | None = None
    feature_dtype: str | None = None
    scale: float | None = None
    zero_point: int | None = None
    encoder: str | None = None
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        if self.kind not in ("images", "features"):
            raise ValueError(f"kind is {self.kind!r}; it must be 'images' or 'features'")
        if self.kind == "images":
            return
        shape = self.feature_shape
        if shape is None or len(shape) != 2 or any(type(n) is not int or n < 1 for n in shape):
            raise ValueError(f"feature_shape is {shape!r}; it must be two positive numbers [patches, channels]")
        if self.feature_dtype not in FEATURE_DTYPES:
            raise ValueError(f"feature_dtype is {self.feature_dtype!r}; it must be one of {', '.join(FEATURE_DTYPES)}")
        if self.scale is not None and not self.scale > 0:
            raise ValueError(f"scale is {self.scale!r}; it must be positive")
        if self.feature_dtype.endswith("int8") and (self.scale is None or self.zero_point is None):
            raise ValueError(
                f"{self.feature_dtype} features need scale and zero_point: value = (v - zero_point) * scale"
            )

    @property
    def payload_column(self) -> str:
        """Name of the column that holds the payload."""
        return "image" if self.kind == "images" else "features"

    @property
    def row_bytes(self) -> int:
        """Bytes of one feature row."""
        assert self.feature_shape is not None and self.feature_dtype is not None
        return int(np.prod(self.feature_shape)) * np.dtype(self.feature_dtype).itemsize

    def dequantize(self, payload: bytes) -> np.ndarray:
        """Turns one stored feature row into float32 ``[P, C]``."""
        assert self.kind == "features" and self.feature_shape is not None
        if len(payload) != self.row_bytes:
            raise ValueError(
                f"holds {len(payload)} bytes of features; {SIDECAR} declares {list(self.feature_shape)} x "
                f"{self.feature_dtype} = {self.row_bytes} bytes"
            )
        dtype = np.dtype(self.feature_dtype).newbyteorder("<")
        values = np.frombuffer(payload, dtype=dtype).reshape(self.feature_shape).astype(np.float32)
        if self.scale is not None:
            values = (values - np.float32(self.zero_point or 0)) * np.float32(self.scale)
        return values


def read_info(folder: str | Path) -> DatasetInfo:
    """Reads the sidecar of a dataset folder; ``ValueError`` says what is missing or wrong in it and how to make one."""
    remedy = HOW_TO_MAKE.format(folder=folder)
    raw = read_sidecar(folder, ("images", "features"), _FIELDS, ("kind", "source", "num_images"), remedy)
    try:
        if raw.get("feature_shape") is not None:
            raw["feature_shape"] = tuple(raw["feature_shape"])
        return DatasetInfo(**raw)
    except ValueError as error:
        raise ValueError(f"{Path(folder) / SIDECAR}: {error}; {remedy}") from error


class RecordReader:
    """Random access to the rows of a dataset folder, memory-mapped, so that workers share one copy.

    Raises ``ValueError`` for a missing, foreign, damaged or empty folder. ``reader[i]`` gives a :class:`Record`.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.info = read_info(self.folder)
        remedy = f"remove {self.folder} and {HOW_TO_MAKE.format(folder=self.folder)}"
        table = open_table(self.folder, {"image_id", self.info.payload_column, "captions"}, remedy)
        wrong = wrong_columns(table.data.schema, self.info.payload_column, ["captions"])
        if wrong is not None:
            raise ValueError(f"dataset {self.folder}: its {wrong}, or {remedy}")
        if (column := streamed_alone(table.data.schema, self.info.payload_column, "captions")) is not None:
            raise ValueError(
                f"dataset {self.folder}: its column {column} is of a type that is read while streaming alone. Write "
                f"--streaming True, or {remedy}"
            )
        if len(table) == 0:
            raise ValueError(f"dataset {self.folder} is empty: {remedy}")
        if len(table) != self.info.num_images:
            raise ValueError(
                f"dataset {self.folder} holds {len(table)} images but {SIDECAR} declares {self.info.num_images}: "
                f"{remedy}"
            )
        self._table = table
        # Arrow arrays: names and captions of a million images are megabytes here, gigabytes as Python strings.
        self._image_ids = table.data.column("image_id")
        self._captions = table.data.column("captions")
        self._payloads = table.data.column(self.info.payload_column)

    def __getstate__(self) -> dict:
        # Workers started by spawn map the files again; pickling the columns would copy every image into each of them.
        return {"folder": self.folder}

    def __setstate__(self, state: dict) -> None:
        RecordReader.__init__(self, state["folder"])

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> Record:
        return Record(self.image_id(index), self.payload(index), self.captions(index))

    def image_id(self, index: int) -> str:
        """Name of image ``index`` in its source."""
        return self._image_ids[index].as_py()

    def image_ids(self) -> pa.ChunkedArray:
        """Names of all images, an Arrow column."""
        return self._image_ids

    def captions(self, index: int) -> list[str]:
        """All captions of image ``index``."""
        return self._captions[index].as_py() or []

    def payload(self, index: int) -> bytes:
        """Stored bytes of image ``index``: an encoded image, or a raw feature row."""
        return self._payloads[index].as_py() or b""

    @property
    def fingerprint(self) -> str:
        """Changes with the rows: written anew, a dataset has another one; copied elsewhere, the same."""
        return f"{self._table._fingerprint} {self.info}"

    def captions_per_image(self) -> np.ndarray:
        """Number of captions of every image, ``int64 [num_images]``, without reading the captions."""
        import pyarrow.compute as pc

        return pc.fill_null(pc.list_value_length(self._captions), 0).to_numpy().astype(np.int64)

    def iter_captions(self) -> Iterator[str]:
        """All captions in order, one chunk in memory at a time (to train a tokenizer)."""
        for chunk in self._captions.chunks:
            for captions in chunk:
                yield from captions.as_py() or []
