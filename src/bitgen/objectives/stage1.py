"""Stage 1: a model and a batch in, the losses of vision-language training out.

Of image-caption pairs: ``contrastive_weight * ITC + itm_weight * ITM + memory_kl_weight * KL + text_loss_weight * LM``,
of packed text ``text_loss_weight * LM`` alone. Where matching reads likelihoods, LM is over captions without their
image too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from bitgen.data.text_blocks import causal_document_mask
from bitgen.machine.ranks import Processes
from bitgen.model.episodic_memory import MemoryReader, readback_error, slot_utilization
from bitgen.model.likelihood import next_token_labels
from bitgen.model.modeling_bitgen import BitGenModel, StackOutput
from bitgen.model.sequence_layout import SequenceLayout
from bitgen.objectives.contrastive import ContrastiveOutput, contrastive_loss, recentre
from bitgen.objectives.feature_queue import FeatureQueue, QueueEntries, pad_to
from bitgen.objectives.flops import pair_flops, text_flops
from bitgen.objectives.gather import gather_entries, gather_rows
from bitgen.objectives.language import language_loss
from bitgen.objectives.matching import draw_hard_negatives
from bitgen.objectives.matching_pass import (
    Pairs,
    accuracy_on_hardest,
    match_by_likelihood,
    match_by_token,
    pick_partners,
    with_partners,
)
from bitgen.objectives.stage1_reach import Stage1Settings, unreached_by
from bitgen.objectives.token_dropout import drop_tokens
from bitgen.protocols import Output
from bitgen.stages import Role

TEMPERATURE_RANGE = (0.01, 1.0)


class Stage1Update(NamedTuple):
    """What a micro-step leaves for the queue and the memory: this rank's ``entries`` (None where no loss reads the
    queue), and the posterior mean ``[K, C]`` of the gathered batch's episode (None without a memory, and for text)."""

    entries: QueueEntries | None
    posterior: torch.Tensor | None


class Stage1Objective(nn.Module):
    """The model, the learned temperature, the queue of past pairs, and one forward a micro-step.

    Queue and running memory are read in a forward and updated in :meth:`advance`, after the optimizer's step, so that
    no step sees its own pairs. Parameters that no switched-on loss reaches are frozen here, so that each one left
    trainable gets a gradient.

    Args:
        sees_pairs: whether the run has image-caption pairs; without them no loss reaches what reads images.
        memory_alpha: share of a step's posterior in the running memory.

    Raises:
        ValueError: no loss is on that trains the encoders.
    """

    def __init__(
        self, model: BitGenModel, settings: Stage1Settings, sees_pairs: bool = True, memory_alpha: float = 0.0
    ) -> None:
        super().__init__()
        if not (settings.contrastive_weight or settings.itm_weight or settings.text_loss_weight):
            raise ValueError(
                "contrastive_weight, itm_weight and text_loss_weight are all 0: the memory's KL alone trains no "
                "encoder. Give one of them a weight."
            )
        self.model = model
        self.settings = settings
        self.sees_pairs = sees_pairs
        self.memory_alpha = memory_alpha
        self.done, self.logged = 1.0, False
        self.log_temperature = nn.Parameter(torch.tensor(math.log(settings.temperature)))
        sizes = model.config
        # No buffers: they would be broadcast by DistributedDataParallel and be part of the model's weights.
        self.queue = FeatureQueue(settings.queue_size, sizes.embed_dim, sizes.max_seq_len, sizes.pooled_tokens)
        for _, parameter in self.unreached_parameters():
            parameter.requires_grad_(False)

    def _apply(self, fn: Any, recurse: bool = True) -> Stage1Objective:
        """``to(device)`` moves the queue along."""
        super()._apply(fn, recurse)
        self.queue.to(self.log_temperature.device)
        return self

    # --- what the training loop asks -----------------------------------------------------------------------------

    def begin(self, done: float, logged: bool) -> None:
        """Before a step: the share of the run that lies behind, for the temperature of drawing negatives, and whether
        the step is logged, for what is measured then alone."""
        self.done, self.logged = done, logged

    @torch.no_grad()
    def advance(self, updates: Sequence[Stage1Update], ranks: Processes) -> None:
        """After a step: temperature into its range, pairs into the queue, posteriors into the running memory."""
        self.clamp_temperature_()
        for entries, posterior in updates:
            if entries is not None:
                self.queue.enqueue(gather_entries(QueueEntries(*entries), ranks))
            if posterior is not None:
                assert self.model.memory is not None
                self.model.memory.consolidate_(posterior, self.memory_alpha)

    def roles(self) -> dict[str, Role]:
        """What every parameter is, and whether a loss that is on reaches it."""
        unreached = {name for name, _ in self.unreached_parameters()}
        roles = {
            f"model.{name}": Role(*role, f"model.{name}" not in unreached) for name, role in self.model.roles().items()
        }
        return {"log_temperature": Role("temperature", "weight", False, "log_temperature" not in unreached), **roles}

    def base_names(self) -> set[str]:
        """Pretrained weights of the model that no run changes."""
        return self.model.base_names()

    def state(self) -> dict[str, Any]:
        """Temperature and queue; the running memory is among the model's weights."""
        return {"log_temperature": self.log_temperature.detach(), "queue": self.queue.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state` gave.

        Raises:
            ValueError: a queue of other sizes.
        """
        with torch.no_grad():
            self.log_temperature.copy_(state["log_temperature"])
        self.queue.load_state_dict(state["queue"])

    def flops(self, inputs: dict[str, torch.Tensor]) -> float:
        """Estimate of a micro-step's operations, of the passes that its losses make; see ``flops.py``."""
        rows, tokens = inputs["input_ids"].shape
        if "document_ids" in inputs:
            return rows * text_flops(self.model, tokens)
        encoder = self.model.vision_encoder
        adapts = encoder is not None and encoder.trainable
        return rows * pair_flops(self.model, self.settings, adapts, tokens, runs_tower="pixel_values" in inputs)

    def unreached_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Parameters that get no gradient from the losses that are switched on, apart from those of adapters."""
        unreached = unreached_by(self.model, self.settings, self.sees_pairs, self._fuses())
        return [(name, parameter) for name, parameter in self.named_parameters() if unreached(name)]

    def _fuses(self) -> bool:
        settings = self.settings
        writes = self.model.memory is not None and settings.memory_kl_weight
        return self.sees_pairs and bool(settings.itm_weight or settings.text_loss_weight or writes)

    def itm_temperature(self) -> float:
        """Today's temperature of drawing negatives: from its start to its end value in equal ratios."""
        end = self.settings.itm_temperature
        start = self.settings.itm_temperature_start or end
        return start * (end / start) ** self.done

    @torch.no_grad()
    def clamp_temperature_(self) -> None:
        """Keep T in [0.01, 1]."""
        self.log_temperature.clamp_(*(math.log(limit) for limit in TEMPERATURE_RANGE))

    # --- one micro-step ------------------------------------------------------------------------------------------

    def forward(self, batch: dict[str, torch.Tensor]) -> Output:
        """The losses of one micro-step, whose ``update`` is a :class:`Stage1Update`.

        Args:
            batch: ``pixel_values`` or ``vision_features``, ``input_ids, attention_mask [B, T]``, ``image_ids [B]``; or
                packed text as ``collate_blocks`` gives it.
        """
        with self.model.embeddings.one_gradient():
            if "document_ids" in batch:
                return self._read_text(batch)
            return self._see_pairs(batch)

    def _reader(self) -> MemoryReader | None:
        """The running memory as it was before this step."""
        memory = self.model.memory
        return memory.reader(memory.state) if memory is not None else None

    def _read_text(self, batch: dict[str, torch.Tensor]) -> Output:
        """Next-token prediction in packed documents, none of which sees another. The memory is read, not written: it
        holds what was seen."""
        model = self.model
        reader = self._reader()
        allowed = causal_document_mask(batch["document_ids"])
        layout = SequenceLayout(batch["position_ids"], allowed, batch["attention_mask"])
        hidden = model.run_stack(batch["input_ids"], layout.real, reader=reader, layout=layout).hidden_states
        text_loss = language_loss(hidden, model.embeddings.token.weight, batch["labels"])
        loss = self.settings.text_loss_weight * text_loss
        metrics = {"text_loss": text_loss.detach(), "loss": loss.detach()}
        return Output(loss, metrics, Stage1Update(None, None))

    def _see_pairs(self, batch: dict[str, torch.Tensor]) -> Output:
        model, settings = self.model, self.settings
        input_ids, mask, image_ids = batch["input_ids"], batch["attention_mask"], batch["image_ids"]
        reader, queue = self._reader(), self.queue
        images = model.encode_image(batch.get("pixel_values"), batch.get("vision_features"))
        pooled = model.pool_image_tokens(images.image_tokens)
        past = queue.valid()
        temperature = self.log_temperature.exp()
        metrics: dict[str, torch.Tensor] = {"temperature": temperature.detach()}
        loss = images.image_features.new_zeros(())
        entries = alone = None
        contrasts = bool(settings.contrastive_weight or settings.itm_weight)
        drops = self.training and settings.token_dropout > 0
        weighs = model.config.itm_likelihood and settings.itm_weight > 0
        if weighs or (contrasts and not drops):
            alone = model.run_stack(input_ids, mask, reader=reader).hidden_states
        if contrasts:
            if drops:
                text_features = model.encode_text(*drop_tokens(input_ids, mask, settings.token_dropout), reader)
            else:
                assert alone is not None
                text_features = model.text_features(alone, mask)
            entries = QueueEntries(
                images.image_features.detach(),
                text_features.detach(),
                image_ids,
                pad_to(input_ids, queue.entries.input_ids.shape[1]),
                pad_to(mask, queue.entries.attention_mask.shape[1]),
                pooled.detach().to(torch.bfloat16),
            )

        if settings.contrastive_weight:
            itc = self._contrast(images.image_features, text_features, image_ids, past, temperature)
            loss = loss + settings.contrastive_weight * itc.loss
            metrics.update(contrastive_loss=itc.loss, acc_i2t=itc.acc_i2t, acc_t2i=itc.acc_t2i)

        posterior = None
        if self._fuses():
            if settings.itm_weight:
                assert entries is not None
                fused, itm = self._matching_pass(entries, pooled, input_ids, mask, past, reader, alone)
                loss = loss + settings.itm_weight * itm["itm_loss"]
                metrics.update(itm)
            else:
                fused = model.run_stack(input_ids, mask, pooled, reader)
            if model.memory is not None:
                with torch.set_grad_enabled(torch.is_grad_enabled() and settings.memory_kl_weight > 0):
                    posterior, kl = self._write_episode(fused, mask)
                loss = loss + settings.memory_kl_weight * kl["memory_kl_loss"]
                metrics.update(kl)
            if settings.text_loss_weight:
                width = fused.hidden_states.shape[1]
                labels = next_token_labels(pad_to(input_ids, width), pad_to(mask, width))
                caption_loss = language_loss(fused.hidden_states, model.embeddings.token.weight, labels)
                loss = loss + settings.text_loss_weight * caption_loss
                metrics["caption_loss"] = caption_loss
                if weighs:  # the likelihood ratio needs log p(caption) without the image, too
                    labels = next_token_labels(input_ids, mask)
                    assert alone is not None
                    prior_loss = language_loss(alone, model.embeddings.token.weight, labels)
                    loss = loss + settings.text_loss_weight * prior_loss
                    metrics["caption_prior_loss"] = prior_loss
        metrics["loss"] = loss
        detached = {name: value.detach() for name, value in metrics.items()}
        return Output(loss, detached, Stage1Update(entries, posterior))

    def _contrast(
        self,
        image_features: torch.Tensor,
        text_features: torch.Tensor,
        image_ids: torch.Tensor,
        past: QueueEntries,
        temperature: torch.Tensor,
    ) -> ContrastiveOutput:
        """ITC over the gathered batch, with gradient on both sides, blended with ITC over batch + queue.

        In the second term every key is detached: pulling keys towards their queries while only queries are pushed away
        from the queue draws all features to one point. Accuracies are over batch + queue (the batch alone where
        ``queue_weight`` is 0).
        """
        images, texts, ids = gather_rows(image_features), gather_rows(text_features), gather_rows(image_ids)
        smoothing, weight = self.settings.label_smoothing, self.settings.queue_weight
        in_batch = contrastive_loss(
            image_features, text_features, image_ids, images, texts, ids, temperature, smoothing
        )
        if not weight or not len(past.image_ids):
            return in_batch
        images, texts = images.detach(), texts.detach()
        with_queue = contrastive_loss(
            image_features,
            text_features,
            image_ids,
            torch.cat((images, recentre(past.image_features, images))),
            torch.cat((texts, recentre(past.text_features, texts))),
            torch.cat((ids, past.image_ids)),
            temperature,
            smoothing,
        )
        return with_queue._replace(loss=(1 - weight) * in_batch.loss + weight * with_queue.loss)

    def _matching_pass(
        self,
        local: QueueEntries,
        pooled: torch.Tensor,
        input_ids: torch.Tensor,
        mask: torch.Tensor,
        past: QueueEntries,
        reader: MemoryReader | None,
        alone: torch.Tensor | None,
    ) -> tuple[StackOutput, dict[str, torch.Tensor]]:
        """A partner for each of the B pairs, and what the head says of true and wrong pairs: the true pairs' output for
        the losses that follow, and the metrics.

        ``alone [B, T, D]``: the captions as the stack read them without an image, for a head that reads likelihoods.
        """
        drawn = pick_partners(partial(draw_hard_negatives, temperature=self.itm_temperature()), local, past)
        pairs = Pairs(input_ids, mask, pooled)
        own, partner = with_partners(pairs, local, past, drawn)
        if self.model.config.itm_likelihood:
            assert alone is not None
            fused, itm = match_by_likelihood(self.model, own, partner, drawn.weight, alone, reader)
        else:
            fused, itm = match_by_token(self.model, own, partner, drawn.weight, reader)
        median = drawn.rank.float().masked_fill(drawn.weight == 0, torch.nan).nanmedian().nan_to_num(0.0)
        metrics = {"itm_loss": itm.loss, "itm_acc_drawn": itm.accuracy, "itm_negative_rank": median}
        if self.logged:
            metrics["itm_acc"] = accuracy_on_hardest(self.model, pairs, local, past, reader)
        return fused, metrics

    def _write_episode(self, fused: StackOutput, mask: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Write the gathered batch as one episode into the prior; the posterior mean and the metrics."""
        memory = self.model.memory
        assert memory is not None and fused.codes is not None and fused.read_weights is not None
        codes = gather_rows(fused.codes)
        posterior, _ = memory.gpm.write(codes, memory.direct_writing)
        mask = pad_to(mask, fused.read_weights.shape[1])
        kl = memory.gpm.kl(posterior) + memory.read_kl(fused.read_weights, mask)
        reader = memory.reader(posterior.mean.detach())
        return posterior.mean.detach(), {
            "memory_kl_loss": kl,
            "memory_utilization": slot_utilization(fused.read_weights, mask),
            "memory_quality": 1 - readback_error(codes.detach(), reader),
        }
