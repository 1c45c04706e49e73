"""Writing the dataset from items, leaving out what cannot be used, and the summary at the end."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

from _common.problems import Problems, Unusable
from bitgen.data.captions import valid_unicode
from bitgen.data.record_writer import write_dataset
from bitgen.data.records import DatasetInfo, Record, RecordReader
from bitgen.data.source_ids import source_id

logger = logging.getLogger("data_prep")

EXCLUDED = "image of an --exclude dataset (left out)"
COPY = "image with the same bytes as an earlier one (kept as another image; their captions count as wrong for it)"


class Item(NamedTuple):
    """One image to be written: its name, how to get its payload (which may raise ``Unusable``), its captions."""

    name: str
    load: Callable[[], bytes]
    captions: list[str]


def hash_of(payload: bytes) -> int:
    """Tells payloads apart: eight bytes, for a set of millions."""
    return int.from_bytes(blake2b(payload, digest_size=8).digest(), "little")


class Excluded:
    """The images of the datasets in ``folders``, by name, or by COCO's number: one picture of COCO's has several names,
    such as 000000000007.jpg and val2014/COCO_val2014_000000000007.jpg. The numbers are those in such names alone, since
    other files in COCO's layout have numbers of their own."""

    def __init__(self, folders: list[Path]) -> None:
        self.names: dict[Path, set[str | int]] = {}
        self.met: set[Path] = set()
        for folder in folders:
            reader = RecordReader(folder)
            names = [reader.image_id(row) for row in range(len(reader))]
            self.names[folder] = {*names, *(source_id({}, name) for name in names)}

    def __contains__(self, name: str) -> bool:
        one = {name, source_id({}, name)}
        found = {folder for folder, names in self.names.items() if one & names}
        self.met |= found
        return bool(found)

    def warn_of_useless(self) -> None:
        """Say of which folder no image was met."""
        for folder in self.names.keys() - self.met:
            logger.warning(
                "--exclude %s: none of its %d images was met here by name. Look whether the names are of one kind.",
                folder,
                len(RecordReader(folder)),
            )


def _records(items: Iterable[Item], excluded: Excluded, problems: Problems, total: int) -> Iterator[Record]:
    from tqdm import tqdm

    written = 0
    seen: set[int] = set()
    for item in tqdm(items, total=total - problems.lost, desc="writing", unit="image", disable=None):
        if item.name in excluded:
            problems.add(EXCLUDED, item.name)
            continue
        try:
            payload = item.load()
        except Unusable as error:
            name = f"{item.name} ({error.detail})" if error.detail else item.name
            problems.add(error.reason, name, lost=True)
            problems.stop_if_too_many(total)
            continue
        digest = hash_of(payload)
        if digest in seen:
            problems.add(COPY, item.name)
        seen.add(digest)
        written += 1
        yield Record(valid_unicode(item.name), payload, item.captions)
    problems.stop_if_too_many(total)
    if not written:
        raise ValueError("no image is left to write:\n  " + "\n  ".join(problems.lines()))


def write(
    items: Iterable[Item],
    info: DatasetInfo,
    problems: Problems,
    total: int,
    args: argparse.Namespace,
    source_ids: Mapping[str, int] | None = None,
) -> DatasetInfo:
    """Writes ``items``, stops when too many of the ``total`` images asked for are lost, and logs the summary."""
    problems.stop_if_too_many(total)
    excluded = Excluded(args.exclude)
    records = _records(items, excluded, problems, total)
    info = write_dataset(args.output, records, info, overwrite=args.overwrite, source_ids=source_ids)
    excluded.warn_of_useless()
    for line in problems.lines():
        logger.warning(line)
    size = sum(path.stat().st_size for path in args.output.iterdir()) / 1e6
    logger.info("%d images, %d captions -> %s (%.1f MB)", info.num_images, info.num_captions, args.output, size)
    if problems.lost:
        logger.info("%d of %d images could not be used; the warnings above say why", problems.lost, total)
    return info
