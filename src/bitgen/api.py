"""BitGen in a program: train a model, open it, and use it.

::

    import bitgen

    run = bitgen.train("configs/quickstart.yaml")  # minutes on two CPU cores; returns the run's folder
    model = bitgen.load(run)  # or a checkpoint, or an export
    pictures = ["scenes/1.png", "scenes/2.png"]  # of data_prep/scenes.py; or your own files, bytes or PIL images
    print(model.search("a red circle", pictures)[0])  # the image that fits best, and its cosine
    print(model.rank(pictures, ["a red star", "two blue rings"])[0])  # the captions of the first image, best first
    memory = model.memory()
    memory.write([pictures[0]], ["this is Rex"])  # one shot, no training
    print(memory.recall(pictures[0])[0].text)
    print(model.caption(pictures[0]))

Each call is one of the package's own functions; look there for more control.
"""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bitgen.config import parse_config
from bitgen.evaluation.answers import Decoding
from bitgen.evaluation.asking import Answered, ask, whether_to_think
from bitgen.evaluation.generation import LONGEST, answer_of, caption_of
from bitgen.evaluation.talking import Talk, read_visuals, unread
from bitgen.guards.texts import check_texts
from bitgen.machine.devices import choose_device
from bitgen.memory.encoder import MemoryImage, PairEncoder
from bitgen.memory.episodic_memory import EpisodicMemory
from bitgen.memory.spoken import MUTE, Spoken
from bitgen.tasks import task_of
from bitgen.tasks.chain import train_chain
from bitgen.trained import CAPTIONS, MATCHING, RETRIEVAL, Trained, open_model
from bitgen.trained_vlm import TrainedVlm, is_vlm, open_vlm

logger = logging.getLogger(__name__)
_BATCH = 32


class Found(NamedTuple):
    """One of what was ranked: the image or caption as it was given, its place in that list, and the cosine."""

    item: Any
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    score: float


class RunStopped(KeyboardInterrupt):
    """A run was told to stop (Ctrl-C, SIGTERM, SIGHUP), and has saved what it had. ``folder``: the run's; ``signal``:
    which signal it was.

    A ``KeyboardInterrupt``, because a program that trains several models must not take it for a failure of one and go
    on with the next.
    """

    def __init__(self, folder: Path, number: int) -> None:
        self.folder, self.signal = folder, signal.Signals(number)
        super().__init__(
            f"training was stopped by {self.signal.name}, and what it had reached is saved in {folder}. Go on with the "
            'same call and resume="auto".'
        )


def train(config: str | Path | None = None, **settings: Any) -> Path:
    """Train as ``bitgen train --config CONFIG --SETTING VALUE ...`` does, and return the run's folder.

    Args:
        config: a YAML file of settings; None: the defaults.
        settings: what ``bitgen train --help`` lists, in place of the file's.

    Raises:
        ConfigError: a setting is wrong, or what was asked for cannot be.
        RunFailed: training could not go on; why is in the message and in the log.
        RunStopped: a signal stopped it; the call that goes on is the same with ``resume="auto"``.
    """
    arguments = [] if config is None else ["--config", str(config)]
    for name, value in settings.items():
        arguments += [f"--{name}", str(value)]
    program = sys.argv
    try:
        sys.argv = ["bitgen train", *arguments]  # the run prints it as the command that resumes it
        parsed = parse_config(arguments)
        stopped = train_chain(task_of, parsed)
    finally:
        sys.argv = program
    if stopped:
        raise RunStopped(Path(parsed.output.output_dir), stopped)
    return Path(parsed.output.output_dir)


def load(path: str | Path, device: str = "auto") -> Model:
    """The model of a run's folder (its best checkpoint), of one checkpoint or of an export, verified.

    Args:
        device: ``auto`` (a GPU where there is one), ``cpu`` or ``cuda``.

    Raises:
        ValueError: there is no model, or it is damaged; the message names the folder and the remedy.
    """
    if is_vlm(path):
        raise ValueError(f"{path} is a vision-language model of parts: open it with bitgen.load_vlm")
    return Model(open_model(path, choose_device(device)))


def load_vlm(path: str | Path, device: str = "auto") -> VisionLanguage:
    """The model of a stage of ``bitgen train-vlm``, of one of its checkpoints or of its export, verified.

    Args and errors as of :func:`load`.
    """
    return VisionLanguage(open_vlm(path, choose_device(device)))


class VisionLanguage:
    """A vision encoder, a connector and a language model, trained. ``trained`` is what the opener gave."""

    def __init__(self, trained: TrainedVlm) -> None:
        self.trained = trained

    def __repr__(self) -> str:
        return f"bitgen.load_vlm({str(self.trained.folder)!r})"

    def ask(self, question: str, *files: str | Path, num_beams: int = 1, max_new_tokens: int = 128) -> str:
        """The answer to a question about pictures or videos, given as files; see :meth:`talk` for more questions. A
        model that was trained with ``template: plain`` reads no question and answers with a caption: a warning says so.

        Raises:
            ValueError: a file that cannot be read, or a prompt longer than the model reads.
        """
        if question != self.trained.description.speech.prompt and (says := unread(self.trained)) is not None:
            logger.warning("%s: the answer is its caption", says)
        return self.talk(*files, num_beams=num_beams, max_new_tokens=max_new_tokens).ask(question)

    def talk(self, *files: str | Path, **decoding: Any) -> Talk:
        """A conversation about pictures or videos: each ``ask(question)`` of it remembers what was said.

        Args:
            decoding: fields of :class:`~bitgen.evaluation.answers.Decoding`.

        Raises:
            ValueError: a file that cannot be read, or a model that takes no pictures.
        """
        return Talk(self.trained, read_visuals(self.trained, [str(file) for file in files]), Decoding(**decoding))

    def caption(self, file: str | Path, prompt: str = "", num_beams: int = 3, max_new_tokens: int = LONGEST) -> str:
        """What the model answers to its own prompt, or another one, about a picture; errors as of :meth:`ask`."""
        asked = prompt or self.trained.description.speech.prompt
        return self.ask(asked, file, num_beams=num_beams, max_new_tokens=max_new_tokens)


class Model:
    """A trained model. ``trained`` is what the opener gave: the network, its tokenizer, the run's configuration;
    ``encoder`` makes features and inputs of images and texts, in batches.

    Images are file names, encoded bytes or PIL images; for a model that was trained on features computed earlier,
    tensors ``[P, C]``. Whatever the model never learned is refused with a ``ConfigError`` that says so.
    """

    def __init__(self, trained: Trained) -> None:
        self.trained = trained
        self.encoder = PairEncoder(trained.model, trained.processor, _BATCH)

    def __repr__(self) -> str:
        return f"bitgen.load({str(self.trained.folder)!r})"

    def pixels(self, image: MemoryImage) -> Tensor:
        """An image as the model takes it, ``[1, 3, H, W]``, or of a model without a tower ``[1, P, C]``.

        Raises:
            ValueError: an image that cannot be read.
        """
        [tensor] = self.encoder.inputs([image]).values()
        return tensor

    def rank(self, images: Sequence[MemoryImage], captions: Sequence[str]) -> list[list[Found]]:
        """For each image the captions, best first, by the cosine of their features.

        Raises:
            ValueError: an image that cannot be read, an empty caption, or none of either.
        """
        scores = self._cosines(images, captions)
        return [_best_first(row, captions) for row in scores]

    def search(self, text: str, images: Sequence[MemoryImage]) -> list[Found]:
        """The images, those that fit the text best first, by the cosine of their features.

        Raises:
            ValueError: an image that cannot be read, an empty text, or no images.
        """
        return _best_first(self._cosines(images, [text])[:, 0], images)

    @torch.no_grad()
    def match(self, image: MemoryImage, text: str) -> float:
        """The probability that a text belongs to an image, where every second text does; both are read together.

        Raises:
            ValueError: an image that cannot be read, or an empty text.
        """
        self.trained.require(MATCHING)
        model, encoder = self.trained.model, self.encoder
        tokens = model.pool_image_tokens(model.encode_image(**encoder.inputs([image])).image_tokens)
        return model.log_odds(tokens, *encoder.tokens([text])).sigmoid().item()

    @torch.no_grad()
    def caption(
        self,
        image: MemoryImage,
        prompt: str = "",
        num_beams: int = 3,
        max_new_tokens: int = LONGEST,
        memory: EpisodicMemory | None = None,
        temperature: float = 0.0,
    ) -> str:
        """What the model writes about an image, the prompt included.

        Args:
            memory: of this model, from which it speaks; None: it says what it says without one.
            temperature: 0: what is likeliest; else each word is drawn, the higher, the freer, and there is one beam.

        Raises:
            ValueError: an image that cannot be read, a prompt as long as the context, a setting out of its range, or a
                memory that this model does not speak from.
        """
        self.trained.require(CAPTIONS)
        tensor = self.pixels(image)
        spoken = self._spoken(memory, tensor[0])
        beams = 1 if temperature else num_beams
        recalled = None if spoken is None else spoken.tokens
        return caption_of(self.trained, tensor, prompt, beams, max_new_tokens, recalled, temperature)

    @torch.no_grad()
    def answer(
        self,
        question: str,
        image: MemoryImage | None = None,
        memory: EpisodicMemory | None = None,
        max_new_tokens: int = LONGEST,
    ) -> str:
        """What the model answers to a question, about an image or alone, greedily.

        Args:
            memory: of this model, from which it speaks. Without an image the question asks it. With one, a question
                that has a name asks first, and what it recalls is said without the image; otherwise the image asks.

        Raises:
            ValueError: the model was not trained to speak from a memory, an image that cannot be read, an empty
                question or one as long as the context, or a memory of another model.
        """
        self.trained.require(CAPTIONS)
        if self.trained.model.recall is None:
            raise ValueError(MUTE)
        check_texts([question])
        pixels = None if image is None else self.pixels(image)
        spoken = self._spoken(memory, None if pixels is None else pixels[0], question)
        if spoken is None:
            return answer_of(self.trained, question, pixels, max_new_tokens=max_new_tokens)
        seen = None if spoken.by_question else pixels
        return answer_of(self.trained, question, seen, max_new_tokens=max_new_tokens, recalled=spoken.tokens)

    @torch.no_grad()
    def ask(self, question: str, image: MemoryImage, think: bool | None = None) -> Answered:
        """What a model of stage 2 answers to a question about an image: why, the answer, and boxes.

        Args:
            think: say why before the answer; None: if the model was trained to.

        Raises:
            ValueError: the model was not trained to answer, or to say why where it is to, an image that cannot be read,
                or an empty question or one as long as the context.
        """
        check_texts([question])
        tensor = self.pixels(image)
        return ask(self.trained, tensor, question, whether_to_think(self.trained, think))

    def _spoken(
        self, memory: EpisodicMemory | None, image: torch.Tensor | None, question: str | None = None
    ) -> Spoken | None:
        if memory is None:
            return None
        if memory.encoder.model is not self.trained.model:
            raise ValueError("this memory is of another model: open its file with memory(FILE) of this one")
        return memory.recalled(image, question)

    def memory(self, file: str | Path | None = None, **settings: Any) -> EpisodicMemory:
        """An empty episodic memory of this model, or the one that a file holds.

        Args:
            settings: of :class:`EpisodicMemory`: ``slots``, ``widen`` ...; a file brings its own.

        Raises:
            ValueError: a setting out of its range, or a file that is missing, damaged or of another model.
        """
        memory = EpisodicMemory(self.trained.model, self.trained.processor, **settings)
        if file is not None:
            memory.load(file)
        return memory

    def _cosines(self, images: Sequence[MemoryImage], texts: Sequence[str]) -> Tensor:
        """``[images, texts]``."""
        self.trained.require(RETRIEVAL)
        for name, given in (("images", images), ("captions", texts)):
            if isinstance(given, (str, bytes, Path)):
                raise ValueError(f"{name} is a list: write [{name[:-1]}]")
            if not len(given):
                raise ValueError(f"there are no {name} to compare")
        return (self.encoder.images(images) @ self.encoder.texts(texts).T).cpu()


def _best_first(scores: Tensor, items: Sequence[Any]) -> list[Found]:
    order = scores.argsort(descending=True, stable=True).tolist()
    return [Found(items[index], index, scores[index].item()) for index in order]
