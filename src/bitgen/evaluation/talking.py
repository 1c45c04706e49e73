"""A conversation with a trained vision-language model of parts about pictures and videos from files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from bitgen.data.conversations.chat_templates import PLAIN
from bitgen.data.conversations.dataset import VisualCollator
from bitgen.data.conversations.records import IMAGE_MARKER, Turn
from bitgen.data.dicom import DicomError, dicom_picture, is_dicom
from bitgen.data.video import read_frames
from bitgen.evaluation.answers import Decoding, up_to_the_answer, write_answers
from bitgen.guards.printable import printable
from bitgen.guards.regular_files import BadFile, read_regular_file
from bitgen.guards.texts import check_texts
from bitgen.model.processing_bitgen import MAX_IMAGE_PIXELS, BitGenProcessor
from bitgen.trained_vlm import TrainedVlm
from bitgen.vlm.connectors import Connector
from bitgen.vlm.vision import image_processor

VIDEOS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".flv", ".ogv", ".3gp")


class Talk:
    """Questions and answers in turn, each question in the light of all before; through the template of training.

    Args:
        visuals: pixels ``[F, 3, S, S]`` of each, which the first question is about.
    """

    def __init__(self, trained: TrainedVlm, visuals: Sequence[torch.Tensor], decoding: Decoding) -> None:
        self.trained, self.visuals, self.decoding = trained, list(visuals), decoding
        self.turns: list[Turn] = []

    def ask(self, question: str) -> str:
        """The answer, on one line; it is part of the conversation from then on.

        Raises:
            ValueError: the question is empty or no valid Unicode, the template cannot write it, or the conversation is
                longer than the model reads; it is the second one, and the model reads none (:func:`unread`).
        """
        check_texts([question])
        if self.turns and (says := unread(self.trained)) is not None:
            raise ValueError(f"{says}, so that there is no second one. Begin anew for another picture.")
        trained, frames = self.trained, [len(visual) for visual in self.visuals]
        marks = f"{IMAGE_MARKER}\n" * (0 if self.turns else len(frames))
        asked = [*self.turns, Turn("user", marks + question)]
        connector = trained.model.connector
        tokens = [connector.tokens(count) for count in frames] if connector is not None else []
        # As a sample of training, whose answer is cut off before the model sees it.
        ids, labels = trained.speech([*asked, Turn("assistant", "x")], tokens)
        sample = {
            "input_ids": torch.tensor(ids),
            "labels": torch.tensor(labels),
            "frames": frames,
            "words": 0,
            "truncated": False,
            "index": 0,
            "image_id": -1,
            **({"pixel_values": torch.cat(self.visuals)} if frames else {}),
        }
        if not len(up_to_the_answer(sample)["input_ids"]):
            raise ValueError("there is nothing to describe: give a picture")
        collate = VisualCollator(trained.tokenizer.pad_token_id, "left")
        [answer] = write_answers(trained.model, trained.speech, [sample], collate, self.decoding)
        # An answer without a word could not be written into the next prompt.
        self.turns = [*asked, Turn("assistant", answer or "...")]
        return answer


def unread(trained: TrainedVlm) -> str | None:
    """What to say of a model that was trained without questions, and reads none; None: it reads them."""
    if trained.description.speech.template != PLAIN:
        return None
    return f"{trained.folder} was trained with template plain: it only describes pictures and reads no question"


def read_visuals(trained: TrainedVlm, paths: Sequence[str]) -> list[torch.Tensor]:
    """The pixels of files as the model takes them, ``[F, 3, S, S]`` each: a picture or a video each.

    Where the connector compares pictures, the files are one visual: the current picture, then the prior one.

    Raises:
        ValueError: the model takes no pictures, or a file cannot be read; it names the file.
    """
    if not paths:
        return []
    connector, processor = eyes(trained)
    if connector.most_frames is not None:
        pictures = torch.stack([_picture(processor, path) for path in paths])
        connector.tokens(len(pictures))
        return [pictures]
    frames = min(trained.description.speech.num_frames, connector.config.frames)
    return [_visual(processor, path, frames) for path in paths]


def read_picture(trained: TrainedVlm, path: str) -> torch.Tensor:
    """The pixels of one picture, ``[1, 3, S, S]``; errors as of :func:`read_visuals`."""
    return _picture(eyes(trained)[1], path).unsqueeze(0)


def eyes(trained: TrainedVlm) -> tuple[Connector, BitGenProcessor]:
    """What a model sees pictures with. Raises ``ValueError`` where it takes none."""
    connector, tower = trained.model.connector, trained.model.tower
    if connector is None or tower is None:
        raise ValueError(f"{trained.folder} is a language model alone and takes no pictures: ask it without any.")
    if tower.spec.image_size is None:
        raise ValueError(
            f"{trained.folder} was trained on features computed earlier and has no vision encoder: it takes no "
            "pictures. Evaluate it on a folder of features, or train on pictures."
        )
    return connector, image_processor(tower.spec)


def _visual(processor: BitGenProcessor, path: str, frames: int) -> torch.Tensor:
    if Path(path).suffix.lower() not in VIDEOS:
        return _picture(processor, path).unsqueeze(0)
    if frames < 2:
        raise ValueError(f"{path} is a video, and this model was trained on single pictures: give it a picture.")
    try:
        pictures = read_frames(Path(path), frames, MAX_IMAGE_PIXELS)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return torch.stack([processor.image(picture, path) for picture in pictures])


def _picture(processor: BitGenProcessor, path: str) -> torch.Tensor:
    if Path(path).suffix.lower() in VIDEOS:
        raise ValueError(f"{path} is a video, and this model takes pictures: give it one.")
    try:
        payload = read_regular_file(path)
        if is_dicom(payload):
            return processor.image(dicom_picture(payload, MAX_IMAGE_PIXELS), path)
    except OSError as error:
        raise ValueError(f"{path}: it cannot be read ({error.strerror or printable(error, 200)})") from error
    except (DicomError, BadFile) as error:
        raise ValueError(f"{path}: {printable(error, 300)}") from error
    return processor.image(payload, path)
