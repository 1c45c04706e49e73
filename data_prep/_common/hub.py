"""Datasets of the Hugging Face Hub with a column of images and one of captions."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from _common.images import check_image
from _common.problems import Problems, Unusable
from _common.reading import clean_captions
from _common.tables import caption_column, texts_of
from _common.writing import Item

if TYPE_CHECKING:
    from datasets import Dataset


def load_hub(
    dataset: str, config: str | None, split: str, image_column: str | None, captions: str | None
) -> tuple[Dataset, str, str]:
    """A split with its images left encoded, the name of their column, and that of the captions'.

    The Hub's cache keeps what is downloaded, so a restart goes on. Raises ``ValueError`` when the dataset cannot be
    had, or its columns leave a doubt.
    """
    from datasets import Image, load_dataset

    name = f"--hub_dataset {dataset}, split {split},"
    try:
        rows = load_dataset(dataset, config, split=split)
    except Exception as error:  # offline, no such dataset, split or configuration: each raises its own kind
        reason = next(iter(str(error).splitlines()), "no reason given")
        raise ValueError(
            f"{name} cannot be loaded ({type(error).__name__}: {reason}). Where the Hub cannot be reached, fetch it "
            f"elsewhere with `hf download --repo-type dataset {dataset} --local-dir DIR` and pass --hub_dataset DIR"
        ) from error
    images = [column for column, kind in rows.features.items() if isinstance(kind, Image)]
    image = image_column or (images[0] if len(images) == 1 else None)
    if image not in images:
        raise ValueError(
            f"{name} has these columns of images: {', '.join(images) or 'none'}; name one with --image_column. "
            f"All columns: {', '.join(rows.column_names)}"
        )
    column = caption_column([other for other in rows.column_names if other != image], captions, name)
    return rows.cast_column(image, Image(decode=False)), image, column


def hub_items(
    rows: Dataset, image: str, captions: str, name: str, check: bool, max_pixels: int, problems: Problems
) -> Iterator[Item]:
    """Items of the rows that have a caption, one row at a time; their names are ``name`` and the row's number."""
    for number, row in enumerate(rows):
        image_id = f"{name}/{number:07d}"
        texts = clean_captions(image_id, texts_of(row[captions], captions, image_id), problems)
        if texts:
            yield Item(image_id, partial(_payload, row[image], check, max_pixels), texts)
        else:
            problems.add("image without a caption", image_id, lost=True)


def _payload(cell: dict | None, check: bool, max_pixels: int) -> bytes:
    if cell is None:
        raise Unusable("missing image")
    payload = cell["bytes"] if cell["bytes"] is not None else Path(cell["path"]).read_bytes()
    if check:
        check_image(payload, max_pixels)
    return payload
