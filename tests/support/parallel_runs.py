"""A tiny language model with frozen base and adapters, and a training loop over ``Parallel``: as a trainer uses it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from bitgen.machine.parallel import Parallel

STEPS, ACCUMULATION, UNFROZEN_AT = 4, 2, 2
MAX_NORM = 0.1  # between the norms of the first steps and those of the last
VOCABULARY, WIDTH, FEATURES = 64, 32, 8


class Output(NamedTuple):
    loss: Tensor


class TinyObjective(nn.Module):
    """Llama with LoRA on q and v, and a connector that puts features in front of the text.

    ``dummy``: a batch without features runs the connector all the same, with weight zero.
    """

    def __init__(
        self, seed: int = 0, tied: bool = False, dummy: bool = True, base: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=WIDTH,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=tied,
            attn_implementation="eager",
        )
        self.lm = LlamaForCausalLM(config).to(base)
        adapters = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        inject_adapter_in_model(adapters, self.lm)
        self.connector = nn.Linear(FEATURES, WIDTH)
        self.dummy = dummy
        # Neither has as many rows as there are ranks; the first has no dimension to share out.
        self.scale = nn.Parameter(torch.tensor(0.5 + 0.1 * seed))
        self.shift = nn.Parameter(torch.full((1,), 0.1 * seed))
        # All but the base train in float32, as with `autocast`.
        self.lm.requires_grad_(False)
        if tied:
            self.lm.get_input_embeddings().requires_grad_(True)
        for name, parameter in self.named_parameters():
            if "lora_" in name:
                parameter.data = parameter.data.float()

    def unfreeze(self, adapters: bool) -> None:
        for name, parameter in self.named_parameters():
            if "lora_" in name:
                parameter.requires_grad_(adapters)

    def forward(self, batch: dict[str, Tensor]) -> Output:
        ids = batch["input_ids"]
        embedded = self.lm.get_input_embeddings()(ids)
        features = batch.get("features")
        front = 0
        if features is not None:
            embedded = torch.cat(((self.connector(features) * self.scale + self.shift)[:, None], embedded), dim=1)
            front = 1
        elif self.dummy:
            nothing = self.connector(embedded.new_zeros(1, FEATURES)) * self.scale + self.shift
            embedded = embedded + 0 * nothing
        logits = self.lm(inputs_embeds=embedded.to(self.lm.dtype)).logits[:, front:]
        loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())
        return Output(loss)


def batch_of(step: int, micro: int, rank: int, features: bool = True) -> dict[str, Tensor]:
    """Two samples, the same whoever asks for them."""
    generator = torch.Generator().manual_seed(1000 * step + 10 * micro + rank)
    batch = {"input_ids": torch.randint(VOCABULARY, (2, 7), generator=generator)}
    if features:
        batch["features"] = torch.randn(2, FEATURES, generator=generator)
    return batch


@dataclass
class Run:
    """A run of the loop. ``parts``: the batches of these ranks are this process's share, one after another."""

    parallel: Parallel
    objective: TinyObjective
    parts: tuple[int, ...]
    text_only: tuple[int, ...] = ()  # ranks whose batches have no features
    steady: bool = True
    unfrozen_at: int = UNFROZEN_AT
    autocast: bool = False
    step: int = 0
    optimizer: torch.optim.Optimizer | None = None
    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    gradients: dict[str, Tensor] = field(default_factory=dict)
    wrapped: nn.Module | None = None
    restored: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    def enter(self) -> None:
        """A phase starts, or the run: what trains changes, so wrapper and optimizer do."""
        moments = self.parallel.moments(self.optimizer) if self.optimizer is not None else self.restored
        self.objective.unfreeze(self.step >= self.unfrozen_at)
        self.optimizer = self.wrapped = None
        self.wrapped = self.parallel.wrap(self.objective, self.steady)
        named = [(name, p) for name, p in self.objective.named_parameters() if p.requires_grad]
        groups = []
        for decay in (0.1, 0.0):
            chosen = [(name, p) for name, p in named if (p.ndim > 1) == (decay > 0)]
            groups.append({"weight_decay": decay, "names": [n for n, _ in chosen], "params": [p for _, p in chosen]})
        self.optimizer = torch.optim.AdamW(groups, lr=1e-2, fused=True)
        self.parallel.load_moments(self.optimizer, moments)

    def go(self, until: int = STEPS) -> Run:
        if self.wrapped is None:
            self.enter()
        while self.step < until:
            if self.step == self.unfrozen_at and self.step:
                self.enter()
            self._step()
        return self

    def _step(self) -> None:
        losses = []
        for micro, part, last in self._micro_steps():
            batch = batch_of(self.step, micro, part, part not in self.text_only)
            with self.parallel.accumulating(self.wrapped, last):
                with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
                    loss = self.wrapped(batch).loss
                (loss / (ACCUMULATION * len(self.parts))).backward()
            losses.append(loss.item())
        named = self.objective.named_parameters()
        gradients = self.parallel.gather({name: p.grad for name, p in named if p.grad is not None})
        self.gradients = {name: gradient.clone() for name, gradient in gradients.items()}
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = self.parallel.clip(parameters, MAX_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.losses.append(sum(losses) / len(losses))
        self.norms.append(norm.item())
        self.step += 1

    def _micro_steps(self) -> Iterator[tuple[int, int, bool]]:
        for micro in range(ACCUMULATION):
            for part in self.parts:
                yield micro, part, micro == ACCUMULATION - 1 and part == self.parts[-1]

    # ---- checkpoints ----

    def weights(self) -> dict[str, Tensor]:
        objective = self.objective
        gathered = self.parallel.gather({**dict(objective.named_parameters()), **dict(objective.named_buffers())})
        return {name: tensor.clone() for name, tensor in gathered.items()}

    def state(self) -> dict[str, Any]:
        moments = self.parallel.moments(self.optimizer)
        moments = {name: {key: value.clone() for key, value in of.items()} for name, of in moments.items()}
        return {"step": self.step, "weights": self.weights(), "moments": moments}

    def restore(self, state: dict[str, Any]) -> Run:
        self.step, self.restored = state["step"], state["moments"]
        self.enter()
        self.parallel.scatter_(self.objective, state["weights"])
        return self

    def found(self) -> dict[str, Any]:
        return {"losses": self.losses, "norms": self.norms, "gradients": self.gradients, **self.state()}
