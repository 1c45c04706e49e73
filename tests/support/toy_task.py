"""A kind of run that BitGen does not have: a causal language model with a frozen base and adapters that start late.

``test_new_task.py`` counts the lines between the marks: this is what a new model takes, and ``training/`` stays as it
is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from bitgen.config.common import OutputSettings, RunSchema, TrainingSettings
from bitgen.machine.ranks import Processes
from bitgen.protocols import Batch, Counts, Output, Run
from bitgen.stages import Group, Phase, Role, Stage


@dataclass
class ToyConfig(RunSchema):
    """Nothing but what every run has."""

    training: TrainingSettings = field(default_factory=TrainingSettings)
    output: OutputSettings = field(default_factory=OutputSettings)
    entry = "src/toy.py"


# ---- the toy starts here ----
class NextToken(nn.Module):
    """The mean loss of the next token where the mask says so; counts what it has seen, as its own state."""

    def __init__(self) -> None:
        super().__init__()
        sizes = dict(vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
        self.model = LlamaForCausalLM(LlamaConfig(**sizes, attn_implementation="eager"))
        inject_adapter_in_model(LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.1), self.model)
        self.seen = 0

    def forward(self, inputs: dict[str, Tensor]) -> Output:
        logits, targets = self.model(inputs["input_ids"]).logits[:, :-1], inputs["input_ids"][:, 1:]
        losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        loss = losses[inputs["mask"].flatten()].mean()
        return Output(loss, {"loss": loss.detach()}, len(targets))

    def begin(self, done: float, logged: bool) -> None: ...

    def advance(self, updates: Sequence[int], ranks: Processes) -> None:
        self.seen += sum(updates)

    def roles(self) -> dict[str, Role]:
        kinds = {n: next((k for k in ("lora", "norm") if k in n), "base") for n, _ in self.named_parameters()}
        return {name: Role("lm", kind, kind == "lora") for name, kind in kinds.items()}

    def base_names(self) -> set[str]:
        return {name.removeprefix("model.") for name, role in self.roles().items() if role.kind == "base"}

    def state(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state(self, state: dict[str, Any]) -> None:
        self.seen = state["seen"]

    def flops(self, inputs: dict[str, Tensor]) -> None: ...


class Sequences:
    """Counting sequences from random starts, a function of the step; how many positions are supervised differs."""

    size, steps_per_epoch, batches_per_step, steady, max_bad_fraction = 96, 6, 2, True, 0.0

    def __init__(self, ranks: Processes, rows: int) -> None:
        self.ranks, self.rows = ranks, rows

    def start(self, stage: Stage, step: int) -> None:
        self.step = step

    def draw(self) -> list[Batch]:
        self.step += 1
        return [self._batch(micro * self.ranks.world_size + self.ranks.rank) for micro in range(2)]

    def _batch(self, part: int) -> Batch:
        random = torch.Generator().manual_seed(1000 * self.step + part)
        ids = (torch.randint(50, (self.rows, 1), generator=random) + torch.arange(9)) % 50
        mask = torch.arange(8)[None] < torch.randint(1, 9, (self.rows, 1), generator=random)
        counts = Counts(self.rows, self.rows, ids.numel(), int(mask.sum()))
        return Batch({"input_ids": ids, "mask": mask}, counts, torch.arange(self.rows))

    def prepare(self, stage: Stage, step: int, validates: bool) -> None: ...
    def enter(self, phase: int) -> None: ...
    def stop(self) -> None: ...
    def name_of(self, index: int) -> str:
        return f"row {index}"

    def identity(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def state(self, stage: Stage, step: int) -> dict[str, Any]:
        return {}

    def load_state(self, state: dict[str, Any]) -> None: ...


class Toy:
    """Norms train from the first step on, adapters from the fourth."""

    def build(self, config: ToyConfig, ranks: Processes, fresh: bool) -> Run:
        torch.manual_seed(config.training.seed)
        groups = Group("norms", ("lm/norm",), 1e-2), Group("adapters", ("lm/lora",), 3e-2, start=3, decay=0.1)
        phases = Phase(0, "Norms"), Phase(3, "Norms and adapters")
        stage = Stage("toy", groups, config.training.max_steps, 6, warmup=2, phases=phases)
        source = Sequences(ranks, config.training.batch_size)
        return Run(NextToken(), source, stage, None, source.identity(), {"config.yaml": config.to_yaml()})


# ---- and ends here ----
