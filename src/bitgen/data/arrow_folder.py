"""Folders in the layout of ``datasets.Dataset.save_to_disk``: written as a stream, read memory-mapped."""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitgen.guards.json_files import BadJson, check_keys, read_json
from bitgen.guards.names import inside

if TYPE_CHECKING:
    import pyarrow as pa

# A record batch is what a reader pages in at once; 8 MiB keeps writing at constant memory whatever the rows' sizes.
_BATCH_BYTES = 8 * 2**20
_SHARD_BYTES = 500 * 2**20


class ArrowWriter:
    """Writes rows as Arrow stream files of about 500 MiB, in record batches of about 8 MiB."""

    def __init__(self, folder: Path, schema: pa.Schema) -> None:
        self.folder, self.schema = folder, schema
        self.names: list[str] = []
        self._columns: list[list] = [[] for _ in self.schema]
        self._batch_bytes = self._shard_bytes = 0
        self._sink: Any = None
        self._writer: Any = None

    def add(self, row: Sequence[Any], size: int) -> None:
        """Adds a row, a value a column, of about ``size`` bytes."""
        for column, value in zip(self._columns, row, strict=True):
            column.append(value)
        self._batch_bytes += size
        if self._batch_bytes >= _BATCH_BYTES:
            self._flush()
        if self._shard_bytes >= _SHARD_BYTES:
            self.close()

    def _flush(self) -> None:
        import pyarrow as pa

        if not self._columns[0] and self.names:  # a table without rows still has a file, which says its columns
            return
        if self._writer is None:
            self.names.append(f"data-{len(self.names):05d}.arrow")
            self._sink = pa.OSFile(str(self.folder / self.names[-1]), "wb")
            self._writer = pa.ipc.new_stream(self._sink, self.schema)
        arrays = [pa.array(column, type=field.type) for column, field in zip(self._columns, self.schema, strict=True)]
        self._writer.write_batch(pa.record_batch(arrays, schema=self.schema))
        self._shard_bytes += self._batch_bytes
        self._batch_bytes = 0
        self._columns = [[] for _ in self.schema]

    def close(self) -> None:
        """Finishes the open shard; the next row starts another."""
        self._flush()
        if self._writer is not None:
            self._writer.close()
            self._sink.close()
        self._sink = self._writer = None
        self._shard_bytes = 0


@contextlib.contextmanager
def arrow_folder(folder: Path, schema: pa.Schema) -> Iterator[ArrowWriter]:
    """A writer of what ``datasets.load_from_disk`` reads; the folder is complete when the block is left.

    ``save_to_disk`` would copy the rows once more, in batches of 1,000 whatever their size (gigabytes for
    photographs), so it writes an empty dataset, whose list of files is then filled in.
    """
    from datasets import Dataset
    from datasets.utils import disable_progress_bars, enable_progress_bars, is_progress_bar_enabled

    bars = is_progress_bar_enabled()
    disable_progress_bars()
    try:
        Dataset(schema.empty_table()).save_to_disk(str(folder))
    finally:
        if bars:
            enable_progress_bars()
    for path in folder.glob("*.arrow"):
        path.unlink()
    writer = ArrowWriter(folder, schema)
    try:
        yield writer
    finally:
        writer.close()
    state_path = folder / "state.json"
    state = json.loads(state_path.read_text(encoding="utf-8"))
    state["_data_files"] = [{"filename": name} for name in writer.names]
    state["_fingerprint"] = uuid.uuid4().hex[:16]
    state_path.write_text(json.dumps(state, indent=2), encoding="utf-8")


def arrow_files(folder: str | Path) -> list[Path]:
    """The Arrow files of such a folder, as its ``state.json`` lists them.

    Raises ``OSError`` when it cannot be read, ``ValueError`` for another kind of file, or a name out of the folder.
    """
    listed = read_json(Path(folder) / "state.json", dict, {"_data_files": list})["_data_files"]
    for entry in listed:
        if not isinstance(entry, dict):
            raise BadJson("state.json lists a file that is no object")
        check_keys(entry, {"filename": str})
    return [inside(folder, entry["filename"]) for entry in listed]


def open_table(folder: Path, columns: Collection[str], remedy: str) -> Any:
    """The memory-mapped ``datasets.Dataset`` of such a folder; it has ``columns``.

    Raises:
        ValueError: it cannot be read, is damaged, or lacks a column; the message ends in ``remedy``.
    """
    from datasets import Dataset, load_from_disk

    try:
        arrow_files(folder)
        table = load_from_disk(str(folder))
    except PermissionError as error:
        raise ValueError(f"cannot read dataset {folder}: {error}; check its permissions") from error
    except Exception as error:  # pyarrow, json and datasets each raise their own kinds for damaged files
        raise ValueError(f"dataset {folder} is damaged ({type(error).__name__}: {error}): {remedy}") from error
    if not isinstance(table, Dataset) or not set(columns) <= set(table.column_names):
        found = getattr(table, "column_names", None)
        raise ValueError(f"dataset {folder} lacks the columns {sorted(columns)} (it has {found}): {remedy}")
    return table
