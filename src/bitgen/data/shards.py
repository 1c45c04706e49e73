"""Shards to stream from: Parquet files anywhere, or the Arrow files of a dataset folder, as numbered chunks of rows.

A chunk is a Parquet row group or an Arrow record batch: what is read at once. Where the chunks are and how many rows
each holds is known from the files' metadata, read once at the start; so the order of an epoch can be decided, and any
position in it found again, without reading an image.

Parquet: an ``image`` column (the encoded file, or ``datasets``' struct with ``bytes``) and ``captions``, ``caption`` or
``text`` (a string, a list of them, or a struct with one in each language), or several of them, ``caption_0`` ...;
``image_id`` where there is one. A folder, a file or a glob, local or as a URL
that fsspec understands (``hf://datasets/owner/name/data/train-*.parquet``, ``s3://``, ``gs://``, ``https://``).
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from bitgen.data.arrow_folder import arrow_files
from bitgen.data.captions import numbered_columns
from bitgen.data.column_types import wrong_columns
from bitgen.data.records import HOW_TO_MAKE, SIDECAR, DatasetInfo, Record, read_info
from bitgen.data.table_rows import Columns, TableRows, iter_captions
from bitgen.guards.printable import printable

logger = logging.getLogger(__name__)

_IMAGE_COLUMN, _ID_COLUMN, _CAPTION_COLUMNS = "image", "image_id", ("captions", "caption", "text")
_FOOTERS_AT_ONCE = 16
_TRIES, _FIRST_WAIT = 4, 0.5
_LARGE_CHUNK = 256 * 2**20
_HASHED_BYTES = 2**16  # of each end of a file


class Shards(Protocol):
    """Chunks of records; ``chunk_rows`` int64 ``[num_chunks]``. Workers get a copy and open their own files."""

    name: str
    info: DatasetInfo
    chunk_rows: np.ndarray
    num_files: int

    def read(self, chunk: int) -> Sequence[Record]:
        """The rows of a chunk; raises ``ValueError`` naming shard and remedy when it cannot be read."""

    def where(self, chunk: int, row: int) -> str:
        """How messages call a row, without reading anything."""

    def iter_captions(self) -> Iterator[str]:
        """All captions in order, without reading the images where the format allows it."""

    def fingerprints(self) -> list[tuple[str, str]]:
        """Name of each file, and a hash of its size, beginning and end: another file has another one, though a change
        in the middle alone is not seen."""


def open_shards(path: str) -> Shards:
    """The shards that ``path`` names.

    Raises ``ValueError`` for nothing there, a truncated or foreign file, missing columns or no rows, with the remedy.
    """
    if (Path(path) / SIDECAR).is_file():
        return ArrowShards(path)
    return ParquetShards(path)


def _again(action: Any, what: str) -> Any:
    """``action()``, tried again after an I/O error: networks fail for a moment. Raises ``ValueError`` at last."""
    for attempt in range(1, _TRIES + 1):
        try:
            return action()
        except FileNotFoundError as error:
            raise ValueError(f"{what} is gone: put it back, or start a new run without it") from error
        except Exception as error:  # pyarrow and each of fsspec's file systems raise their own kinds
            passing = isinstance(error, (OSError, TimeoutError)) and attempt < _TRIES
            if not passing:
                detail = " ".join(str(error).split())  # pyarrow's messages run over several lines
                raise ValueError(
                    f"{what} cannot be read ({type(error).__name__}: {detail}): download or write that shard again"
                ) from error
            time.sleep(_FIRST_WAIT * 2 ** (attempt - 1))


class ParquetShards:
    """The Parquet files that a folder, file, glob or URL names, in the order of their names."""

    def __init__(self, path: str) -> None:
        self.name = path
        self.info = DatasetInfo(kind="images", source=path)
        self._pid: int | None = None
        self._paths = _again(self._find, f"train_data {path}")
        if not self._paths:
            raise ValueError(
                f"train_data {path}: no Parquet file is there. Name a folder or glob of *.parquet shards with the "
                f"columns image and captions (or caption, text), or {HOW_TO_MAKE.format(folder=path)}"
            )
        # Threads: over a network a footer is a fifth of a second of waiting.
        with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as pool:
            footers = list(pool.map(self._footer, range(len(self._paths))))
        self.columns = self._columns(footers)
        rows = [footer[0] for footer in footers]
        self.num_files = len(rows)
        self._file = np.repeat(np.arange(len(rows), dtype=np.int32), [len(groups) for groups in rows])
        self._group = np.concatenate([np.arange(len(groups), dtype=np.int32) for groups in rows])
        self.chunk_rows = np.array([count for groups in rows for count in groups], dtype=np.int64)
        if self.chunk_rows.sum() == 0:
            raise ValueError(f"train_data {path}: its {self.num_files} Parquet files hold no rows; write them again")
        largest = max(size for footer in footers for size in footer[2])
        if largest > _LARGE_CHUNK:
            logger.warning(
                "%s has row groups of up to %.1f GB, and each worker holds some of them at once: write the shards "
                "again with row groups of about 100 images (`row_group_size=100` of pyarrow and datasets)",
                path,
                largest / 1e9,
            )

    # ---- files ----

    def _filesystem(self) -> Any:
        """fsspec's file system, made anew in each process: its connections do not survive a fork."""
        if self._pid != os.getpid():
            import fsspec

            self._fs, self._root = fsspec.core.url_to_fs(self.name)
            self._pid = os.getpid()
        return self._fs

    def __getstate__(self) -> dict:
        return {**{name: value for name, value in vars(self).items() if name not in ("_fs", "_root")}, "_pid": None}

    def _find(self) -> list[str]:
        fs, root = self._filesystem(), self._root
        if fs.isdir(root):  # also one whose name has brackets in it
            found = [path for path in fs.find(root) if path.endswith(".parquet")]
        elif any(character in root for character in "*?[") and not fs.exists(root):
            found = fs.glob(root)
        else:
            found = [root] if fs.exists(root) else []
        return sorted(found)

    def _open(self, file: int) -> Any:
        import pyarrow.parquet as pq

        fs, path = self._filesystem(), self._paths[file]
        if "file" in (fs.protocol if isinstance(fs.protocol, tuple) else (fs.protocol,)):
            return pq.ParquetFile(path)
        # Exact ranges, joined where near: no read-ahead of bytes that belong to other rows or columns.
        return pq.ParquetFile(fs.open(path, "rb", cache_type="none"), pre_buffer=True)

    def _footer(self, file: int) -> tuple[list[int], Any, list[int]]:
        """Rows of each row group, the schema, and bytes of each row group."""

        def read() -> tuple[list[int], Any, list[int]]:
            with self._open(file) as parquet:
                groups = [parquet.metadata.row_group(number) for number in range(parquet.metadata.num_row_groups)]
                rows = [group.num_rows for group in groups]
                return rows, parquet.schema_arrow, [group.total_byte_size for group in groups] or [0]

        return _again(read, f"Parquet shard {self._paths[file]}")

    def _columns(self, footers: list[tuple[list[int], Any, list[int]]]) -> Columns:
        """Names of the id, image and caption columns, which all shards must have."""
        schema = footers[0][1]
        captions = next(([name] for name in _CAPTION_COLUMNS if name in schema.names), numbered_columns(schema.names))
        if _IMAGE_COLUMN not in schema.names or not captions:
            raise ValueError(
                f"Parquet shard {self._paths[0]} has the columns {printable(sorted(set(schema.names)))}; it needs "
                f"image, and one of {', '.join(_CAPTION_COLUMNS)}: rename its columns"
            )
        identity = _ID_COLUMN if _ID_COLUMN in schema.names else None
        for path, (_, other, _) in zip(self._paths, footers, strict=True):
            for name in filter(None, (identity, _IMAGE_COLUMN, *captions)):
                if name not in other.names or other.field(name).type != schema.field(name).type:
                    found = printable(other.field(name).type) if name in other.names else "missing"
                    raise ValueError(
                        f"Parquet shard {path}: column {name} is {found}, but {printable(schema.field(name).type)} in "
                        f"{self._paths[0]}: give train_data shards of one dataset"
                    )
        wrong = wrong_columns(schema, _IMAGE_COLUMN, captions)
        if wrong is not None:
            raise ValueError(f"Parquet shard {self._paths[0]}: {wrong}")
        return identity, _IMAGE_COLUMN, tuple(captions)

    # ---- rows ----

    def read(self, chunk: int) -> Sequence[Record]:
        file, group = int(self._file[chunk]), int(self._group[chunk])

        def read() -> Any:
            with self._open(file) as parquet:
                identity, image, captions = self.columns
                names = [*filter(None, (identity, image)), *captions]
                return parquet.read_row_group(group, columns=names, use_threads=False)

        table = _again(read, f"Parquet shard {self._paths[file]}, row group {group}")
        where = partial(self.where, chunk)
        return TableRows(table, self.columns, where, f"{Path(self._paths[file]).name}:{group}:")

    def where(self, chunk: int, row: int) -> str:
        return f"shard {self._paths[int(self._file[chunk])]}, row group {int(self._group[chunk])}, row {row}"

    def fingerprints(self) -> list[tuple[str, str]]:
        fs = self._filesystem()

        def look(path: str) -> tuple[str, str]:
            def read() -> str:
                size = fs.size(path)
                ends = [(0, min(size, _HASHED_BYTES)), (max(0, size - _HASHED_BYTES), size)]
                return _hash(size, [fs.cat_file(path, *end) for end in ends])

            return Path(path).name, _again(read, f"Parquet shard {path}")

        with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as pool:
            return list(pool.map(look, self._paths))

    def iter_captions(self) -> Iterator[str]:
        names = self.columns[2]
        for file, path in enumerate(self._paths):
            with _again(lambda file=file: self._open(file), f"Parquet shard {path}") as parquet:
                for batch in parquet.iter_batches(1024, columns=list(names), use_threads=False):
                    yield from iter_captions(batch, names, f"Parquet shard {path}")


class ArrowShards:
    """The Arrow files of a dataset folder on this machine, read (not mapped) a record batch at a time."""

    def __init__(self, folder: str) -> None:
        self.name, self.info = folder, read_info(folder)
        remedy = f"remove {folder} and {HOW_TO_MAKE.format(folder=folder)}"
        try:
            self._paths = [str(path) for path in arrow_files(folder)]
        except (OSError, ValueError) as error:
            raise ValueError(f"dataset {folder} is damaged ({error}): {remedy}") from error
        self.num_files = len(self._paths)
        self.columns: Columns = (_ID_COLUMN, self.info.payload_column, ("captions",))
        places: list[tuple[int, int, int]] = []
        for file, path in enumerate(self._paths):
            try:
                places += [(file, offset, rows) for offset, rows in self._batches(path)]
            except Exception as error:  # pyarrow raises OSError, ArrowInvalid, EOFError ... by what is broken
                raise ValueError(
                    f"shard {path} is damaged or truncated ({type(error).__name__}: {error}): {remedy}"
                ) from error
        self._file, self._offset, self.chunk_rows = np.array(places, dtype=np.int64).reshape(-1, 3).T
        self._first_row = np.cumsum(self.chunk_rows) - self.chunk_rows
        found = int(self.chunk_rows.sum())
        if found == 0:
            raise ValueError(f"dataset {folder} is empty: {remedy}")
        if found != self.info.num_images:
            raise ValueError(
                f"dataset {folder} holds {found} images but {SIDECAR} declares {self.info.num_images}: {remedy}"
            )

    def _batches(self, path: str) -> Iterator[tuple[int, int]]:
        """(offset, rows) of a file's record batches; mapped, so that only their headers are read."""
        import pyarrow as pa

        with pa.memory_map(path) as file:
            schema = pa.ipc.read_schema(file)
            payload, captions = self.columns[1:]
            missing = {_ID_COLUMN, payload, *captions} - {*schema.names}
            if missing:
                raise ValueError(f"it lacks the columns {sorted(missing)}")
            wrong = wrong_columns(schema, payload, captions)
            if wrong is not None:
                raise ValueError(wrong)
            size = file.size()
            while (offset := file.tell()) < size:
                try:
                    message = pa.ipc.read_message(file)
                except EOFError:  # the end-of-stream mark
                    return
                yield offset, pa.ipc.read_record_batch(message, schema).num_rows
            raise ValueError("its end is missing")

    def read(self, chunk: int) -> Sequence[Record]:
        import pyarrow as pa

        path = self._paths[int(self._file[chunk])]

        def read() -> Any:
            # Not mapped: pages of a map stay in the process's memory after the rows are gone.
            with pa.OSFile(path) as file:
                schema = pa.ipc.read_schema(file)
                file.seek(int(self._offset[chunk]))
                return pa.ipc.read_record_batch(pa.ipc.read_message(file), schema)

        return TableRows(_again(read, f"shard {path}"), self.columns, partial(self.where, chunk), "")

    def where(self, chunk: int, row: int) -> str:
        return f"shard {self._paths[int(self._file[chunk])]}, record {int(self._first_row[chunk]) + row}"

    def iter_captions(self) -> Iterator[str]:
        import pyarrow as pa

        for path in self._paths:
            with pa.memory_map(path) as file:
                for batch in pa.ipc.open_stream(file):
                    yield from iter_captions(batch, self.columns[2], f"shard {path}")

    def fingerprints(self) -> list[tuple[str, str]]:
        return [(Path(path).name, _again(partial(_hash_of_ends, path), f"shard {path}")) for path in self._paths]


def _hash_of_ends(path: str) -> str:
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        first = file.read(_HASHED_BYTES)
        file.seek(max(0, size - _HASHED_BYTES))
        return _hash(size, [first, file.read()])


def _hash(size: int, ends: list[bytes]) -> str:
    sha = hashlib.sha256(str(size).encode())
    for end in ends:
        sha.update(b"|" + end)
    return sha.hexdigest()
