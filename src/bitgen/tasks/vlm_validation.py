"""Validation of a vision-language model of parts: the loss of held-out answers, and scores of what it writes."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from bitgen.config.vlm import VlmConfig
from bitgen.data.conversations.dataset import ConversationDataset, VisualCollator
from bitgen.data.conversations.pairs import PairConversations
from bitgen.data.scenes.dataset import SceneReader
from bitgen.evaluation.answers import Decoding, evaluating, up_to_the_answer, write_answers
from bitgen.evaluation.scene_captions import scene_caption_metrics
from bitgen.evaluation.text_metrics import score_texts
from bitgen.guards.markdown import markdown
from bitgen.machine.devices import Precision
from bitgen.machine.ranks import Processes
from bitgen.protocols import HeldOutResult, Objective
from bitgen.tasks.vlm_parts import VlmParts
from bitgen.vlm.modeling import VisionLanguageModel

LOSS = "loss"
_SHOWN = 8  # answers in TensorBoard
_LONGEST_CELL = 4096  # characters


class HeldOutAnswers:
    """Validates on held-out conversations; call it with the objective.

    The score is the negative loss, or what ``best_metric`` names.
    """

    def __init__(self, config: VlmConfig, parts: VlmParts, ranks: Processes, precision: Precision) -> None:
        assert parts.val is not None
        validation = config.validation
        self.data, self.tokenizer = parts.val, parts.tokenizer
        self.collate = VisualCollator(parts.tokenizer.pad_token_id)  # one sample a row
        self.device, self.precision, self.batch_size = ranks.device, precision, config.training.batch_size
        self.shared = config.training.parallel == "sharded"
        self.best = validation.best_metric
        self.decoding = Decoding(validation.val_beams, validation.val_max_new_tokens)
        self.samples = min(len(self.data), validation.val_samples or len(self.data))
        self.rows = parts.val_rows[: validation.val_generated]
        if self.rows and not len(up_to_the_answer(self.data[self.rows[0]])["input_ids"]):
            self.rows = []  # text alone, written without prompts, has no question to be asked

    def __call__(self, objective: Objective, cached: ConversationDataset | None = None) -> HeldOutResult:
        """Scalars under ``val/``, and a table of answers beside what was to be said."""
        model = objective.model
        assert isinstance(model, VisionLanguageModel)
        self.data = self.data if cached is None else cached  # the same samples, with features for pictures
        scalars, texts, pictures = {"val/loss": self._loss(model)}, {}, {}
        if self.rows:
            samples = (self.data[row] for row in self.rows)
            answers = write_answers(
                model,
                self.tokenizer,
                samples,
                self.collate,
                self.decoding,
                self.batch_size,
                self.precision.autocast,
                shared=self.shared,
            )
            references = [self.data.conversations.references(row) for row in self.rows]
            found = score_texts(answers, references, temporal=self.best == "temporal_f1").to_dict()
            found["right"] = self._right(answers, references)
            scalars |= {f"val/{name}": value for name, value in found.items() if isinstance(value, float)}
            texts["samples/answers"] = _table(answers[:_SHOWN], references[:_SHOWN])
            if (sheet := self._sheet(model, answers[:_SHOWN], references[:_SHOWN])) is not None:
                pictures["samples/answers"] = sheet
        score = -scalars["val/loss"] if self.best == LOSS else scalars[f"val/{self.best}"]
        return HeldOutResult(scalars, pictures, texts, -math.inf if math.isnan(score) else score)

    def _sheet(
        self, model: VisionLanguageModel, answers: list[str], references: list[list[str]]
    ) -> torch.Tensor | None:
        """The first answers below their pictures, uint8 ``[3, H, W]``; None: there are features instead."""
        shown = [(row, self.data[row]) for row in self.rows[: len(answers)]]
        if model.tower is None or not all("pixel_values" in sample for _, sample in shown):
            return None
        from bitgen.evaluation.contact_sheet import SheetPicture, draw_contact_sheet  # drawing takes a second to import

        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (model.tower.spec.mean, model.tower.spec.std))
        tiles = []
        for row, sample in shown:
            pixels = ((sample["pixel_values"][0] * std + mean).clamp(0, 1) * 255).round().to(torch.uint8)
            tiles.append(SheetPicture(row, f"sample {row}", pixels.permute(1, 2, 0).numpy()))
        title = "the first picture of each question; below it the answer, in grey what was to be said"
        return draw_contact_sheet(tiles, answers, [listed[0] for listed in references], title)

    def _right(self, answers: list[str], references: list[list[str]]) -> float:
        """Percent of the answers that describe their scene rightly; of other data, that are one of the references."""
        source = self.data.conversations
        if isinstance(source, PairConversations) and isinstance(source.reader, SceneReader):
            # One row an image, in the order of the images.
            return scene_caption_metrics(answers, source.reader.scenes[: len(answers)])["right"]
        return 100 * sum(a in listed for a, listed in zip(answers, references, strict=True)) / len(answers)

    def _loss(self, model: VisionLanguageModel) -> float:
        """Mean loss of a supervised token over all samples."""
        total, count = 0.0, 0
        with evaluating(model), torch.no_grad():
            for start in range(0, self.samples, self.batch_size):
                rows = range(start, min(start + self.batch_size, self.samples))
                batch = self.collate([self.data[row] for row in rows])
                inputs = {name: t.to(self.device) for name, t in batch.items() if isinstance(t, torch.Tensor)}
                with self.precision.autocast():
                    logits, targets = model(inputs)
                total += F.cross_entropy(logits.float(), targets, reduction="sum").item()
                count += len(targets)
        return total / max(count, 1)


def _table(answers: list[str], references: list[list[str]]) -> str:
    rows = ["| written | to be said |", "|---|---|"]
    for answer, listed in zip(answers, references, strict=True):
        rows.append(f"| {markdown(answer)[:_LONGEST_CELL]} | {markdown(listed[0])[:_LONGEST_CELL]} |")
    return "\n".join(rows)


def score_text(metric: str, score: float) -> str:
    """What a score of :class:`HeldOutAnswers` says: a loss counts there with the other sign, since more is better."""
    return f"{metric} {-score if metric == LOSS else score:.4g}"
