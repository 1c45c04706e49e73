"""The optimizers' groups, the learning rate as a function of the step, and moments under their parameters' names."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from bitgen.config import Config
from bitgen.training.phases import PhasePlan

BETAS = (0.9, 0.98)
EPS = 1e-8
# The cosine ends at this share of the peak.
FINAL_SHARE = 0.01

# What a parameter is: decides its learning rate.
NEW, GATE, TEMPERATURE, LORA_A, LORA_B, TOWER = "new", "gate", "temperature", "lora_a", "lora_b", "tower"
MATRIX = "matrix"  # with `optimizer muon`: what Muon updates
ADAPTER_KINDS = (LORA_A, LORA_B, TOWER)

# No weight decay beside every tensor of fewer than two dimensions (norms, biases, gates, temperature). Decay is
# decoupled from the gradient, so a row that a batch does not touch would shrink all the same: an embedding of a rare
# word would be punished for being rare. The memory's prior is the origin that the KL pulls towards, not a weight.
NO_DECAY_WORDS = ("embedding", "embed_", "gate", "logvar", "prior", "temperature", "cls_token", "mask_token")


def kind_of(name: str, adapters: set[str]) -> str:
    """``new | gate | temperature | lora_a | lora_b | tower``, by name; ``adapters`` holds what phase 2 unfreezes."""
    last = name.rsplit(".", 1)[-1]
    if last == "log_temperature":
        return TEMPERATURE
    if name not in adapters:
        return GATE if last == "gate" else NEW
    if "lora_B" in name:
        return LORA_B
    return LORA_A if "lora_" in name else TOWER


def takes_decay(name: str, parameter: torch.Tensor) -> bool:
    """Whether weight decay applies; see ``NO_DECAY_WORDS`` for the reasons."""
    if "lora_" in name:
        return parameter.ndim >= 2
    return parameter.ndim >= 2 and not any(word in name.lower() for word in NO_DECAY_WORDS)


def parameter_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]], adapters: set[str], weight_decay: float, muon: bool = False
) -> list[dict[str, Any]]:
    """Optimizer groups over (decay, no decay) x (new, gate, temperature, LoRA A, LoRA B, tower), in a fixed order.

    Every group carries ``kind`` and ``names`` beside ``params``. Parameters that need no gradient are left out. With
    ``muon``, new parameters that map one space to another, which are those that decay, are of kind ``matrix``.
    """
    groups: dict[tuple[str, bool], dict[str, Any]] = {}
    for name, parameter in named_parameters:
        if not parameter.requires_grad:
            continue
        key = (kind_of(name, adapters), takes_decay(name, parameter))
        if muon and key == (NEW, True) and parameter.ndim == 2:
            key = (MATRIX, True)
        group = groups.setdefault(
            key, {"kind": key[0], "weight_decay": weight_decay if key[1] else 0.0, "names": [], "params": []}
        )
        group["names"].append(name)
        group["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]


def check_groups(module: nn.Module, groups: list[dict[str, Any]]) -> None:
    """Raise ``ValueError`` naming any trainable parameter that is not in exactly one group."""
    times: dict[int, int] = {}
    for group in groups:
        for parameter in group["params"]:
            times[id(parameter)] = times.get(id(parameter), 0) + 1
    trainable = {name: id(p) for name, p in module.named_parameters() if p.requires_grad}
    wrong = {name: times.get(key, 0) for name, key in trainable.items() if times.get(key, 0) != 1}
    if wrong:
        listed = ", ".join(f"{name} (in {count})" for name, count in wrong.items())
        raise ValueError(f"Every trainable parameter belongs to exactly one optimizer group, but: {listed}.")
    if set(times) - set(trainable.values()):
        raise ValueError("An optimizer group holds a parameter that is frozen or does not belong to the objective.")


class MuonAndAdamW(torch.optim.Optimizer):
    """Muon for the groups of kind ``matrix``, AdamW for the others, used as one optimizer.

    Muon replaces a matrix's averaged gradient by the nearest orthogonal matrix, so that all directions learn at one
    rate; tables, vectors and gates are no such maps (Jordan et al., kellerjordan.github.io/posts/muon). Its steps
    are scaled to the size of AdamW's (Liu et al., arXiv 2502.16982, section 2.2), which makes one rate fit all shapes.
    """

    def __init__(self, groups: list[dict[str, Any]], learning_rate: float, muon_learning_rate: float) -> None:
        matrices = [group for group in groups if group["kind"] == MATRIX]
        others = [group for group in groups if group["kind"] != MATRIX]
        self.parts: list[torch.optim.Optimizer] = [adamw(others, learning_rate)]
        if matrices:
            self.parts.append(torch.optim.Muon(matrices, lr=muon_learning_rate, adjust_lr_fn="match_rms_adamw"))
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        for part in self.parts:
            part.state = self.state  # each looks up its own parameters in it

    def step(self, closure: None = None) -> None:
        for part in self.parts:
            part.step()


def adamw(groups: list[dict[str, Any]], learning_rate: float) -> torch.optim.AdamW:
    # One kernel a group instead of one a tensor; the arithmetic is element by element either way.
    return torch.optim.AdamW(groups, lr=learning_rate, betas=BETAS, eps=EPS, fused=True)


def build_optimizer(module: nn.Module, adapters: set[str], config: Config) -> torch.optim.Optimizer:
    """AdamW, or Muon with AdamW, over the parameters of ``module`` (the objective) that train now.

    Args:
        adapters: names, as ``module.named_parameters()`` spells them, of what phase 2 unfreezes.
    """
    training = config.training
    muon = training.optimizer == "muon"
    groups = parameter_groups(module.named_parameters(), adapters, training.weight_decay, muon)
    check_groups(module, groups)
    if muon:
        return MuonAndAdamW(groups, training.learning_rate, training.muon_learning_rate)
    return adamw(groups, training.learning_rate)


def warmup_cosine(step: int, warmup_steps: int, total_steps: int) -> float:
    """Share of the peak rate at ``step``: linear from 1/warmup_steps to 1, then a cosine to ``FINAL_SHARE``."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - 1 - warmup_steps))
    return FINAL_SHARE + (1 - FINAL_SHARE) * 0.5 * (1 + math.cos(math.pi * progress))


def learning_rate_at(step: int, kind: str, plan: PhasePlan, config: Config) -> float:
    """The learning rate of a group at a step: no state, so it cannot fall back at the phase boundary or on resume.

    Adapters start at the boundary and warm up once more from there, on top of the model's schedule; what phase 2 adds
    to phase 1 must not arrive at the full rate with empty moments.
    """
    training, lora = config.training, config.lora
    if kind == TEMPERATURE:
        return training.learning_rate * config.objective.temperature_lr_factor
    share = warmup_cosine(step, training.warmup_steps, plan.total_steps)
    if kind == MATRIX:
        return training.muon_learning_rate * share
    rate = training.learning_rate * share
    if kind == GATE:
        return rate * training.gate_lr_factor
    if kind not in ADAPTER_KINDS:
        return rate
    since = step - (plan.boundary or 0)
    rate *= lora.lora_lr_factor * min(1.0, (since + 1) / max(1, lora.lora_lr_warmup_steps))
    return rate * lora.lora_plus_ratio if kind == LORA_B else rate


def set_learning_rates(
    optimizer: torch.optim.Optimizer, step: int, plan: PhasePlan, config: Config
) -> dict[str, float]:
    """Set every group's rate for ``step``; returns the rate of each kind, for the log."""
    rates = {}
    for group in optimizer.param_groups:
        group["lr"] = learning_rate_at(step, group["kind"], plan, config)
        rates[group["kind"]] = group["lr"]
    return rates


def state_by_name(optimizer: torch.optim.Optimizer) -> dict[str, dict[str, torch.Tensor]]:
    """The optimizer's state under parameters' names: the numbers of torch's own state dict change with the groups."""
    state: dict[str, dict[str, torch.Tensor]] = {}
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            if parameter in optimizer.state:
                state[name] = dict(optimizer.state[parameter])
    return state


def load_state_by_name(optimizer: torch.optim.Optimizer, state: dict[str, dict[str, torch.Tensor]]) -> list[str]:
    """Give parameters their moments back by name; returns the names that start without any.

    Raises:
        ValueError: a moment's shape is not its parameter's.
    """
    fresh = []
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            if name not in state:
                fresh.append(name)
                continue
            moments = {}
            for key, value in state[name].items():
                if value.ndim and value.shape != parameter.shape:
                    raise ValueError(
                        f"Optimizer state of {name} is {list(value.shape)}, the parameter {list(parameter.shape)}."
                    )
                moments[key] = value.detach().to(parameter.device)
            optimizer.state[parameter] = moments
    return fresh
