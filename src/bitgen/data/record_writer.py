"""Writes the on-disk dataset that ``records.py`` describes and reads: streamed, and complete or not at all."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from bitgen.data.captions import valid_unicode
from bitgen.data.records import SIDECAR, DatasetInfo, Record
from bitgen.data.source_ids import write_source_ids
from bitgen.data.whole_folder import check_output
from bitgen.guards.printable import printable
from bitgen.machine.files import replacing_folder

# A record batch is what a reader pages in at once; 8 MiB keeps writing at constant memory whatever the images' sizes.
_BATCH_BYTES = 8 * 2**20
_SHARD_BYTES = 500 * 2**20


def _arrow_schema(info: DatasetInfo) -> pa.Schema:
    return pa.schema(
        [("image_id", pa.string()), (info.payload_column, pa.binary()), ("captions", pa.list_(pa.string()))]
    )


class _ShardWriter:
    """Writes rows as Arrow stream files of about 500 MiB, in record batches of about 8 MiB."""

    def __init__(self, folder: Path, info: DatasetInfo) -> None:
        self.folder, self.schema = folder, _arrow_schema(info)
        self.names: list[str] = []
        self._columns: list[list] = [[] for _ in self.schema]
        self._batch_bytes = self._shard_bytes = 0
        self._sink: Any = None
        self._writer: Any = None

    def add(self, record: Record) -> None:
        """Raises ``ValueError`` naming a record whose text is no valid Unicode: now, not when its batch is written."""
        try:
            "".join([record.image_id, *record.captions]).encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"record {printable(record.image_id, 80)} has text that is no valid Unicode") from error
        for column, value in zip(self._columns, record, strict=True):
            column.append(value)
        self._batch_bytes += len(record.payload)
        if self._batch_bytes >= _BATCH_BYTES:
            self._flush()
        if self._shard_bytes >= _SHARD_BYTES:
            self.close()

    def _flush(self) -> None:
        if not self._columns[0]:
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


def _write_rows(folder: Path, records: Iterable[Record], info: DatasetInfo) -> DatasetInfo:
    """Writes what ``datasets.load_from_disk`` reads; returns ``info`` with its counts.

    ``save_to_disk`` would copy the rows once more, in batches of 1,000 whatever their size (gigabytes for
    photographs), so it writes an empty dataset, whose list of files is then filled in.
    """
    from datasets import Dataset
    from datasets.utils import disable_progress_bars, enable_progress_bars, is_progress_bar_enabled

    bars = is_progress_bar_enabled()
    disable_progress_bars()
    try:
        Dataset(_arrow_schema(info).empty_table()).save_to_disk(str(folder))
    finally:
        if bars:
            enable_progress_bars()
    for path in folder.glob("*.arrow"):
        path.unlink()
    num_images = num_captions = 0
    writer = _ShardWriter(folder, info)
    try:
        for record in records:
            assert info.kind == "images" or len(record.payload) == info.row_bytes, record.image_id
            writer.add(record)
            num_images += 1
            num_captions += len(record.captions)
    finally:
        writer.close()
    state_path = folder / "state.json"
    state = json.loads(state_path.read_text(encoding="utf-8"))
    state["_data_files"] = [{"filename": name} for name in writer.names]
    state["_fingerprint"] = uuid.uuid4().hex[:16]
    state_path.write_text(json.dumps(state, indent=2), encoding="utf-8")
    return replace(info, num_images=num_images, num_captions=num_captions)


def write_dataset(
    folder: str | Path,
    records: Iterable[Record],
    info: DatasetInfo,
    overwrite: bool = False,
    source_ids: Mapping[str, int] | None = None,
) -> DatasetInfo:
    """Streams ``records`` into a dataset folder at constant memory; returns ``info`` with its counts filled in.

    All or nothing: rows go to a temporary folder beside ``folder``, which takes its name only when complete, so a
    crash or an exception from ``records`` leaves what was there before. ``source_ids``: the numbers that the source
    gives its images, by image_id. Raises ``ValueError`` for no records or a
    taken ``folder``.
    """
    check_output(folder, overwrite, SIDECAR)
    with replacing_folder(folder) as complete:
        info = replace(_write_rows(complete, records, info), source=valid_unicode(info.source))
        if info.num_images == 0:
            raise ValueError(f"no usable record for {folder}: nothing was written")
        text = json.dumps(asdict(info), indent=2, ensure_ascii=False)
        (complete / SIDECAR).write_text(text + "\n", encoding="utf-8")
        write_source_ids(complete, source_ids or {})
    return info
