"""Finding pictures by a text and captions by a picture, among those of a folder or the built-in scenes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from bitgen.api import Model
from bitgen.demo.scenes import held_out_scenes
from bitgen.evaluation.encode import EncodedSplit, Runner
from bitgen.guards.printable import printable
from bitgen.guards.regular_files import read_regular_file
from bitgen.model.image_decoding import decode_image
from bitgen.trained import CAPTIONS, MATCHING

MOST_PICTURES, MOST_CAPTIONS = 2_000, 500
_MOST_ENTRIES = 200_000  # files and folders to look through
PICTURE_ENDINGS = (
    ".jpg",
    ".jpeg",
    ".png",
    ".webp",
    ".gif",
    ".bmp",
    ".tif",
    ".tiff",
    ".avif",
    ".jp2",
    ".ppm",
    ".tga",
    ".ico",
)
SCENES = "the built-in scenes"
RERANKED = 16  # of the nearest by cosine
_THUMBNAIL = 240  # pixels
_BATCH = 32


@dataclass(frozen=True)
class PictureIndex:
    """Pictures ready to be found. ``features [N, D]`` float32, normalised; ``tokens [N, P', D]`` bfloat16, pooled;
    ``captions``: what pictures can be compared with at first; ``left_out``: files that could not be read, and why."""

    name: str
    thumbnails: list[Image.Image]
    names: list[str]
    features: Tensor
    tokens: Tensor
    captions: list[str]
    left_out: list[str]


class Found(NamedTuple):
    """One of what was ranked: its row, the cosine, and the score that it was re-ranked by; None: it was not."""

    row: int
    cosine: float
    reranked: float | None = None


def scenes_index(model: Model, count: int = 60) -> PictureIndex:
    """Built-in scenes that training never shows, with their captions."""
    scenes = held_out_scenes(count)
    building = _Building(model)
    for row, scene in enumerate(scenes):
        building.add(f"scene {row}", scene.picture)
    return building.index(SCENES, [scene.captions[0] for scene in scenes], [])


def folder_index(
    model: Model, folder: str | Path, progress: Callable[[Iterable[Path]], Iterable[Path]] = lambda files: files
) -> PictureIndex:
    """The pictures in a folder and the folders in it, in the order of their names.

    Args:
        progress: wraps the files while they are read, to show how far it is.

    Raises:
        ValueError: no such folder, no picture in it that can be read, or more than MOST_PICTURES.
    """
    files = _pictures_in(folder)
    building, left_out = _Building(model), []
    root = Path(os.path.commonpath([path.parent for path in files]))
    for path in progress(files):
        name = printable(path.relative_to(root), 200)
        try:
            building.add(name, read_regular_file(path))
        except (OSError, ValueError) as error:
            reason = printable(error, 200)
            left_out.append(reason if reason.startswith(name) else f"{name}: {reason}")
    if not building.names:
        raise ValueError(f"{printable(folder)}: none of its {len(files):,} pictures can be read, first {left_out[0]}")
    return building.index(printable(folder), [], left_out)


def _pictures_in(given: str | Path) -> list[Path]:
    """The files of pictures in a folder as a person writes it: with ``~``, spaces around it or quotes."""
    shown, folder = printable(given, 200), Path(str(given).strip().strip("'\"")).expanduser()
    try:
        is_file, is_folder = folder.is_file(), folder.is_dir()
    except (OSError, ValueError):  # a name that no system has
        is_file = is_folder = False
    if is_file:
        raise ValueError(f"{shown} is a file. Write the path of the folder that it is in.")
    if not str(given).strip() or not is_folder:
        raise ValueError(f"{shown}: there is no such folder on this machine. Write the path of a folder with pictures.")
    found: list[Path] = []
    seen = 0
    for place, folders, files in os.walk(folder):  # what may not be read is left out
        folders.sort()
        seen += len(files) + len(folders)
        paths = [Path(place) / name for name in sorted(files) if name.lower().endswith(PICTURE_ENDINGS)]
        found += [path for path in paths if path.is_file()]
        if len(found) > MOST_PICTURES or seen > _MOST_ENTRIES:
            raise ValueError(
                f"{shown} holds more than the page takes ({MOST_PICTURES:,} pictures, {_MOST_ENTRIES:,} files): choose "
                "a folder in it, or rank them in a program with bitgen.load(...).search."
            )
    if not found:
        raise ValueError(f"{shown} holds no pictures ({', '.join(PICTURE_ENDINGS)}). Choose another folder.")
    return found


class _Building:
    """An index that is filled picture by picture: none is kept but as a thumbnail and what the model sees of it."""

    def __init__(self, model: Model) -> None:
        self.model, self.names = model, list[str]()
        self.thumbnails, self.waiting = list[Image.Image](), list[Tensor]()
        self.features, self.tokens = list[Tensor](), list[Tensor]()

    def add(self, name: str, picture: Image.Image | bytes) -> None:
        """Raises ``ValueError`` for one that cannot be read."""
        processor = self.model.trained.processor
        pixels = processor.image(picture, name)
        shown = decode_image(picture, name, processor.max_image_pixels, (_THUMBNAIL, _THUMBNAIL))
        self.thumbnails.append(_thumbnail(to_pil_image(shown)))
        self.names.append(name)
        self.waiting.append(pixels)
        if len(self.waiting) == _BATCH:
            self._encode()

    @torch.no_grad()
    def _encode(self) -> None:
        network = self.model.trained.model
        encoding = network.encode_image(pixel_values=torch.stack(self.waiting).to(network.device))
        self.features.append(encoding.image_features.float().cpu())
        self.tokens.append(network.pool_image_tokens(encoding.image_tokens).to(torch.bfloat16).cpu())
        self.waiting.clear()

    def index(self, name: str, captions: list[str], left_out: list[str]) -> PictureIndex:
        """What was added."""
        if self.waiting:
            self._encode()
        features, tokens = torch.cat(self.features), torch.cat(self.tokens)
        return PictureIndex(name, self.thumbnails, self.names, features, tokens, captions, left_out)


def _thumbnail(picture: Image.Image) -> Image.Image:
    small = picture.copy()
    small.thumbnail((_THUMBNAIL, _THUMBNAIL))
    return small


def pictures_for(model: Model, index: PictureIndex, text: str, count: int = 8, rerank: bool = True) -> list[Found]:
    """The pictures that fit a text best; with ``rerank`` the nearest by cosine are ordered by reading both together.

    Raises:
        ValueError: an empty text.
    """
    feature = model.encoder.texts([text]).float().cpu()
    cosines = (index.features @ feature.T)[:, 0]
    order = cosines.argsort(descending=True, stable=True)
    if not rerank or how_reranked(model) is None:
        return [Found(row, cosines[row].item()) for row in order[:count].tolist()]
    near = order[: max(RERANKED, count)]
    ids, mask = model.encoder.tokens([text])
    split = _pairs(index.features[near], index.tokens[near], feature, ids, mask)
    return _reranked(model, split, near, cosines, count)


def captions_for(
    model: Model, picture: str | Path, captions: Sequence[str], count: int = 8, rerank: bool = True
) -> list[Found]:
    """The captions that fit a picture best, as :func:`pictures_for`.

    Raises:
        ValueError: a picture that cannot be read, no captions, or more than MOST_CAPTIONS.
    """
    captions = check_captions(captions)
    encoding = model.encoder.looked_at([picture])
    features = model.encoder.texts(captions).float().cpu()
    seen = encoding.image_features.float().cpu()
    cosines = (features @ seen.T)[:, 0]
    order = cosines.argsort(descending=True, stable=True)
    if not rerank or how_reranked(model) is None:
        return [Found(row, cosines[row].item()) for row in order[:count].tolist()]
    near = order[: max(RERANKED, count)]
    ids, mask = model.encoder.tokens([captions[row] for row in near.tolist()])
    split = _pairs(seen, encoding.image_tokens.to(torch.bfloat16).cpu(), features[near], ids, mask)
    return _reranked(model, split, near, cosines, count)


def check_captions(captions: Sequence[str]) -> list[str]:
    """The captions without empty ones.

    Raises:
        ValueError: none is left, or they are more than MOST_CAPTIONS.
    """
    kept = [caption.strip() for caption in captions if caption.strip()]
    if not kept:
        raise ValueError("there are no captions: write one a line")
    if len(kept) > MOST_CAPTIONS:
        raise ValueError(f"{len(kept):,} captions, and the page takes {MOST_CAPTIONS}: leave some out")
    return kept


def how_reranked(model: Model) -> str | None:
    """By what a model re-ranks, in words; None: it learned neither to match nor to write."""
    untrained = model.trained.untrained
    if MATCHING not in untrained:
        return "by reading each together with the other (its matching score)"
    return (
        None if CAPTIONS in untrained else "by how much likelier the picture makes the text (in nats, log-probability)"
    )


def _pairs(images: Tensor, tokens: Tensor, texts: Tensor, ids: Tensor, mask: Tensor) -> EncodedSplit:
    """One picture with many texts, or one text with many pictures, as pairs in a row."""
    count = max(len(images), len(texts))
    images, tokens = images.expand(count, -1), tokens.expand(count, -1, -1)
    texts = texts.expand(count, -1)
    ids, lengths = ids.cpu().int().expand(count, -1), mask.cpu().sum(dim=1).expand(count)
    return EncodedSplit(images, texts, torch.arange(count), ids, lengths, tokens)


def _reranked(model: Model, split: EncodedSplit, near: Tensor, cosines: Tensor, count: int) -> list[Found]:
    runner = Runner(model.trained.model, _BATCH, model.trained.model.device)
    rows = torch.arange(len(near))
    by = runner.order if MATCHING not in model.trained.untrained else runner.text_evidence
    scores = by(split, rows, rows)
    best = scores.argsort(descending=True, stable=True)[:count].tolist()
    return [Found(int(near[at]), cosines[near[at]].item(), scores[at].item()) for at in best]
