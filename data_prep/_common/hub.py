"""Datasets of the Hugging Face Hub with a column of images and one of captions."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import groupby
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
    from huggingface_hub import constants

    from bitgen.data.tokenizer import hub_answers

    name = f"--hub_dataset {dataset}, split {split},"
    remedy = (
        f"where the Hub cannot be reached, fetch it elsewhere with `hf download --repo-type dataset {dataset} "
        "--local-dir DIR` and pass --hub_dataset DIR"
    )
    if not (Path(dataset).is_dir() or constants.HF_HUB_OFFLINE or hub_answers()):
        raise ValueError(
            f"{name} cannot be loaded: {constants.ENDPOINT} does not answer. If it is in the Hub's cache, set "
            f"HF_HUB_OFFLINE=1; {remedy}"
        )
    try:
        rows = load_dataset(dataset, config, split=split)
    except Exception as error:  # no such dataset, split or configuration, offline: each raises its own kind
        reason = next(iter(str(error).splitlines()), "no reason given")
        raise ValueError(f"{name} cannot be loaded ({type(error).__name__}: {reason}); {remedy}") from error
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
    """Items of the rows that have a caption, read as they are asked for; called ``name`` and the row's number.

    Rows that follow one another with the same image are one item with the captions of all.
    """

    def key(numbered: tuple[int, dict]) -> object:
        cell = numbered[1][image]
        return numbered[0] if cell is None else (cell["bytes"] or cell["path"])

    for _, group in groupby(enumerate(rows), key):
        (number, row), *others = group
        image_id = f"{name}/{number:07d}"
        texts = texts_of(row[captions], captions, image_id)
        for _, more in others:
            problems.add("row with the image of the row before (joined with it)", image_id)
            texts = texts + texts_of(more[captions], captions, image_id)
        texts = clean_captions(image_id, texts, problems)
        if texts:
            yield Item(image_id, partial(_payload, row[image], check, max_pixels), texts)
        else:
            problems.add("image without a caption", image_id, lost=True)


def _payload(cell: dict | None, check: bool, max_pixels: int) -> bytes:
    if cell is None:
        raise Unusable("missing image")
    payload = cell["bytes"] or Path(cell["path"]).read_bytes()
    if check:
        check_image(payload, max_pixels)
    return payload
