"""A memory that people can use: teach a trained model images with texts, recall, edit, forget; no training.

A model that was trained for it also speaks from this memory, and can be told sentences without an image.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from bitgen.guards.texts import check_texts
from bitgen.memory.address_space import IMAGE, TEXT, AddressSpace, spoken_space
from bitgen.memory.associative import AssociativeMemory
from bitgen.memory.encoder import MemoryImage, PairEncoder, check_lists
from bitgen.memory.episodes import Episode, Held, MemoryState, Recollection, held_in_file
from bitgen.memory.files import StoredSpoken, exclusive, write_memory
from bitgen.memory.notices import (
    warn_after_edit,
    warn_after_write,
    warn_of_another_thing,
    warn_of_unsaid,
    warn_when_full,
)
from bitgen.memory.spoken import MUTE, FactEncoder, Spoken, recalled_by
from bitgen.memory.whitening import Whitening
from bitgen.model.modeling_bitgen import BitGenModel
from bitgen.model.processing_bitgen import BitGenProcessor


class EpisodicMemory:
    """Pairs of an image and a text, written into a closed-form memory of their codes and recalled from either half.

    Writing, editing and forgetting make a new memory and put it in the old one's place, so that any number of threads
    may recall meanwhile; writers wait for one another. Whatever raises leaves the memory as it was. The maths is in
    ``associative.py``.

    Args:
        model: a trained model; it is put into eval mode. Its own running memory is not touched.
        processor: with the model's tokenizer (``open_model`` gives both).
        slots: K; the memory holds ``min(slots, embed_dim)`` episodes for certain, K with ``widen``.
        widen: widen codes by random features, for more than ``embed_dim`` episodes; at least three times the bytes.
        sigma: standard deviation of the observation noise, at least 1e-4.
        cue_noise: noise that cues which were not written exactly are read with, > 0.
        seed: of the memory's prior.
        batch_size: images or texts of a forward pass; see :class:`PairEncoder`.
        whitening: of the codes; see :meth:`whiten`.

    Raises:
        ValueError: an argument out of its range.
    """

    def __init__(
        self,
        model: BitGenModel,
        processor: BitGenProcessor,
        slots: int = 32,
        widen: bool = False,
        sigma: float = 0.1,
        cue_noise: float = 0.1,
        seed: int = 0,
        batch_size: int = 1,
        whitening: Whitening | None = None,
    ) -> None:
        self.encoder = PairEncoder(model, processor, batch_size)
        space = AddressSpace(self.encoder.half, slots, widen, sigma, seed, model.device, whitening)
        self._held = Held(AssociativeMemory.empty(space, cue_noise))
        self._writing = threading.RLock()
        self._probe = self.encoder.probe()
        self._facts, self._spoken_probe = None, None
        if model.recall is not None:
            self._facts = FactEncoder(self.encoder)
            self._spoken_probe = self._facts.probe()
            spoken = spoken_space(space, *map(len, self._spoken_probe))
            empty = AssociativeMemory.empty(spoken, cue_noise)
            self._held = self._held._replace(spoken=empty, tokens_of=torch.no_grad()(model.recall.tokens_of))

    def __len__(self) -> int:
        return len(self._held.episodes)

    @property
    def episodes(self) -> tuple[Episode, ...]:
        """All episodes, in the order of writing."""
        return self._held.episodes

    @property
    def codes(self) -> AssociativeMemory:
        """The memory of codes as it is now; it never changes, later writes make another."""
        return self._held.memory

    @property
    def spoken(self) -> AssociativeMemory | None:
        """The memory of keys and values that the model speaks from, as it is now; None where it does not."""
        return self._held.spoken

    @property
    def speaks(self) -> bool:
        """Whether the model says what it is taught: see :meth:`recalled`, and :meth:`tell`."""
        return self._facts is not None

    # ---------------------------------------------------------------- writing

    def write(
        self,
        images: Sequence[MemoryImage] | Tensor | None = None,
        texts: Sequence[str] | None = None,
        keys: Sequence[str] | None = None,
    ) -> list[str]:
        """Write pairs, one text an image; all of them or, where one is bad, none.

        Args:
            images: files, bytes, PIL images or tensors, as :meth:`PairEncoder.images` takes them.
            texts: what to remember of each.
            keys: ids for them; None: numbers that were not used before.

        Returns:
            The ids. A warning is logged where more episodes are then held than can be told apart.

        Raises:
            ValueError: an image that cannot be read, an empty text, an id twice, or counts that differ.
        """
        if images is None or texts is None:
            raise ValueError("an episode is an image with a text: pass both images and texts")
        check_lists(images, texts)
        if not len(images) or len(images) != len(texts):
            raise ValueError(f"{len(images)} images and {len(texts)} texts: pass one or more, a text for each image")
        check_texts(texts)
        if self._facts is None:
            seen, spoken = self.encoder.images(images), None
        else:
            tokens, seen = self.encoder.looked_at(images)
            spoken = self._facts.codes(texts, tokens)
        return self.write_codes(torch.cat([seen, self.encoder.texts(texts)], dim=1), texts, keys, spoken)

    def tell(self, texts: Sequence[str], keys: Sequence[str] | None = None) -> list[str]:
        """Write sentences without an image, which the model says when it is asked; all of them or none.

        Args:
            texts, keys: as for :meth:`write`.

        Returns:
            The ids; warnings as of :meth:`write`.

        Raises:
            ValueError: the model does not speak from a memory, an empty text, an id twice, or counts that differ.
        """
        if self._facts is None:
            raise ValueError(f"a sentence without an image can only be said, and {MUTE}")
        check_lists(None, texts)
        if not len(texts):
            raise ValueError("0 texts: pass one or more")
        features = self.encoder.texts(texts)
        pairs = torch.cat([torch.zeros_like(features), features], dim=1)
        return self.write_codes(pairs, texts, keys, self._facts.codes(texts))

    def write_codes(
        self,
        pairs: Tensor,
        texts: Sequence[str],
        keys: Sequence[str] | None = None,
        spoken: Tensor | None = None,
    ) -> list[str]:
        """Write codes ``[E, 2 D]`` computed earlier, ``[image_features, text_features]``, with their texts.

        Args:
            spoken: what the model speaks from, ``[E, k + L d]`` of :class:`FactEncoder`; None: it cannot say them.

        Raises:
            ValueError: NaN or infinity in a code, another width, an empty text, an id twice, counts that differ, or
                ``spoken`` codes for a model that does not speak.
        """
        if spoken is not None and self._facts is None:
            raise ValueError(MUTE)
        with self._writing:
            held, ids = self._held.added(pairs, texts, keys, spoken)
            warn_after_write(held, len(ids))
            self._held = held  # last: whatever raises above leaves the memory as it was
        if self._facts is not None and spoken is not None:
            self._facts.say_cut(texts)
        return ids

    def edit(self, id: str, text: str) -> None:
        """Change an episode's text, and so what its image recalls and what the model says of it.

        It stays about the same thing in its image, which is not kept. A warning is logged where the new text seems to
        be about another.

        Raises:
            ValueError: there is no such episode, or the text is empty.
        """
        feature = self.encoder.texts([text])[0]
        fact = None if self._facts is None else self._facts.codes([text])[0]
        with self._writing:
            row = self._held.row(id)
            before, pictured = self._held.episodes[row].text, bool(self._held.memory.halves(IMAGE)[row].any())
            held = self._held.edited(id, text, feature, fact)
            warn_after_edit(held, id)
            if self._facts is not None:
                if pictured:
                    warn_of_another_thing(id, text, self._facts.alike(before, text))
                self._facts.say_cut([text])
            self._held = held

    def forget(self, id: str) -> None:
        """Take an episode out; the memory is then as if it had never been written.

        Raises:
            ValueError: there is no such episode.
        """
        with self._writing:
            self._held = self._held.without(id)

    def clear(self) -> None:
        """Forget everything."""
        with self._writing:
            self._held = self._held.cleared()

    def resize(self, slots: int, widen: bool = False) -> None:
        """Write all episodes into a memory of another size.

        Raises:
            ValueError: ``slots`` out of its range.
        """
        with self._writing:
            self._rewrite(slots, widen, self._held.memory.space.whitening)

    def whiten(self, whitening: Whitening | None) -> None:
        """Write all episodes anew, whitened (None: as they are). ``training_whitening`` or ``Whitening.fit`` make one.

        Raises:
            ValueError: a whitening of another width than the model's features.
        """
        with self._writing:
            space = self._held.memory.space
            self._rewrite(space.slots, space.widen, whitening)

    def _rewrite(self, slots: int, widen: bool, whitening: Whitening | None) -> None:
        old = self._held.memory.space
        space = AddressSpace(old.half, slots, widen, old.sigma, old.seed, old.device, whitening)
        held = self._held.rewritten(space)
        warn_when_full(held)
        self._held = held

    # ---------------------------------------------------------------- reading

    def recall(self, image: MemoryImage | None = None, text: str | None = None, top_k: int = 5) -> list[Recollection]:
        """What an image or a text recalls, best first: the missing half is read and compared with what episodes hold.

        Raises:
            ValueError: not exactly one cue, one that cannot be read, ``top_k`` below 1, or an empty memory.
        """
        images = None if image is None else [image]
        texts = None if text is None else [text]
        return self.recall_many(images, texts, top_k)[0]

    def recall_many(
        self,
        images: Sequence[MemoryImage] | Tensor | None = None,
        texts: Sequence[str] | None = None,
        top_k: int = 5,
    ) -> list[list[Recollection]]:
        """:meth:`recall` for many images, or many texts, at once."""
        if (images is None) == (texts is None):
            raise ValueError("recall takes an image or a text: pass one of them")
        check_lists(images, texts)
        if not len(self):
            raise ValueError("the memory is empty: teach it something before recalling")
        if images is not None:
            return self.recall_codes(self.encoder.images(images), IMAGE, top_k) if len(images) else []
        return self.recall_codes(self.encoder.texts(texts), TEXT, top_k) if texts else []

    def recall_codes(self, cues: Tensor, part: int, top_k: int = 5) -> list[list[Recollection]]:
        """:meth:`recall` for features computed earlier, ``[B, D]`` of images (``part`` IMAGE) or texts (TEXT)."""
        return self._held.recall(cues, part, top_k)

    def recalled(self, image: MemoryImage | None = None, text: str | None = None) -> Spoken:
        """What an image, a question, or a question about an image gives the model to say, and of which episodes.

        Of two episodes about the same thing the later counts. A cue that is like nothing that was taught recalls
        nothing, and so does an empty memory. Of a question about an image see :meth:`FactEncoder.cues`.

        Raises:
            ValueError: the model does not speak from a memory, no cue, or one that cannot be read.
        """
        if self._facts is None:
            raise ValueError(MUTE)
        held = self._held
        assert held.spoken is not None
        surest = 0.0  # of the cues that recalled nothing
        for cue in self._facts.cues(image, text):
            spoken = recalled_by(self._facts.recall, held.spoken, held.episodes, cue)
            surest = max(surest, spoken.surest)
            if spoken.facts:
                return spoken
        return Spoken(None, [], surest)

    def state(self) -> MemoryState:
        """How full the memory is and what to expect of it."""
        return self._held.state()

    # ---------------------------------------------------------------- files

    def save(self, path: str | Path) -> None:
        """Write the memory to a file, atomically.

        Raises:
            ValueError: another process is writing it, or it cannot be written; what was there is intact.
        """
        with exclusive(path):
            self._write_file(path)

    def load(self, path: str | Path) -> None:
        """Take over a file's episodes and settings in place of this memory's.

        Everything is summed anew from the codes, so that rounding of past edits is gone.

        Raises:
            ValueError: the file is missing, damaged, or of another model or width; this memory is then as it was.
        """
        held = held_in_file(path, self._probe, self._spoken_probe)
        with self._writing:
            self._held = held._replace(tokens_of=self._held.tokens_of)
        warn_of_unsaid(held)

    @contextmanager
    def editing(self, path: str | Path) -> Iterator[None]:
        """Hold a file against other writers, load it where it exists, and save when the block has ended well.

        Raises:
            ValueError: as :meth:`load` and :meth:`save` do.
        """
        with exclusive(path):
            if Path(path).exists():
                self.load(path)
            yield
            self._write_file(path)

    def _write_file(self, path: str | Path) -> None:
        held, spoken = self._held, None
        if held.spoken is not None:
            assert self._spoken_probe is not None
            spoken = StoredSpoken(held.spoken.pairs, torch.cat(self._spoken_probe))
        write_memory(path, held.memory.pairs, self._probe, held.memory.space.whitening, held.header(), spoken)
