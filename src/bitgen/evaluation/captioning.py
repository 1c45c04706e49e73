"""Captions of held-out images: written, scored against all captions that people gave them, and shown on a sheet."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

from bitgen.config import ConfigError
from bitgen.data.dataset import PairDataset
from bitgen.data.records import RecordReader
from bitgen.data.scenes.dataset import ScenesDataset
from bitgen.data.scripts import split_words
from bitgen.data.source_ids import read_source_ids, source_id
from bitgen.evaluation.caption_metrics import caption_metrics
from bitgen.evaluation.generation import sample_captions
from bitgen.evaluation.scene_captions import scene_caption_metrics
from bitgen.evaluation.text_metrics import with_words
from bitgen.machine.devices import Precision
from bitgen.trained import Trained

if TYPE_CHECKING:
    from bitgen.evaluation.contact_sheet import SheetPicture

logger = logging.getLogger(__name__)


class Captioned(NamedTuple):
    """``metrics`` as of :func:`caption_metrics`; ``captions`` in the order of the dataset's images."""

    metrics: dict[str, float]
    captions: list[str]


def pictures_of_sheet(dataset: PairDataset, images: str | None) -> list[SheetPicture]:
    """The images of the contact sheet; to be read before any work.

    Raises:
        ConfigError: ``images`` is no folder of them, or an image cannot be read.
    """
    # Here, because drawing takes a second to import, and the other tasks do not draw.
    from bitgen.evaluation.contact_sheet import choose_pictures

    if dataset.kind != "images" and images is None:
        logger.warning("the dataset holds features: --images DIR, the original files, would put them on the sheet")
    try:
        return choose_pictures(dataset, images)
    except ValueError as error:
        raise ConfigError(f"--images {error}" if images is not None else str(error)) from error


def caption_dataset(
    loaded: Trained,
    dataset: PairDataset,
    device: torch.device,
    precision: Precision,
    num_beams: int,
    max_new_tokens: int,
    batch_size: int,
    num_workers: int,
) -> Captioned:
    """Write a caption for every image and score them; of built-in scenes also how many are right, and in what.

    Raises:
        ValueError: an image that cannot be read, or one without a reference that has a word.
    """
    search = "greedily" if num_beams == 1 else f"with {num_beams} beams"
    logger.info("captioning %d images %s on %s in %s", dataset.image_count, search, device, precision.name)
    captions = sample_captions(
        loaded.model.to(device),
        dataset,
        range(dataset.image_count),
        loaded.tokenizer,
        device,
        precision.autocast,
        max_new_tokens,
        num_beams=num_beams,
        batch_size=batch_size,
        num_workers=num_workers,
        show_progress=True,
    )
    references = [dataset.captions_of(row) for row in range(dataset.image_count)]
    metrics = caption_metrics(captions, references)
    if empty := metrics["empty_captions"]:
        logger.warning("%d of %d captions hold no word; they score 0", empty, len(captions))
    if isinstance(dataset, ScenesDataset):
        metrics |= scene_caption_metrics(captions, dataset.reader.scenes)
    if len(captions) == 1:
        logger.warning("CIDEr needs at least two images: it weighs words by how few images have them")
    return Captioned(metrics, captions)


def check_references(dataset: PairDataset) -> None:
    """Refuse, before any caption is written, what could not be scored then.

    Raises:
        ValueError: an image without a reference that has a word; the message says which.
    """
    references = [dataset.captions_of(row) for row in range(dataset.image_count)]
    with_words([""] * len(references), references, split_words, "caption", "image")


def coco_results(dataset: PairDataset, captions: Sequence[str]) -> list[dict[str, int | str]]:
    """Captions as COCO's tools read results: a list of ``image_id`` and ``caption``.

    ``image_id`` is COCO's number where the dataset knows it, and else the image's name.

    Raises:
        ValueError: the dataset's list of numbers is damaged.
    """
    numbers = read_source_ids(dataset.reader.folder) if isinstance(dataset.reader, RecordReader) else {}
    names = [dataset.reader.image_id(row) for row in range(dataset.image_count)]
    return [{"image_id": source_id(numbers, name), "caption": text} for name, text in zip(names, captions, strict=True)]


def draw_sheet(path: str, pictures: list[SheetPicture], dataset: PairDataset, captioned: Captioned) -> None:
    """The contact sheet of these pictures, with the scores above them; each shows its image's first reference.

    Raises:
        ValueError: it cannot be written.
    """
    from bitgen.evaluation.contact_sheet import write_contact_sheet

    rows = [picture.row for picture in pictures]
    metrics = captioned.metrics
    title = (
        f"{len(rows)} of {len(captioned.captions):,} images, spread evenly; below each the model's caption, in grey a "
        f"person's.  BLEU-4 {metrics['bleu4']:.1f}, CIDEr {metrics['cider']:.1f}"
    )
    references = [dataset.captions_of(row)[0] for row in rows]
    write_contact_sheet(path, pictures, [captioned.captions[row] for row in rows], references, title)
