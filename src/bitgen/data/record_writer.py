"""Writes the on-disk dataset that ``records.py`` describes and reads: streamed, and complete or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path

import pyarrow as pa

from bitgen.data.arrow_folder import arrow_folder
from bitgen.data.captions import valid_unicode
from bitgen.data.records import SIDECAR, DatasetInfo, Record
from bitgen.data.source_ids import write_source_ids
from bitgen.data.whole_folder import check_output
from bitgen.guards.printable import printable
from bitgen.machine.files import replacing_folder


def _arrow_schema(info: DatasetInfo) -> pa.Schema:
    return pa.schema(
        [("image_id", pa.string()), (info.payload_column, pa.binary()), ("captions", pa.list_(pa.string()))]
    )


def _write_rows(folder: Path, records: Iterable[Record], info: DatasetInfo) -> DatasetInfo:
    """Writes the rows; returns ``info`` with its counts. Raises ``ValueError`` naming a record whose text is no valid
    Unicode: now, not when its batch is written."""
    num_images = num_captions = 0
    with arrow_folder(folder, _arrow_schema(info)) as writer:
        for record in records:
            assert info.kind == "images" or len(record.payload) == info.row_bytes, record.image_id
            try:
                "".join([record.image_id, *record.captions]).encode()
            except UnicodeEncodeError as error:
                raise ValueError(
                    f"record {printable(record.image_id, 80)} has text that is no valid Unicode"
                ) from error
            writer.add(record, len(record.payload))
            num_images += 1
            num_captions += len(record.captions)
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
