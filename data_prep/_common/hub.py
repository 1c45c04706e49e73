"""Datasets of the Hugging Face Hub with a column of images and columns of captions."""

from __future__ import annotations

import logging
from argparse import Namespace
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from _common.images import check_image, read_image
from _common.problems import Problems, Unusable
from _common.reading import clean_captions
from _common.tables import caption_columns, texts_of
from _common.writing import Item, hash_of
from bitgen.data.arrow_folder import arrow_files
from bitgen.data.captions import valid_unicode
from bitgen.data.column_types import holds_bytes
from bitgen.guards.json_files import read_json
from bitgen.guards.names import BadName, inside
from bitgen.guards.printable import printable

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger("data_prep")

_AT_ONCE = 100  # rows


class HubRows(NamedTuple):
    """A split: its rows with the images left encoded, the columns, and the folders that files of it may lie in."""

    rows: Dataset
    image: str
    captions: list[str]
    name: str
    folders: list[Path]


def load_hub(args: Namespace) -> HubRows:
    """A split of a dataset of the Hub, or of a folder: of Parquet files, or as ``save_to_disk`` writes it.

    The Hub's cache keeps what is downloaded, so a restart goes on. Raises ``ValueError`` when the dataset cannot be
    had, or its splits or columns leave a doubt.
    """
    dataset = args.hub_dataset
    rows, split = _load(dataset, args.config, args.split)
    name = f"--hub_dataset {dataset}, split {split},"
    image = _image_column(rows, args.image_column, name)
    columns = caption_columns([other for other in rows.column_names if other != image], args.caption_column, name)
    folders = [*_folders(dataset), *filter(None, [args.images])]
    return HubRows(_encoded(rows, image), image, columns, valid_unicode(f"{dataset}/{split}"), folders)


def _load(dataset: str, config: str | None, split: str | None) -> tuple[Dataset, str]:
    from datasets import load_dataset
    from huggingface_hub import constants

    from bitgen.data.tokenizer import hub_answers

    folder = Path(dataset)
    name = f"--hub_dataset {dataset}, split {split or 'train'},"
    remedy = (
        f"where the Hub cannot be reached, fetch it elsewhere with `hf download --repo-type dataset {dataset} "
        "--local-dir DIR` and pass --hub_dataset DIR"
    )
    if not (folder.is_dir() or constants.HF_HUB_OFFLINE or hub_answers()):
        raise ValueError(
            f"{name} cannot be loaded: {constants.ENDPOINT} does not answer. If it is in the Hub's cache, set "
            f"HF_HUB_OFFLINE=1; {remedy}"
        )
    try:
        if any((folder / file).is_file() for file in ("dataset_dict.json", "state.json")):
            return _saved(folder, split)
        split = split or _one_split(_split_names(dataset, config), dataset)
        return load_dataset(dataset, config, split=split), split
    except _ManySplits as error:
        raise ValueError(f"--hub_dataset {dataset} {error}") from error
    except Exception as error:  # no such dataset, split or configuration, offline: each raises its own kind
        reason = printable(next(iter(str(error).splitlines()), "no reason given"))
        raise ValueError(f"{name} cannot be loaded ({type(error).__name__}: {reason}); {remedy}") from error


class _ManySplits(ValueError):
    """Which split is meant cannot be told."""


def _saved(folder: Path, split: str | None) -> tuple[Dataset, str]:
    """What ``save_to_disk`` wrote to a folder: one split, or a folder for each."""
    from datasets import load_from_disk

    if (folder / "dataset_dict.json").is_file():
        names = read_json(folder / "dataset_dict.json", dict, {"splits": list})["splits"]
        split = split or _one_split([str(name) for name in names], str(folder))
        folder = inside(folder, split)
    arrow_files(folder)  # they are its own
    return load_from_disk(str(folder)), split or "train"


def _split_names(dataset: str, config: str | None) -> list[str]:
    """The splits of a dataset; ``train`` where they cannot be asked for, as offline: loading says what is wrong."""
    from datasets import get_dataset_split_names

    try:
        return get_dataset_split_names(dataset, config)
    except Exception:  # as in `_load`
        return ["train"]


def _one_split(present: list[str], dataset: str) -> str:
    """``train``, else the only split there is."""
    if "train" in present:
        return "train"
    if len(present) != 1:
        raise _ManySplits(f"has the splits {printable(', '.join(present))}; name one with --split")
    logger.info("--hub_dataset %s has the split %s alone: it is taken", dataset, printable(present[0]))
    return present[0]


def _image_column(rows: Dataset, asked: str | None, name: str) -> str:
    from datasets import Image

    images = [column for column, kind in rows.features.items() if isinstance(kind, Image)]
    encoded = [field.name for field in rows.features.arrow_schema if holds_bytes(field.type)]
    candidates = images or encoded
    found = asked or (candidates[0] if len(candidates) == 1 else None)
    if found not in {*images, *encoded}:
        raise ValueError(
            f"{name} has these columns of images: {printable(', '.join(candidates)) or 'none'}; name one with "
            f"--image_column. All columns: {printable(', '.join(rows.column_names))}"
        )
    return found


def _encoded(rows: Dataset, image: str) -> Dataset:
    from datasets import Image

    return rows.cast_column(image, Image(decode=False)) if isinstance(rows.features[image], Image) else rows


def _folders(dataset: str) -> list[Path]:
    """Where a cell's ``path`` may lead: the dataset's own folder, in the Hub's cache too, or an unpacked archive."""
    from datasets import config
    from huggingface_hub import constants

    if Path(dataset).is_dir():
        return [Path(dataset)]
    return [
        Path(constants.HF_HUB_CACHE) / f"datasets--{dataset.replace('/', '--')}",
        Path(config.EXTRACTED_DATASETS_PATH),
    ]


def hub_items(hub: HubRows, limit: int | None, args: Namespace, problems: Problems) -> tuple[list[Item], int]:
    """Items of the images that have a caption, and the number of images; called by the split and the row's number.

    Rows of one image, wherever they stand, are one item with the captions of all: their payloads' hashes are equal.
    ``ValueError`` names the row of a cell that is no text.
    """
    owners: dict[object, int] = {}
    captions: dict[int, list[str]] = {}
    rows = hub.rows.select(range(min(limit or len(hub.rows), len(hub.rows))))
    for number, cell, row in _cells(rows, hub, problems):
        payload = (cell.get("bytes") or cell.get("path")) if isinstance(cell, dict) else cell
        key = hash_of(payload) if isinstance(payload, bytes) and payload else payload or -1 - number
        owner = owners.setdefault(key, number)
        if owner != number:
            problems.add("row with the image of an earlier row (joined with it)", _id(hub, owner))
        captions.setdefault(owner, []).extend(texts_of(row, hub.captions, _id(hub, number)))
    items, total = [], len(captions) + problems.lost
    images = rows.select_columns([hub.image])
    for number, texts in captions.items():
        texts = clean_captions(_id(hub, number), texts, problems)
        if texts:
            load = partial(_payload, images, number, hub, args.check_images, args.max_image_pixels)
            items.append(Item(_id(hub, number), load, texts))
        else:
            problems.add("image without a caption", _id(hub, number), lost=True)
    return items, total


def _id(hub: HubRows, number: int) -> str:
    return f"{hub.name}/{number:07d}"


def _cells(rows: Dataset, hub: HubRows, problems: Problems) -> Iterator[tuple[int, Any, dict[str, Any]]]:
    """``(number, cell of the image, cells of the captions)`` of every row whose text is UTF-8; the others are lost."""
    number = -1
    for table in rows.select_columns([hub.image, *hub.captions]).with_format("arrow").iter(_AT_ONCE):
        images, texts = table.column(hub.image), [table.column(column) for column in hub.captions]
        for row in range(table.num_rows):
            number += 1
            try:
                cells = {column: cells[row].as_py() for column, cells in zip(hub.captions, texts, strict=True)}
                yield number, images[row].as_py(), cells
            except UnicodeDecodeError as error:
                problems.add(f"row with text that is not UTF-8 ({error.reason})", _id(hub, number), lost=True)


def _payload(rows: Dataset, number: int, hub: HubRows, check: bool, max_pixels: int) -> bytes:
    cell = rows[number][hub.image]
    if isinstance(cell, dict):
        cell = cell.get("bytes") or (_file(cell["path"], hub.folders) if cell.get("path") else None)
    if not cell:
        raise Unusable("missing image")
    if check:
        check_image(cell, max_pixels)
    return cell


def _file(name: str, folders: list[Path]) -> bytes:
    """The file that a cell names, where that is one of the dataset's own; :class:`Unusable` for any other."""
    for folder in folders:
        try:
            within = Path(name).relative_to(folder.absolute()) if Path(name).is_absolute() else Path(name)
            path = inside(folder, str(within))
        except (BadName, ValueError):
            continue
        if path.is_file():
            return read_image(path, check=False, max_pixels=0)
    raise Unusable("path to a file that is not the dataset's own (not read; --images names a folder of yours)", name)
