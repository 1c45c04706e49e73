"""Validation of a vision-language model of parts: the loss of held-out answers, and scores of what it writes."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator

import torch
from torch.nn import functional as F

from bitgen.config.values import ConfigError
from bitgen.config.vlm import VlmConfig
from bitgen.data.bad_records import BadRecord
from bitgen.data.conversations.dataset import ConversationDataset, VisualCollator
from bitgen.data.conversations.pairs import PairConversations
from bitgen.data.scenes.dataset import SceneReader
from bitgen.evaluation.answers import Decoding, askable, evaluating, write_answers
from bitgen.evaluation.scene_captions import scene_caption_metrics
from bitgen.evaluation.text_metrics import score_texts
from bitgen.guards.markdown import markdown
from bitgen.machine.devices import Precision
from bitgen.machine.ranks import Processes
from bitgen.protocols import HeldOutResult, Objective
from bitgen.tasks.vlm_data import speech_of
from bitgen.tasks.vlm_parts import VlmParts
from bitgen.vlm.modeling import VisionLanguageModel

logger = logging.getLogger(__name__)

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
        self.data, self.speech = parts.val, speech_of(config, parts.tokenizer)
        self.collate = VisualCollator(parts.tokenizer.pad_token_id)  # one sample a row
        self.device, self.precision = ranks.device, precision
        self.batch_size = validation.val_batch_size or config.training.batch_size
        self.shared = config.training.parallel == "sharded"
        self.best = validation.best_metric
        self.decoding = Decoding(validation.val_beams, validation.val_max_new_tokens)
        self.samples = min(len(self.data), validation.val_samples or len(self.data))
        positions = parts.model.language.config.max_position_embeddings
        self.rows, left_out = askable(
            self.data, parts.val_rows[: validation.val_generated], self.decoding.max_new_tokens, positions
        )
        if left_out:
            message = "%d of the %d held-out conversations that val_generated asks are left out, the first: %s"
            # Text alone, written without prompts, has no question to be asked: nothing to warn of.
            level = logging.INFO if config.language.template == "plain" and not self.rows else logging.WARNING
            logger.log(level, message, len(left_out), len(left_out) + len(self.rows), left_out[0])
        if self.best != LOSS and len(self.rows) < (fewest := 2 if self.best == "cider" else 1):
            raise ConfigError(
                f"best_metric {self.best} needs {fewest} held-out conversations that can be asked, and val_data "
                f"{config.data.val_data} has {len(self.rows)}. Write best_metric loss, a smaller val_max_new_tokens, "
                "or other val_data."
            )
        self._unreadable: set[str] = set()

    def __call__(self, objective: Objective, cached: ConversationDataset | None = None) -> HeldOutResult:
        """Scalars under ``val/``, and a table of answers beside what was to be said."""
        model = objective.model
        assert isinstance(model, VisionLanguageModel)
        self.data = self.data if cached is None else cached  # the same samples, with features for pictures
        scalars, texts, pictures = {"val/loss": self._loss(model)}, {}, {}
        asked: list[int] = []
        if self.rows:
            answers = write_answers(
                model,
                self.speech,
                self._readable(self.rows, asked),
                self.collate,
                self.decoding,
                self.batch_size,
                self.precision.autocast,
                shared=self.shared,
            )
        if asked:
            references = [self.data.conversations.references(row) for row in asked]
            found = score_texts(answers, references, temporal=self.best == "temporal_f1").to_dict()
            found["right"] = self._right(asked, answers, references)
            scalars |= {f"val/{name}": value for name, value in found.items() if isinstance(value, float)}
            texts["samples/answers"] = _table(answers[:_SHOWN], references[:_SHOWN])
            if (sheet := self._sheet(model, asked, answers[:_SHOWN], references[:_SHOWN])) is not None:
                pictures["samples/answers"] = sheet
        score = -scalars["val/loss"] if self.best == LOSS else scalars.get(f"val/{self.best}", math.nan)
        return HeldOutResult(scalars, pictures, texts, -math.inf if math.isnan(score) else score)

    def _readable(self, rows: Iterable[int], read: list[int]) -> Iterator[dict]:
        """Samples of the rows that can be read, which are added to ``read``; the others are named once."""
        for row in rows:
            try:
                sample = self.data[row]
            except BadRecord as error:
                if str(error) not in self._unreadable:
                    self._unreadable.add(str(error))
                    logger.warning("validation leaves out %s", error)
                continue
            read.append(row)
            yield sample

    def _sheet(
        self, model: VisionLanguageModel, rows: list[int], answers: list[str], references: list[list[str]]
    ) -> torch.Tensor | None:
        """The first answers below their pictures, uint8 ``[3, H, W]``; None: there are features instead."""
        shown = [(row, self.data[row]) for row in rows[: len(answers)]]
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

    def _right(self, rows: list[int], answers: list[str], references: list[list[str]]) -> float:
        """Percent of the answers that describe their scene rightly; of other data, that are one of the references."""
        source = self.data.conversations
        if isinstance(source, PairConversations) and isinstance(source.reader, SceneReader):
            scenes = [source.reader.scenes[source.text(row).image] for row in rows]
            return scene_caption_metrics(answers, scenes)["right"]
        # Answers were written on one line.
        right = ([" ".join(text.split()) for text in listed] for listed in references)
        return 100 * sum(a in listed for a, listed in zip(answers, right, strict=True)) / len(answers)

    def _loss(self, model: VisionLanguageModel) -> float:
        """Mean loss of a supervised token over all samples that can be read."""
        total, count = 0.0, 0
        with evaluating(model), torch.no_grad():
            for start in range(0, self.samples, self.batch_size):
                rows = range(start, min(start + self.batch_size, self.samples))
                if not (samples := list(self._readable(rows, []))):
                    continue
                batch = self.collate(samples)
                inputs = {name: t.to(self.device) for name, t in batch.items() if isinstance(t, torch.Tensor)}
                with self.precision.autocast():
                    logits, targets = model(inputs)
                total += F.cross_entropy(logits.float(), targets, reduction="sum").item()
                count += len(targets)
        if not count:  # 0 would be the best loss that any checkpoint can have
            logger.warning("no held-out conversation could be read, so there is no loss")
            return math.nan
        return total / count


def _table(answers: list[str], references: list[list[str]]) -> str:
    rows = ["| written | to be said |", "|---|---|"]
    for answer, listed in zip(answers, references, strict=True):
        rows.append(f"| {markdown(answer)[:_LONGEST_CELL]} | {markdown(listed[0])[:_LONGEST_CELL]} |")
    return "\n".join(rows)


def score_text(metric: str, score: float) -> str:
    """What a score of :class:`HeldOutAnswers` says: a loss counts there with the other sign, since more is better."""
    return f"{metric} {-score if metric == LOSS else score:.4g}"
