"""What each parameter is said to be, in networks of every kind; what follows from it is tested where it is used."""

from __future__ import annotations

import pytest

from bitgen.config import Config
from bitgen.model.parameter_roles import (
    ADAPTER_KINDS,
    BASE,
    FIXED,
    GATE,
    LORA,
    MATRIX,
    NEW_PARTS,
    TOWER,
    TOWER_MATRIX,
    VISION,
    role_of,
)
from bitgen.tasks.stage1 import groups
from support.stage1 import make_objective, weights


@pytest.mark.parametrize("tower", ["adamw", "muon"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("tuning", ["frozen", "lora", "full"])
@pytest.mark.parametrize("fusion", ["concat_mlp", "cross_attention", "backbone"])
def test_stage_1_s_groups_take_every_parameter_but_the_base_once(
    optimizer: str, tuning: str, fusion: str, tower: str
) -> None:
    objective = make_objective(tower=True, vision_tuning=tuning, fusion=fusion, feed_forward="swiglu")
    named, roles = dict(objective.named_parameters()), objective.roles()
    assert roles.keys() == named.keys()
    found = groups(Config().replace(optimizer=optimizer, tower_optimizer=tower), boundary=5)
    for name, role in roles.items():
        takers = [group.name for group in found if group.takes(role)]
        if role.kind in (BASE, FIXED):
            assert not takers and role.part == VISION, name
            continue
        last = name.rsplit(".", 1)[-1]
        expected = (
            "temperature" if last == "log_temperature" else "gate" if last == "gate"
            else "lora_b" if "lora_B" in name else "lora_a" if "lora_A" in name
            else "muon_tower" if tower == "muon" and role.kind == TOWER_MATRIX
            else "tower" if role.kind in (TOWER, TOWER_MATRIX)
            else "matrix" if optimizer == "muon" and role.kind == MATRIX else "new"
        )  # fmt: skip
        assert takers[0] == expected, name
    assert {role.kind for role in roles.values() if role.part == VISION} <= {BASE, FIXED, TOWER, TOWER_MATRIX}
    assert objective.base_names() == {n.removeprefix("model.") for n, role in roles.items() if role.kind == BASE}
    late = {name for name, role in roles.items() if role.kind in ADAPTER_KINDS}
    assert bool(late) == (tuning != "frozen") and all(n.startswith("model.vision_encoder") for n in late)


def test_only_matrices_decay_and_no_table_gate_or_prior_does() -> None:
    objective = make_objective(tower=True, vision_tuning="full")
    named = dict(objective.named_parameters())
    for name, role in objective.roles().items():
        if role.decays:
            assert named[name].dim() >= 2, name
        if role.kind in (GATE,) or any(word in name for word in ("embedding", "prior", "logvar", "cls_token")):
            assert not role.decays, name
        if role.kind == MATRIX:
            assert role.decays and named[name].dim() == 2 and role.part in NEW_PARTS, name


@pytest.mark.parametrize("table", ["pos_embed", "reg_token", "cls_token", "dist_token"])
def test_tables_of_timm_s_towers_do_not_decay(table: str) -> None:
    """Those that timm's own ``no_weight_decay`` names."""
    assert not role_of(f"vision_encoder.tower.timm_model.{table}", 3, "full").decays
    assert role_of("vision_encoder.tower.timm_model.blocks.0.attn.qkv.weight", 2, "full").decays


def test_adapters_decay_as_matrices_and_dora_s_magnitudes_do_not() -> None:
    objective = make_objective(tower=True, vision_tuning="lora", use_dora=True)
    named = dict(objective.named_parameters())
    adapters = {name: role for name, role in objective.roles().items() if role.part == LORA}
    assert any("magnitude" in name for name in adapters)
    assert all(role.decays == (named[name].dim() >= 2) for name, role in adapters.items())


def test_what_no_loss_reaches_says_so() -> None:
    objective = make_objective(weights(itm_weight=0.0, memory_kl_weight=0.0))
    unreached = {name for name, role in objective.roles().items() if not role.reached}
    assert any("itm_head" in name for name in unreached) and any("memory.gpm" in name for name in unreached)
    assert unreached == {name for name, p in objective.named_parameters() if not p.requires_grad}
