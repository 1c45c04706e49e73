"""A vision-language model of parts on held-out data: what it answers, how right that is, and how it ranks captions."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from bitgen.data.conversations.dataset import ConversationDataset, VisualCollator
from bitgen.data.conversations.pairs import PairConversations
from bitgen.data.conversations.records import Conversations
from bitgen.data.records import RecordReader
from bitgen.data.scenes.dataset import SceneReader
from bitgen.data.source_ids import read_source_ids, source_id
from bitgen.evaluation.answers import Decoding, write_answers
from bitgen.evaluation.caption_likelihood import likelihood_retrieval, log_likelihoods
from bitgen.evaluation.scene_captions import scene_caption_metrics
from bitgen.evaluation.text_metrics import TextScores, describe_decoding, score_texts
from bitgen.evaluation.vqa_metrics import vqa_scores
from bitgen.trained_vlm import TrainedVlm

Figures = dict[str, Any]


@dataclass(frozen=True)
class VlmEvaluation:
    """A model, held-out conversations as it takes them, and which of them are asked.

    Args:
        conversations: where questions and references are from; ``dataset`` may show other pictures.
        rows: no two of them ask about the same image with captions.
    """

    trained: TrainedVlm
    dataset: ConversationDataset
    conversations: Conversations
    rows: list[int]
    batch_size: int
    autocast: Callable[[], AbstractContextManager] = nullcontext

    @property
    def _collate(self) -> VisualCollator:
        return VisualCollator(self.trained.tokenizer.pad_token_id)

    def answers(self, decoding: Decoding) -> list[str]:
        """What the model answers, in the order of ``rows``. Raises ``ValueError`` naming a record of no use."""
        return write_answers(
            self.trained.model,
            self.trained.speech,
            (self.dataset[row] for row in self.rows),
            self._collate,
            decoding,
            self.batch_size,
            self.autocast,
            total=len(self.rows),
            show_progress=True,
        )

    def references(self) -> list[list[str]]:
        """What would be right, in the order of ``rows``."""
        return [self.conversations.references(row) for row in self.rows]

    def captioning(self, answers: list[str], decoding: Decoding) -> tuple[Figures, TextScores]:
        """Scores of answers against their references, and of built-in scenes how many are right, and in what."""
        says = describe_decoding(
            decoding.settings(self.trained.tokenizer) | {"max_new_tokens": decoding.max_new_tokens}
        )
        scores = score_texts(answers, self.references(), decoding=says)
        right: dict[str, float] = {}
        if (reader := scenes_of(self.conversations)) is not None:
            assert isinstance(self.conversations, PairConversations)
            images = [self.conversations[row].image for row in self.rows]
            right = scene_caption_metrics(answers, [reader.scenes[image] for image in images])
        return {**scores.to_dict(), **right}, scores

    def vqa(self, answers: list[str]) -> Figures:
        """Accuracy of answers by the rules of VQA v2; several references are several people's answers."""
        return vqa_scores(answers, self.references())

    def retrieval(self, bootstrap: int) -> Figures:
        """As of ``likelihood_retrieval``, with the number of candidates."""
        samples = [self.dataset[row] for row in self.rows]
        table = log_likelihoods(
            self.trained.model, samples, self._collate, self.batch_size, self.autocast, show_progress=True
        )
        return {"candidates": len(self.rows), **likelihood_retrieval(table, bootstrap)}

    def predictions(self, answers: list[str]) -> list[dict[str, int | str]]:
        """Answers as COCO's tools read results (``image_id``, ``caption``), of conversations as VQA's do
        (``question_id``, ``answer``)."""
        source = self.conversations
        if not isinstance(source, PairConversations):
            names = [source[row].id for row in self.rows]
            # VQA's numbers are numbers in its own files.
            ids = [int(name) if name.isascii() and name.isdigit() else name for name in names]
            return [{"question_id": id, "answer": text} for id, text in zip(ids, answers, strict=True)]
        numbers = read_source_ids(source.reader.folder) if isinstance(source.reader, RecordReader) else {}
        names = [source.reader.image_id(source[row].image) for row in self.rows]
        return [
            {"image_id": source_id(numbers, name), "caption": text} for name, text in zip(names, answers, strict=True)
        ]


def scenes_of(conversations: Conversations) -> SceneReader | None:
    """The built-in scenes that conversations describe; None: they are of other data."""
    reader = conversations.reader if isinstance(conversations, PairConversations) else None
    return reader if isinstance(reader, SceneReader) else None
