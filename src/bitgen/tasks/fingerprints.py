"""What data is by its content, not by its name: for resuming, and to keep held-out data apart from training data."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from bitgen.data.dataset import PairDataset
from bitgen.data.mixing import MixedDataset
from bitgen.data.records import RecordReader
from bitgen.data.stream import StreamDataset
from bitgen.data.text_and_pairs import TextAndPairs
from bitgen.guards.printable import printable

# Held-out images whose bytes are compared with the training image of the same name.
_COMPARED = 200


def readers_of(train: Any) -> list[RecordReader]:
    """The prepared datasets that training reads; none for what is drawn or streamed."""
    if isinstance(train, TextAndPairs):
        return readers_of(train.pairs)
    datasets = train.datasets if isinstance(train, MixedDataset) else [train]
    readers = [dataset.reader for dataset in datasets if isinstance(dataset, PairDataset)]
    return [reader for reader in readers if isinstance(reader, RecordReader)]


def fingerprint_of(train: Any) -> str | None:
    """A hash of the names and captions of all training images, in their order; None where there are none on disk.

    Data that is prepared anew from the same files has the same one. The images themselves are not read.
    """
    readers = readers_of(train)
    return fingerprint_of_readers(readers) if readers else None


def fingerprint_of_readers(readers: Sequence[RecordReader]) -> str:
    """See :func:`fingerprint_of`."""
    sha = hashlib.sha256()
    for reader in readers:
        for names in reader.image_ids().chunks:
            sha.update(b"\0".join(str(name).encode("utf-8", "replace") for name in names.to_pylist()))
        sha.update(reader.captions_per_image().astype("<i8").tobytes())
        for caption in reader.iter_captions():
            sha.update(str(caption).encode("utf-8", "replace") + b"\0")
    return sha.hexdigest()


def text_fingerprint(train: Any) -> dict[str, str]:
    """That of the text corpus that training reads (``TextBlocks.fingerprint``); none where there is none."""
    return {"text": train.text.fingerprint()} if isinstance(train, TextAndPairs) else {}


def shard_fingerprints(train: Any) -> dict[str, str]:
    """A hash of each shard that training streams from, under its number and name; none where nothing is streamed.

    Cheap, for shards may be many and far: of its size, beginning and end.
    """
    if not isinstance(train, StreamDataset):
        return {}
    found = itertools.chain.from_iterable(shards.fingerprints() for shards in train.sources)
    return {f"shard {number} ({printable(name, 100)})": value for number, (name, value) in enumerate(found)}


def trained_on(train: Any, val: PairDataset) -> tuple[int, int]:
    """How many held-out images are training images too, of how many that were compared.

    Only images of the same name are compared, byte by byte, and no more than 200 of them.
    """
    held_out = val.reader
    readers = readers_of(train)
    if not readers or not isinstance(held_out, RecordReader):
        return 0, 0
    wanted = {name: row for row, name in enumerate(held_out.image_ids().to_pylist())}
    rows = np.unique(np.linspace(0, len(held_out) - 1, _COMPARED).astype(int)).tolist()
    looked_at, shared = set(rows), set()
    for reader in readers:
        names = itertools.chain.from_iterable(chunk.to_pylist() for chunk in reader.image_ids().chunks)
        for row, name in enumerate(names):
            mine = wanted.get(name)
            if mine is None or mine not in looked_at or mine in shared:
                continue
            if reader.payload(row) == held_out.payload(mine):
                shared.add(mine)
    return len(shared), len(rows)
