"""Validation as the trainer calls it: the scalars of held-out data, and what TensorBoard shows of them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedTokenizerBase

from bitgen.evaluation.encode import EncodedSplit, Runner, Split
from bitgen.evaluation.generation import continue_text, sample_captions
from bitgen.evaluation.language import caption_loss, split_by_source, text_perplexities
from bitgen.evaluation.matching import default_cosine_weight
from bitgen.evaluation.put_right import put_right
from bitgen.evaluation.retrieval import Ranking
from bitgen.evaluation.validation import validate
from bitgen.guards.markdown import markdown
from bitgen.machine.devices import Precision
from bitgen.protocols import HeldOutResult

if TYPE_CHECKING:
    from bitgen.config import Config
    from bitgen.data.dataset import PairDataset
    from bitgen.data.text_blocks import TextBlocks
    from bitgen.feature_cache.pairs import CachedSplit
    from bitgen.model.modeling_bitgen import BitGenModel

# Rows of the slot-usage picture.
_PICTURED_PAIRS = 32
# Captions written for TensorBoard, and what is shown of a continued text.
_SAMPLES, _PROMPT_TOKENS, _NEW_TOKENS = 8, 12, 30
_LONGEST_CELL = 4096  # characters


class HeldOut:
    """Validates on held-out pairs, held-out text or both; call it with the model and today's temperature.

    Args:
        dataset: pairs; None: there are none.
        text: text; None: there is none.
    """

    def __init__(
        self,
        config: Config,
        dataset: PairDataset | None,
        text: TextBlocks | None,
        tokenizer: PreTrainedTokenizerBase,
        device: torch.device,
        precision: Precision,
    ) -> None:
        assert dataset is not None or text is not None
        self.dataset, self.device, self.precision, self.tokenizer = dataset, device, precision, tokenizer
        self.sources = split_by_source(text, tokenizer) if text is not None else {}
        self.max_images = config.data.val_max_images
        self.batch_size, self.text_batch_size = config.training.batch_size, config.training.text_batch_size
        self.num_workers = config.data.num_workers if dataset is not None and dataset.kind == "images" else 0
        self.context = config.model.max_seq_len
        self.aligns = bool(config.objective.contrastive_weight or config.objective.itm_weight)
        self.writes = bool(config.objective.text_loss_weight)
        self.matches, self.config = bool(config.objective.itm_weight), config
        self.put_right: list[tuple[str, str]] = []

    def __call__(self, model: BitGenModel, temperature: float, split: CachedSplit | None = None) -> HeldOutResult:
        """Scalars under ``val/``, pictures and texts; ``split``: the same images as features computed earlier.

        The score is the mean of the recalls where contrast aligns images and captions, else the loss of held-out text,
        else that of held-out captions, else that of matching, all negative.

        Raises:
            ValueError: a record of the split cannot be read.
        """
        scalars: dict[str, float] = {}
        pictures: dict[str, torch.Tensor] = {}
        texts: dict[str, str] = {}
        if self.dataset is not None:
            encoded, ranking = self._pairs(model, temperature, self.dataset if split is None else split, scalars)
            pictures = self._pictures(model, encoded)
            if self.matches and ranking is not None and encoded.num_images > 1:
                pictures |= self._put_right(model, encoded, ranking, temperature)
            if self.writes:
                runner = Runner(model, self.batch_size, self.device, self.precision.autocast)
                scalars["val/caption_loss"] = caption_loss(runner, encoded)
                texts["samples/captions"] = self._captions(model, encoded.num_images, split)
        if self.sources:
            runner = Runner(model, self.text_batch_size, self.device, self.precision.autocast)
            found = text_perplexities(runner, self.sources)
            scalars |= {f"val/{name}": value for name, value in found.items()}
            texts["samples/continuations"] = self._continuations(model)
        return HeldOutResult(scalars, pictures, texts, self._score(scalars))

    def _pairs(
        self, model: BitGenModel, temperature: float, dataset: Split, scalars: dict[str, float]
    ) -> tuple[EncodedSplit, Ranking | None]:
        if not self.aligns:
            runner = Runner(model, self.batch_size, self.device, self.precision.autocast, self.num_workers)
            return runner.encode(dataset, self.max_images), None
        result = validate(
            model,
            dataset,
            temperature=temperature,
            max_images=self.max_images,
            batch_size=self.batch_size,
            device=self.device,
            autocast=self.precision.autocast,
            num_workers=self.num_workers,
        )
        scalars |= result.scalars
        return result.encoded, result.ranking

    def _score(self, scalars: dict[str, float]) -> float:
        recalls = [value for name, value in scalars.items() if "_R@" in name and "rerank" not in name]
        if recalls and self.config.objective.contrastive_weight:  # without it similarities are those of the beginning
            return sum(recalls) / len(recalls)
        losses = (f"val/{name}" for name in ("text_loss", "caption_loss", "itm_loss"))
        loss = next((scalars[name] for name in losses if name in scalars), math.inf)
        return -math.inf if math.isnan(loss) else -loss  # NaN is neither worse nor better than anything

    def _captions(self, model: BitGenModel, images: int, split: CachedSplit | None) -> str:
        rows = torch.linspace(0, images - 1, min(_SAMPLES, images)).long().tolist()
        dataset = self.dataset
        assert dataset is not None
        source = dataset if split is None else split
        written = sample_captions(model, source, rows, self.tokenizer, self.device, self.precision.autocast)
        table = [
            (dataset.reader.image_id(row), text, dataset.captions_of(row)[0])
            for row, text in zip(rows, written, strict=True)
        ]
        return _markdown(("image", "written", "one reference"), table)

    def _continuations(self, model: BitGenModel) -> str:
        names = list(self.sources)
        prompts = [self._prompt(self.sources[name]) for name in names]
        written = continue_text(model, self.tokenizer, prompts, self.device, _NEW_TOKENS, self.precision.autocast)
        return _markdown(("source", "prompt", "continuation"), zip(names, prompts, written, strict=True))

    def _prompt(self, text: TextBlocks) -> str:
        """The first words of a held-out document, of which at least half of the context is left to go on in."""
        sequence = text[0]
        ids = sequence["input_ids"][sequence["document_ids"] == 0]
        ids = ids[: min(_PROMPT_TOKENS, self.context // 2)].tolist()
        return self.tokenizer.decode(ids, skip_special_tokens=True).rstrip("\ufffd")  # half of a character

    def _pictures(self, model: BitGenModel, encoded: EncodedSplit) -> dict[str, torch.Tensor]:
        # Here, because drawing takes a second to import, and only rank 0 of a run with held-out data draws.
        from bitgen.show.pictures import slot_similarity, slot_usage

        pictures = self._retrieval_panels(encoded) if self.aligns else {}
        if model.memory is not None:
            pictures["memory/slot_similarity"] = slot_similarity(model.memory.state)
            pictures["memory/slot_usage"] = slot_usage(self._slot_weights(model, encoded), what="pair")
        return pictures

    def _retrieval_panels(self, encoded: EncodedSplit) -> dict[str, torch.Tensor]:
        from bitgen.show.pictures import retrieval_pictures

        dataset = self.dataset
        assert dataset is not None
        captions = [caption for row in range(encoded.num_images) for caption in dataset.captions_of(row)]
        return retrieval_pictures(
            encoded.image_features,
            encoded.text_features,
            encoded.caption_image,
            captions,
            image_of=dataset.picture,
            name_of=dataset.reader.image_id,
        )

    def _put_right(
        self, model: BitGenModel, encoded: EncodedSplit, ranking: Ranking, temperature: float
    ) -> dict[str, torch.Tensor]:
        """What re-ranking put right: a picture, and in ``put_right`` each caption with one of the image that the cosine
        had first."""
        from bitgen.show.pictures import reranking_panel

        dataset = self.dataset
        assert dataset is not None
        runner = Runner(model, self.batch_size, self.device, self.precision.autocast)
        weight = default_cosine_weight(model.config.itm_likelihood, temperature, self.config.objective.itm_temperature)
        examples = put_right(runner, encoded, ranking, weight)
        captions = [caption for row in range(encoded.num_images) for caption in dataset.captions_of(row)]
        self.put_right = [(captions[one.caption], dataset.captions_of(int(one.by_cosine[0]))[0]) for one in examples]
        if not examples:
            return {}
        cosines = [encoded.image_features @ encoded.text_features[one.caption] for one in examples]
        shown = [
            (captions[one.caption], one.by_cosine, one.reranked, scores)
            for one, scores in zip(examples, cosines, strict=True)
        ]
        return {"retrieval/reranked": reranking_panel(shown, dataset.picture, dataset.reader.image_id)}

    def _slot_weights(self, model: BitGenModel, encoded: EncodedSplit) -> torch.Tensor:
        """Mean squared read weights ``[n, K]`` of n true pairs spread over the split."""
        assert model.memory is not None
        count = min(_PICTURED_PAIRS, encoded.num_texts)
        texts = torch.linspace(0, encoded.num_texts - 1, count).round().long()
        usage = torch.zeros(count, model.memory.gpm.slots)
        runner = Runner(model, self.batch_size, self.device, self.precision.autocast)
        for part, mask, fused in runner.fuse(encoded, texts, encoded.caption_image[texts]):
            assert fused.read_weights is not None
            weights = mask[..., None] / mask.sum(dim=1)[:, None, None]
            usage[part] = (fused.read_weights.float().square() * weights).sum(dim=1).cpu()
        return usage


def score_text(score: float) -> str:
    """What a score of :class:`HeldOut` says."""
    return f"mean recall {score:.1f}%" if score >= 0 else f"held-out loss {-score:.3f}"


def _markdown(columns: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """A table as TensorBoard's texts show it: what data and model say is text there, and no markup."""
    cells = [columns, tuple("---" for _ in columns), *rows]
    return "\n".join(
        "| " + " | ".join(markdown(" ".join(cell.split()), _LONGEST_CELL) for cell in row) + " |" for row in cells
    )
