"""What a model says of episodes: their keys and values, the cues of what is asked, and what these recall.

The keys and values are those that the model was trained with (``model/recall.py``); they are held in a memory of their
own, row by row with the episodes. What is recalled is read from it in closed form (``model/speaking.py``).

Shapes: E episodes, k numbers of a key, L tokens of a value of d numbers each; P tokens of an image, of width D.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bitgen.guards.printable import printable
from bitgen.guards.texts import MOST_CHARACTERS, as_question
from bitgen.memory.address_space import IMAGE, TEXT
from bitgen.memory.associative import AssociativeMemory
from bitgen.memory.encoder import PROBE_TEXT, SHOWN, MemoryImage, PairEncoder
from bitgen.memory.episodes import Episode
from bitgen.memory.files import SpokenProbe
from bitgen.model.configuration_bitgen import plain_marks
from bitgen.model.picture import Picture
from bitgen.model.question import Question, has_names
from bitgen.model.recall import Recall
from bitgen.model.recalled import Recalled
from bitgen.model.speaking import BY_TEXT, chosen, find, find_asked, recalled_for

logger = logging.getLogger(__name__)

MUTE = (
    "this model does not speak from a memory. To train one that does, start from this one: configs/memory_scenes.yaml "
    "(features: memory_flickr8k.yaml), with init_from set to its folder"
)


class Spoken(NamedTuple):
    """What a cue recalls.

    ``tokens``: what the decoder is given to look at; None: the cue is like nothing that was taught, and the model says
    what it says without a memory. ``facts``: the episodes recalled and the probability that each is what the cue is
    about, surest first. ``surest``: the highest probability of all episodes that count, recalled or not.
    ``by_question``: a question recalled it. It is then said without a picture, because a model that sees a picture
    often speaks of what is in it.
    """

    tokens: Recalled | None
    facts: list[tuple[Episode, float]]
    surest: float
    by_question: bool = False


class Seen(NamedTuple):
    """An image as a cue: what it is compared by, and its tokens ``[1, P, D]``."""

    picture: Picture
    image_tokens: Tensor


Cue = Seen | Question


class FactEncoder:
    """Keys, values and cues of a model that speaks, from the inputs that ``encoder`` makes."""

    def __init__(self, encoder: PairEncoder) -> None:
        assert encoder.model.recall is not None
        self.encoder = encoder
        self.recall: Recall = encoder.model.recall

    @torch.no_grad()
    def codes(self, texts: Sequence[str], image_tokens: Tensor | None = None) -> Tensor:
        """Keys and values ``[E, k + L d]`` of texts, float64.

        Args:
            image_tokens: ``[E, P, D]`` of their images; None: they are told without.

        Raises:
            ValueError: a text that is empty, too long or no text; the message gives its position.
        """
        codes, size = [], self.encoder.batch_size
        for part in (slice(first, first + size) for first in range(0, len(texts), size)):
            ids, mask = self._tokens(texts[part])
            if image_tokens is None:
                keys = self.recall.text_keys(ids, mask)
            else:
                keys = self.recall.taught_image_key(image_tokens[part], ids, mask)
            codes.append(torch.cat([keys, self.recall.values(ids, mask)], dim=1).double())
        return torch.cat(codes)

    @torch.no_grad()
    def alike(self, text: str, other: str) -> float:
        """Cosine of what two texts look for in a picture, as far as values hold them."""
        held, texts = slice(self.recall.length + 1), [part[:MOST_CHARACTERS] for part in (text, other)]
        one, another = self.recall.looked_for(*(part[:, held] for part in self._tokens(texts)))
        return torch.cosine_similarity(one, another, dim=0).item()

    def say_cut(self, texts: Sequence[str]) -> None:
        """Warn of texts that are longer than a value, and show what would be recalled of one."""
        processor, longest = self.encoder.processor, self.recall.length
        whole = [ids[1:-1] for ids in self.encoder.whole_sequences(list(map(self.recall.config.as_taught, texts)))]
        cut = [position for position, ids in enumerate(whole) if len(ids) > longest]
        if not cut:
            return
        assert processor.tokenizer is not None
        first = cut[0]
        logger.warning(
            "%sthe text '%s' has %d tokens and the model can say %d of what it was taught: it would recall '%s'. "
            "Shorten it, or begin with what matters.",
            "" if len(cut) == 1 else f"{len(cut):,} of {len(texts):,} texts are longer than what can be said: ",
            printable(texts[first], SHOWN),
            len(whole[first]),
            longest,
            printable(processor.tokenizer.decode(whole[first][:longest]).strip()),
        )

    def _tokens(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        return self.encoder.tokens(texts, say=False, written=self.recall.config.as_taught)

    @torch.no_grad()
    def image_cue(self, image: MemoryImage) -> Seen:
        """The cue that an image is. Raises ValueError as :meth:`PairEncoder.images` does, and for NaN in it."""
        tokens = self.encoder.looked_at([image]).image_tokens
        if not tokens.isfinite().all():
            raise ValueError("the image has NaN or infinity in it, or the model makes them of it: check both")
        return Seen(self.recall.picture(tokens), tokens)

    @torch.no_grad()
    def question_cue(self, text: str) -> Question:
        """The cue that a question is (:func:`as_question`). Raises ValueError as :meth:`PairEncoder.texts` does.

        Where texts are taught behind a space, the question's names are looked for as they are written behind one, too;
        otherwise one that it begins with would have other tokens than in a fact.
        """

        def written(question: str) -> str:
            return plain_marks(as_question(question))

        cue = self.recall.questions(*self.encoder.tokens([text], written=written))
        if not self.recall.config.recall_behind_space:
            return cue
        behind = self.encoder.tokens([text], say=False, written=lambda question: f" {written(question)}")
        return self.recall.questions(*behind)._replace(keys=cue.keys)

    def cues(self, image: MemoryImage | None, text: str | None) -> list[Cue]:
        """The cues that an image, a question, or a question about an image are, in the order in which they ask.

        Of a question about an image the question asks first, if it has a name ("who owns Blick?"): what was told of a
        name may have nothing to do with the image. One without a name ("what is left of the ring?") leaves it to the
        image.

        Raises:
            ValueError: neither, or one that cannot be read.
        """
        if image is None and text is None:
            raise ValueError("what is recalled is asked by an image, a question, or a question about an image")
        seen: list[Cue] = [] if image is None else [self.image_cue(image)]
        if text is None:
            return seen
        asked = self.question_cue(text)
        assert BY_TEXT.names is not None
        return [asked, *seen] if not seen or has_names(asked, BY_TEXT.names).all() else seen

    def probe(self) -> SpokenProbe:
        """Key and value of a fixed image and text, by which a memory knows the training that made it."""
        tokens = self.encoder.looked_at(self.encoder.probe_images()).image_tokens
        code = self.codes([PROBE_TEXT], tokens)[0]
        return SpokenProbe(code[: self.recall.key_width], code[self.recall.key_width :])


@torch.no_grad()
def recalled_by(recall: Recall, memory: AssociativeMemory, episodes: Sequence[Episode], cue: Cue) -> Spoken:
    """What a cue recalls of a memory of keys and values, in which each row is of an episode."""
    if not len(memory):
        return Spoken(None, [], 0.0)
    keys, values = memory.halves(IMAGE), memory.halves(TEXT)
    if isinstance(cue, Question):
        found, image_tokens = find_asked(recall, keys, values, cue, BY_TEXT), None
    else:
        found, image_tokens = find(recall, keys, values, cue.picture), cue.image_tokens
    confidence = found.confidence[0] * keys.any(dim=1)  # a key of zeros is of what cannot be said
    facts = chosen(found._replace(confidence=confidence[None]))
    memory = _without_repeated(memory, keys, facts[0])
    tokens = recalled_for(recall, facts, found, lambda rows: memory.read(keys[rows], IMAGE).halves, image_tokens)
    by_question = tokens is not None and isinstance(cue, Question)
    recalled = [(episodes[row], confidence[row].item()) for row in facts[0]]
    return Spoken(tokens, recalled, confidence.max().item(), by_question)


def _without_repeated(memory: AssociativeMemory, keys: Tensor, facts: Sequence[int]) -> AssociativeMemory:
    """Without what was taught before under the keys of these facts: they would be read as a mixture of the values."""
    rows = torch.tensor(facts, dtype=torch.long, device=keys.device)
    earlier = torch.arange(len(keys), device=keys.device) < rows[:, None]
    keep = ~((keys[rows] @ keys.mT > BY_TEXT.same) & earlier).any(dim=0)
    return memory if keep.all() else AssociativeMemory.holding(memory.space, memory.pairs[keep], memory.cue_noise)
