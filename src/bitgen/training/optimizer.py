"""The optimizer of a stage's groups, and their learning rates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from bitgen.stages import Group, Role, Stage
from bitgen.training.muon import Muon, NorMuon

BETAS = (0.9, 0.98)
EPS = 1e-8


def freeze_and_unfreeze(module: nn.Module, roles: Mapping[str, Role], stage: Stage, step: int) -> None:
    """Let exactly the parameters take a gradient whose group has started at ``step``."""
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(stage.trains(roles[name], step))


def parameter_groups(module: nn.Module, roles: Mapping[str, Role], stage: Stage) -> list[dict[str, Any]]:
    """The optimizer's groups: each of the stage's in its order, what has no weight decay before what has some.

    Every one carries its ``group`` and ``names`` beside ``params``. Parameters that need no gradient are left out.
    """
    members: dict[tuple[str, bool], dict[str, nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        group = stage.group_of(roles[name])
        if parameter.requires_grad and group is not None:
            members.setdefault((group.name, roles[name].decays), {})[name] = parameter
    return [
        {
            "group": group,
            "weight_decay": group.decay if decays else 0.0,
            "names": list(members[group.name, decays]),
            "params": list(members[group.name, decays].values()),
        }
        for group in stage.groups
        for decays in (False, True)
        if (group.name, decays) in members
    ]


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
    """Muon, or NorMuon, for some groups and AdamW for the others, used as one optimizer.

    Muon replaces a matrix's averaged gradient by the nearest orthogonal matrix, so that all directions learn at one
    rate; tables, vectors and gates are no such maps (Jordan et al., kellerjordan.github.io/posts/muon). Its steps
    are scaled to the size of AdamW's (Liu et al., arXiv 2502.16982, section 2.2), which makes one rate fit all shapes.
    """

    def __init__(self, by_muon: list[dict[str, Any]], by_adamw: list[dict[str, Any]]) -> None:
        self.parts: list[torch.optim.Optimizer] = [adamw(by_adamw)] if by_adamw else []
        for kind, build in (("muon", Muon), ("normuon", NorMuon)):
            if groups := [group for group in by_muon if group["group"].optimizer == kind]:
                self.parts.append(build(groups, lr=groups[0]["group"].rate))
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        for part in self.parts:
            part.state = self.state  # each looks up its own parameters in it

    def step(self, closure: None = None) -> None:  # type: ignore[override]  # each part would evaluate a closure
        for part in self.parts:
            part.step()


def adamw(groups: list[dict[str, Any]]) -> torch.optim.AdamW:
    # One kernel a group instead of one a tensor; the arithmetic is element by element either way.
    return torch.optim.AdamW(groups, lr=groups[0]["group"].rate, betas=BETAS, eps=EPS, fused=True)


def build_optimizer(module: nn.Module, roles: Mapping[str, Role], stage: Stage) -> torch.optim.Optimizer:
    """AdamW, or Muon with AdamW, over the parameters of ``module`` (the objective) that train now.

    Raises:
        ValueError: a parameter trains and no group of the stage has it.
    """
    groups = parameter_groups(module, roles, stage)
    check_groups(module, groups)
    by_muon = [group for group in groups if group["group"].optimizer != "adamw"]
    if by_muon:
        return MuonAndAdamW(by_muon, [group for group in groups if group["group"].optimizer == "adamw"])
    return adamw(groups)


def set_learning_rates(optimizer: torch.optim.Optimizer, stage: Stage, step: int) -> dict[str, float]:
    """Set every group's rate for ``step``; returns the rates by the groups' names, for the log."""
    rates: dict[str, float] = {}
    for entry in optimizer.param_groups:
        group: Group = entry["group"]
        entry["lr"] = rates[group.name] = stage.rate_at(group, step)
    return rates
