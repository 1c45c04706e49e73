"""Groups: each trainable parameter in exactly one; moments travel by name."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bitgen.config import Config
from bitgen.config.stage1_settings import Stage1TrainingSettings as TrainingSettings
from bitgen.machine.parallel import load_state_by_name, state_by_name
from bitgen.stages import Phase, Role, Stage
from bitgen.tasks.stage1 import groups
from bitgen.training import muon
from bitgen.training.muon import Muon, NorMuon, orthogonal
from bitgen.training.optimizer import (
    build_optimizer,
    check_groups,
    freeze_and_unfreeze,
    parameter_groups,
    set_learning_rates,
)


class Toy(nn.Module):
    """The kinds of parameter that an objective has, under names that look like its own."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.linear = nn.Linear(4, 4)
        self.embeddings = nn.Embedding(7, 4)
        self.gate = nn.Parameter(torch.zeros(4, 4))
        self.prior_mean = nn.Parameter(torch.zeros(3, 4))
        self.log_temperature = nn.Parameter(torch.tensor(0.0))
        self.lora_A = nn.ModuleDict({"default": nn.Linear(4, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, 4, bias=False)})
        self.tower = nn.Linear(4, 4)

    def forward(self) -> torch.Tensor:
        return sum((parameter**2).sum() + parameter.sum() for parameter in self.parameters() if parameter.requires_grad)


ROLES = {
    "norm.weight": Role("decoder", "weight", False),
    "norm.bias": Role("decoder", "weight", False),
    "linear.weight": Role("decoder", "matrix", True),
    "linear.bias": Role("decoder", "weight", False),
    "embeddings.weight": Role("embeddings", "weight", False),
    "gate": Role("fusion", "gate", False),
    "prior_mean": Role("memory", "weight", False),
    "log_temperature": Role("temperature", "weight", False),
    "lora_A.default.weight": Role("lora", "a", True),
    "lora_B.default.weight": Role("lora", "b", True),
    "tower.weight": Role("vision_base", "tower", True),
    "tower.bias": Role("vision_base", "tower", False),
}
ADAPTERS = {name for name in ROLES if name.startswith(("lora_", "tower"))}
FROZEN_IN_PHASE_1 = ("lora_", "tower")
BOUNDARY = 5


def stage_of(config: Config | None = None) -> Stage:
    """Stage 1's groups: the adapters start at step 5 of 50."""
    config = config or Config(training=TrainingSettings(optimizer="adamw"))
    phases = (Phase(0), Phase(BOUNDARY))
    return Stage("stage1", groups(config, BOUNDARY), 50, 10, config.training.warmup_steps, phases=phases)


def build(module: Toy, config: Config | None = None) -> torch.optim.Optimizer:
    return build_optimizer(module, ROLES, stage_of(config))


def groups_of(module: Toy, config: Config | None = None) -> list[dict]:
    return parameter_groups(module, ROLES, stage_of(config))


def toy(phase: int) -> Toy:
    torch.manual_seed(0)
    module = Toy()
    freeze_and_unfreeze(module, ROLES, stage_of(), 0 if phase == 1 else BOUNDARY)
    return module


def kinds(module: Toy) -> dict[str, tuple[str, bool]]:
    return {name: (g["group"].name, g["weight_decay"] > 0) for g in groups_of(module) for name in g["names"]}


def test_each_parameter_s_group_and_whether_it_decays() -> None:
    assert kinds(toy(2)) == {
        "norm.weight": ("new", False),
        "norm.bias": ("new", False),
        "linear.weight": ("new", True),
        "linear.bias": ("new", False),
        "embeddings.weight": ("new", False),
        "gate": ("gate", False),
        "prior_mean": ("new", False),
        "log_temperature": ("temperature", False),
        "lora_A.default.weight": ("lora_a", True),
        "lora_B.default.weight": ("lora_b", True),
        "tower.weight": ("tower", True),
        "tower.bias": ("tower", False),
    }


def test_frozen_parameters_are_in_no_group() -> None:
    assert not any(name.startswith(FROZEN_IN_PHASE_1) for name in kinds(toy(1)))


@pytest.mark.parametrize("phase", [1, 2])
def test_every_trainable_parameter_is_in_exactly_one_group(phase: int) -> None:
    module = toy(phase)
    optimizer = build(module)
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert len(held) == len(set(held))
    assert set(held) == {id(p) for p in module.parameters() if p.requires_grad}


def test_a_parameter_left_out_or_doubled_is_named() -> None:
    module = toy(2)
    found = groups_of(module)
    group = next(g for g in found if "linear.weight" in g["names"])
    group["params"] = [p for p in group["params"] if p is not module.linear.weight]
    with pytest.raises(ValueError, match=r"linear\.weight \(in 0\)"):
        check_groups(module, found)
    group["params"] += [module.linear.weight, module.linear.weight]
    with pytest.raises(ValueError, match=r"linear\.weight \(in 2\)"):
        check_groups(module, found)


def test_a_frozen_parameter_in_a_group_is_refused() -> None:
    module = toy(2)
    found = groups_of(module)
    module.linear.weight.requires_grad_(False)
    with pytest.raises(ValueError, match="frozen"):
        check_groups(module, found)


def take_step(module: Toy, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    module().backward()
    optimizer.step()


def test_moments_are_carried_by_name_into_other_groups() -> None:
    """Across the boundary the groups change their number and order; each parameter keeps its own moments."""
    module = toy(1)
    optimizer = build(module)
    for _ in range(3):
        take_step(module, optimizer)
    before = {n: {k: v.clone() for k, v in s.items()} for n, s in state_by_name(optimizer).items()}
    freeze_and_unfreeze(module, ROLES, stage_of(), BOUNDARY)
    rebuilt = build(module)
    fresh = load_state_by_name(rebuilt, state_by_name(optimizer))
    assert set(fresh) == ADAPTERS
    after = state_by_name(rebuilt)
    assert set(after) == set(before)
    for name, moments in before.items():
        assert moments["exp_avg"].any()
        for key, value in moments.items():
            assert torch.equal(after[name][key], value), (name, key)


@pytest.mark.parametrize(
    ("optimizer", "kept"),
    [
        ("adamw", {"step", "exp_avg", "exp_avg_sq"}),
        ("muon", {"momentum_buffer"}),
        ("normuon", {"momentum_buffer", "row_square"}),
    ],
)
def test_a_rebuilt_optimizer_continues_like_the_one_it_replaces(optimizer: str, kept: set[str]) -> None:
    config = Config(training=TrainingSettings(optimizer=optimizer))
    straight, rebuilt = toy(2), toy(2)
    one, other = (build(module, config) for module in (straight, rebuilt))
    for step in range(6):
        take_step(straight, one)
        if step == 3:
            state = state_by_name(other)
            assert set(state["linear.weight"]) == kept
            other = build(rebuilt, config)
            assert load_state_by_name(other, state) == []
        take_step(rebuilt, other)
    for (name, a), b in zip(straight.named_parameters(), rebuilt.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_moments_of_another_shape_are_refused() -> None:
    module = toy(1)
    optimizer = build(module)
    take_step(module, optimizer)
    state = state_by_name(optimizer)
    state["linear.weight"]["exp_avg"] = torch.zeros(2, 2)
    with pytest.raises(ValueError, match=r"linear\.weight"):
        load_state_by_name(build(module), state)


def muon_config(**training: object) -> Config:
    return Config(training=TrainingSettings(optimizer="muon", **training))


def test_muon_takes_the_new_matrices_and_nothing_else() -> None:
    module = toy(2)
    found = groups_of(module, muon_config())
    assert {name for group in found if group["group"].name == "matrix" for name in group["names"]} == {"linear.weight"}
    check_groups(module, found)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_muon_and_adamw_step_as_each_by_itself(weight_decay: float) -> None:
    """Against AdamW alone for what is no matrix; for the matrix against the definition, by singular values."""
    both, alone = toy(2), toy(2)
    config = muon_config(weight_decay=weight_decay, muon_learning_rate=0.05, learning_rate=0.01)
    one = build(both, config)
    other = build(alone, Config(training=replace(config.training, optimizer="adamw")))
    weight = both.linear.weight.detach().clone()
    gradient = 2 * weight + 1
    take_step(both, one)
    take_step(alone, other)
    for (name, a), b in zip(both.named_parameters(), alone.parameters(), strict=True):
        assert torch.equal(a, b) == (name != "linear.weight"), name
    step = (weight * (1 - 0.05 * weight_decay) - both.linear.weight) / (0.05 * 0.2 * 4**0.5)
    left, _, right = torch.linalg.svd(gradient)
    core = left.mT @ step.detach() @ right.mT
    # In the gradient's own directions; five steps of the iteration leave singular values between 0.5 and 1.5.
    assert ((core.diagonal() > 0.4) & (core.diagonal() < 1.6)).all()
    torch.testing.assert_close(core, core.diagonal().diag(), atol=0.03, rtol=0)


@pytest.mark.parametrize("in_hardware", [True, False])
@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5)])
def test_muon_is_torchs_where_bfloat16_is_in_hardware_and_near_it_elsewhere(
    shape: tuple[int, int], in_hardware: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(muon, "has_bf16", lambda device: in_hardware)
    torch.manual_seed(3)
    ours = nn.Parameter(torch.randn(shape))
    theirs, start = nn.Parameter(ours.detach().clone()), ours.detach().clone()
    one = Muon([{"params": [ours], "weight_decay": 0.1}], lr=0.03)
    other = torch.optim.Muon([theirs], lr=0.03, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(4):
        ours.grad = torch.randn(shape)
        theirs.grad = ours.grad.clone()
        one.step()
        other.step()
    assert torch.equal(ours, theirs) == in_hardware
    torch.testing.assert_close(ours - start, theirs - start, rtol=0.05, atol=0.003)
    assert torch.equal(one.state[ours]["momentum_buffer"], other.state[theirs]["momentum_buffer"])


@pytest.mark.parametrize("in_hardware", [True, False])
def test_what_is_emulated_is_not_used_to_make_a_matrix_orthogonal(
    in_hardware: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(muon, "has_bf16", lambda device: in_hardware)
    assert orthogonal(torch.ones(3, 2)).dtype == (torch.bfloat16 if in_hardware else torch.float32)


def test_normuon_gives_all_rows_updates_of_one_size() -> None:
    torch.manual_seed(0)
    matrix = nn.Parameter(torch.randn(6, 4))
    optimizer = NorMuon([{"params": [matrix], "weight_decay": 0.5}], lr=0.1)
    gradient = torch.randn(6, 4)
    gradient[2] *= 1000
    # At first the average square of a row is a share of its own, the same for all rows.
    before, matrix.grad = matrix.detach().clone(), gradient
    optimizer.step()
    update = (before * (1 - 0.1 * 0.5) - matrix.detach()) / 0.1
    torch.testing.assert_close(update.square().mean(dim=1).sqrt(), torch.full((6,), 0.2), rtol=1e-4, atol=0)
    direction = orthogonal(gradient).float()
    torch.testing.assert_close(F.normalize(update), F.normalize(direction), rtol=0, atol=0.03)  # bfloat16


def test_normuon_measures_rows_by_their_past(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against algorithm 1 of the paper, written down plainly, over several steps. Of a high matrix, whose orthogonal
    form has rows of unlike lengths, and in float32: else the rows' past would not show."""
    monkeypatch.setattr(muon, "has_bf16", lambda device: False)
    torch.manual_seed(0)
    start = torch.randn(8, 3)
    matrix = nn.Parameter(start.clone())
    optimizer = NorMuon([{"params": [matrix], "weight_decay": 0.0}], lr=0.1)
    expected, average, squares = matrix.detach().clone(), torch.zeros(8, 3), torch.zeros(8, 1)
    for _ in range(4):
        matrix.grad = torch.randn(8, 3)
        average = 0.95 * average + 0.05 * matrix.grad
        direction = orthogonal(0.05 * matrix.grad + 0.95 * average).float()
        squares = 0.95 * squares + 0.05 * (direction**2).mean(dim=1, keepdim=True)
        update = direction / squares.sqrt()
        expected -= 0.1 * 0.2 * 24**0.5 * update / update.norm()
        optimizer.step()
    torch.testing.assert_close(matrix.detach() - start, expected - start, rtol=1e-4, atol=1e-5)


def test_normuon_leaves_a_matrix_without_a_gradient_and_survives_one_of_zeros() -> None:
    still, matrix = nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.ones(3, 2))
    optimizer = NorMuon([{"params": [still, matrix], "weight_decay": 0.0}], lr=0.1)
    matrix.grad = torch.zeros(3, 2)
    optimizer.step()
    assert torch.equal(still, torch.ones(2, 3)) and torch.equal(matrix, torch.ones(3, 2))


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (4, 4)])
def test_orthogonal_brings_all_singular_values_near_1(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    values = torch.linalg.svdvals(orthogonal(matrix).float())
    assert ((values > 0.4) & (values < 1.6)).all()


@pytest.mark.parametrize("overflows", [False, True])
def test_loss_scaling_reaches_and_an_overflow_stops_muon_and_adamw_alike(overflows: bool) -> None:
    """As the trainer goes about it in fp16; fused AdamW would take scaled gradients by itself, Muon would not."""
    scaled, plain, start = toy(2), toy(2), toy(2)
    one, other = (build(module, muon_config()) for module in (scaled, plain))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)  # a power of two: no rounding
    scaler.scale(scaled()).backward()
    if overflows:
        scaled.linear.weight.grad[0, 0] = torch.inf  # in a matrix alone
    scaler.unscale_(one)
    scaler.step(one)
    scaler.update()
    take_step(plain, other)
    expected = start if overflows else plain
    for (name, a), b in zip(scaled.named_parameters(), expected.parameters(), strict=True):
        assert torch.equal(a, b), name
    assert scaler.get_scale() == (512 if overflows else 1024) and (state_by_name(one) == {}) == overflows


def test_the_rate_set_for_a_step_is_the_one_that_muon_uses() -> None:
    module = toy(2)
    config = muon_config(muon_learning_rate=0.03, learning_rate=1e-3, warmup_steps=10)
    optimizer = build(module, config)
    rates = set_learning_rates(optimizer, stage_of(config), 4)
    assert rates["matrix"] == pytest.approx(0.015) and rates["new"] == pytest.approx(5e-4)
    assert [
        group["lr"] for part in optimizer.parts for group in part.param_groups if group["group"].name == "matrix"
    ] == [rates["matrix"]]
