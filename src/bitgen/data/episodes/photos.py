"""Episodes of photographs that someone has given names to: what is asked is another view of the same photograph."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.nn import functional as F

from bitgen.data.dataset import PairDataset
from bitgen.data.episodes.dataset import Episode, Query, sentence_queries
from bitgen.data.episodes.facts import invented_facts, surrounded, wording
from bitgen.data.episodes.names import invented_names
from bitgen.data.sampler import SampleKey
from bitgen.data.scenes.descriptions import scene_rng
from bitgen.data.scenes.named import ALONE
from bitgen.model.processing_bitgen import BitGenProcessor

STRANGERS = 8  # photographs of an episode that are not taught
_LEAST_SHOWN = 0.6  # of a side, in a crop
_MOST_DROPPED = 0.3  # of the tokens


class View(NamedTuple):
    """A photograph as it is seen: ``row`` of the dataset; ``seed`` of the view, None: as it is stored."""

    row: int
    seed: int | None


@dataclass(frozen=True)
class PhotoEpisodes:
    """Episodes of a dataset's photographs, as features computed earlier, and of invented facts.

    Args: as of :class:`~bitgen.data.episodes.dataset.SceneEpisodes`; ``held_out``: names and wordings that training
        never has (and the dataset is another split).
    """

    dataset: PairDataset
    processor: BitGenProcessor
    seed: int
    pictures: int = 24
    sentences: int = 24
    picture_queries: int = 32
    sentence_queries: int = 24
    held_out: bool = False
    chained: float | None = None

    def episode(self, key: SampleKey) -> Episode:
        """The episode of a key, which alone decides it."""
        rng = scene_rng(self.seed, "held out" if self.held_out else "train", "photos", key.index, key.epoch)
        count, sentences = self.pictures, self.sentences
        if not self.held_out:
            count, sentences = (rng.randint(min(2, most), most) for most in (count, sentences))
        rows = rng.sample(range(self.dataset.image_count), count + STRANGERS)
        known, strangers = rows[:count], rows[count:]
        names = invented_names(count, rng, self.held_out)
        pictures: list[View] = [View(row, None) for row in known]
        taught: list[tuple[str, int | None]] = []
        for at, name in enumerate(names):
            text = wording(ALONE, rng, self.held_out).format(name=name)
            taught.append((text if self.held_out else surrounded(text, rng), at))
        facts = invented_facts(sentences, rng, self.held_out, self.chained) if sentences else []
        taught += [(fact.told, None) for fact in facts]
        queries = []
        for _ in range(self.picture_queries):
            kind = rng.choices(("view", "same", "unknown"), weights=(60, 15, 25))[0]
            if kind == "unknown":
                row = rng.choice(strangers)
                pictures.append(View(row, rng.getrandbits(62)))
                queries.append(Query(kind, "", self._caption(row, rng), (), len(pictures) - 1))
                continue
            at = rng.randrange(count)
            pictures.append(View(known[at], rng.getrandbits(62) if kind == "view" else None))
            answer = f"{names[at]}: {self._caption(known[at], rng)}"
            queries.append(Query(kind, "", answer, (at,), len(pictures) - 1, {names[at]: names[at]}))
        queries += sentence_queries(facts, count, self.sentence_queries, rng, self.held_out)
        return Episode(tuple(taught), tuple(queries), tuple(pictures))

    def _caption(self, row: int, rng: random.Random) -> str:
        return rng.choice(self.dataset.captions_of(row))

    def tensor(self, picture: View) -> torch.Tensor:
        """``vision_features [P, C]`` of a view."""
        features = self.dataset.image_tensor(picture.row)
        return features if picture.seed is None else view_of(features, random.Random(picture.seed))


def view_of(features: torch.Tensor, rng: random.Random) -> torch.Tensor:
    """Another view of a photograph by its features ``[P, C]`` on a square grid: mirrored or not, cropped, and with some
    of its tokens lost (set to the mean of the others).

    Raises:
        ValueError: P is no square number.
    """
    side = round(len(features) ** 0.5)
    if side * side != len(features):
        raise ValueError(
            f"a photograph has {len(features)} features, which form no square grid: no other view of it is known"
        )
    grid = features.T.reshape(1, -1, side, side)
    if rng.random() < 0.5:
        grid = grid.flip(-1)
    size = rng.randint(max(1, round(_LEAST_SHOWN * side)), side)
    top, left = (rng.randint(0, side - size) for _ in range(2))
    grid = F.interpolate(
        grid[:, :, top : top + size, left : left + size], size=(side, side), mode="bilinear", align_corners=False
    )
    seen = grid.reshape(-1, side * side).T.clone()
    lost = rng.sample(range(len(seen)), rng.randint(0, int(_MOST_DROPPED * len(seen))))
    seen[lost] = seen.mean(dim=0)
    return seen
