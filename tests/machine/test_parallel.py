"""A training loop whose work two gloo processes share, whole or in shards, against one process with the joint batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bitgen.config.values import ConfigError
from bitgen.machine.parallel import Replicated
from bitgen.machine.ranks import Processes
from bitgen.machine.sharded import Sharded
from support.parallel_runs import MAX_NORM, UNFROZEN_AT, Run, TinyObjective, batch_of
from support.warm import run_warm

WORKER = Path(__file__).with_name("parallel_worker.py")
ONE, FIRST_OF_TWO = (Processes(0, count, torch.device("cpu")) for count in (1, 2))
WAYS = ("sharded", "replicated")
# Sums over ranks are rounded in another order than sums over micro-batches.
CLOSE = 1e-6


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two ranks found, by case; see parallel_worker.py."""
    folder = tmp_path_factory.mktemp("parallel")
    done = run_warm([WORKER, folder], processes=2, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


def alone(**settings: Any) -> dict[str, Any]:
    """``alone(**settings)``: what one process finds with the batches of both ranks."""
    of_model = {key: settings.pop(key) for key in ("tied", "dummy", "base") if key in settings}
    return Run(Replicated(ONE), TinyObjective(0, **of_model), (0, 1), **settings).go().found()


def same(one: dict[str, Any], other: dict[str, Any], tolerance: float = 0.0) -> None:
    """Weights, moments and gradients agree, and the norms of the last steps that both took."""
    for what in ("weights", "gradients"):
        _close(one[what], other[what], tolerance)
    assert one["moments"].keys() == other["moments"].keys()
    for name, moments in one["moments"].items():
        assert {"step", "exp_avg", "exp_avg_sq"} <= moments.keys()
        _close(moments, other["moments"][name], tolerance)
    steps = min(len(one["norms"]), len(other["norms"]))
    assert steps and one["norms"][-steps:] == pytest.approx(other["norms"][-steps:], rel=0, abs=tolerance)


def _close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], tolerance: float) -> None:
    assert one.keys() == other.keys() and one
    for name, tensor in one.items():
        assert type(tensor) is torch.Tensor and tensor.shape == other[name].shape, name
        difference = (tensor.float() - other[name].float()).abs().max().item()
        assert difference <= tolerance, f"{name} is off by {difference:.1e}"


def mean_losses(found: list[dict[str, Any]], case: str) -> list[float]:
    return [sum(both) / 2 for both in zip(*(rank[case]["losses"] for rank in found), strict=True)]


@pytest.mark.parametrize("way", WAYS)
def test_two_ranks_equal_one_process_with_the_joint_batch(found, way: str) -> None:
    joint = alone()
    assert joint["norms"][0] < MAX_NORM < joint["norms"][-1], "with and without clipping"
    same(found[0][way], joint, CLOSE)
    assert mean_losses(found, way) == pytest.approx(joint["losses"], rel=0, abs=CLOSE)
    same(found[0][way], found[1][way])


def test_sharded_equals_replicated(found) -> None:
    same(found[0]["sharded"], found[0]["replicated"], CLOSE)


@pytest.mark.parametrize("way", WAYS)
def test_the_base_stays_and_everything_else_learns(found, way: str) -> None:
    start, end = TinyObjective(0), found[0][way]
    start.unfreeze(True)
    for name, parameter in start.named_parameters():
        if parameter.requires_grad:
            assert end["gradients"][name].any(), name
            assert not torch.equal(parameter, end["weights"][name]), name
            # The adapters joined later; what trained before kept its moments when the optimizer was built anew.
            assert end["moments"][name]["step"] == end["step"] - (UNFROZEN_AT if "lora_" in name else 0), name
        else:
            assert name not in end["gradients"] and name not in end["moments"]
            assert torch.equal(parameter, end["weights"][name]), name


@pytest.mark.parametrize(
    ("way", "stop"), [("sharded", 1), ("sharded", 3), ("replicated", 3)], ids=lambda value: str(value)
)
def test_a_stopped_run_goes_on_bit_for_bit(found, way: str, stop: int) -> None:
    for rank in found:
        same(rank[f"{way} from {way}-{stop}"], rank[way])


@pytest.mark.parametrize(("way", "other"), [WAYS, WAYS[::-1]])
def test_one_way_resumes_the_checkpoint_of_the_other(found, way: str, other: str) -> None:
    resumed, own = (found[0][f"{way} from {writer}-3"] for writer in (other, way))
    same(resumed, found[0][way], CLOSE)
    # Nothing was lost on the way in and out again.
    theirs = found[0][f"{other} from {other}-3"]["restored"]
    assert resumed["restored"]["step"] == own["restored"]["step"] == 3
    _close(resumed["restored"]["weights"], theirs["weights"], 0.0)
    for name, moments in resumed["restored"]["moments"].items():
        _close(moments, theirs["moments"][name], 0.0)


def test_tied_embeddings_train_as_one(found) -> None:
    case = found[0]["sharded tied"]
    same(case, alone(tied=True), CLOSE)
    assert case["is one"] and case["gradients"]["lm.model.embed_tokens.weight"].any()


def test_a_rank_without_features_takes_part(found) -> None:
    joint = alone(text_only=(1,))
    same(found[0]["sharded text on rank 1"], joint, CLOSE)
    assert joint["gradients"]["connector.weight"].any() and joint["gradients"]["scale"].any()
    # Without a pass of weight zero it takes copies of the whole model that look for what was left out.
    without = alone(text_only=(1,), dummy=False, unfrozen_at=0)
    same(found[0]["replicated unsteady"], without, CLOSE)


def test_what_no_rank_reached_has_no_gradient_and_no_moments(found) -> None:
    case = found[0]["sharded text alone"]
    same(case, alone(text_only=(0, 1), dummy=False, unfrozen_at=0), CLOSE)
    assert not {"connector.weight", "scale", "shift"} & (case["gradients"].keys() | case["moments"].keys())


def test_a_bfloat16_base_under_float32_adapters(found) -> None:
    case = found[0]["sharded bf16 base"]
    same(case, alone(base=torch.bfloat16, autocast=True), CLOSE)
    weights = case["weights"]
    assert weights["lm.lm_head.weight"].dtype == torch.bfloat16
    assert {tensor.dtype for name, tensor in weights.items() if "lora_" in name} == {torch.float32}


def test_generation_and_validation_between_two_steps(found) -> None:
    case = found[0]["generated"]
    model = TinyObjective(3)
    Replicated(ONE).scatter_(model, case["weights"])
    with torch.no_grad():
        prompt = batch_of(0, 0, 0)["input_ids"]
        ids = model.lm.generate(prompt, max_new_tokens=5, min_new_tokens=5, do_sample=False, pad_token_id=0)
        losses = [model(batch_of(9, 0, 0)).loss.item()]
        model.connector.bias.fill_(1.0)
        losses.append(model(batch_of(9, 0, 0)).loss.item())
    assert torch.equal(case["ids"], ids) and torch.equal(case["ids"], found[1]["generated"]["ids"])
    assert case["losses"] == pytest.approx(losses, rel=0, abs=CLOSE) and abs(losses[0] - losses[1]) > 1e-3
    same(case["end"], found[0]["sharded"])


def test_gradients_are_reduced_in_the_last_micro_step_alone(found) -> None:
    first, second = (rank["gradients"] for rank in found)
    assert first["early"]["matrix"] and second["early"]["matrix"]
    early = [case["early"]["scalar"] for case in (first, second)]
    assert early[0] != early[1]
    # The same batch twice, then the mean over ranks.
    assert first["late"] == second["late"] == pytest.approx(sum(early), rel=1e-5)


def test_an_infinite_value_in_one_shard_is_every_ranks_affair(found) -> None:
    for which in ("clean", "infinite"):
        first, second = (rank["gradients"][which] for rank in found)
        assert type(first) is torch.Tensor and first.shape == () and torch.equal(first, second)
    assert 0 < found[0]["gradients"]["clean"] < 1 and found[0]["gradients"]["infinite"] == float("inf")


def test_a_forgotten_wrapper_is_found(found) -> None:
    for rank in found:
        assert "wrapper of the previous phase is still referenced" in rank["old wrapper"]


# ---- one process ----


def test_one_process_needs_no_wrapper() -> None:
    parallel, module = Replicated(ONE), nn.Linear(2, 2)
    assert parallel.replicated and parallel.wrap(module, steady=False) is module
    gathered = parallel.gather(dict(module.named_parameters()))
    assert gathered["weight"].data_ptr() == module.weight.data_ptr() and not gathered["weight"].requires_grad
    parallel.scatter_(module, {"bias": torch.tensor([3.0, 4.0])})
    assert module.bias.tolist() == [3.0, 4.0] and module.bias.requires_grad
    module.weight.grad, module.bias.grad = torch.zeros(2, 2), torch.tensor([3.0, 4.0])
    assert parallel.clip(list(module.parameters()), 1.0).item() == 5.0
    assert module.bias.grad.tolist() == pytest.approx([0.6, 0.8])


def test_tensors_of_another_model_are_refused() -> None:
    parallel, module = Replicated(ONE), nn.Linear(2, 2)
    with pytest.raises(ValueError, match="no tensor named scale"):
        parallel.scatter_(module, {"scale": torch.zeros(())})
    with pytest.raises(ValueError, match=r"bias is \[3\], and \[2\] in the module"):
        parallel.scatter_(module, {"bias": torch.zeros(3)})
    optimizer = torch.optim.AdamW([{"params": [module.bias], "names": ["bias"]}])
    with pytest.raises(ValueError, match=r"Optimizer state of bias is \[3\], the parameter \[2\]"):
        parallel.load_moments(optimizer, {"bias": {"exp_avg": torch.zeros(3)}})


# ---- what cannot be sharded ----


def test_settings_that_do_not_go_with_shards_are_refused() -> None:
    with pytest.raises(ConfigError, match="several processes"):
        Sharded(ONE)
    sharded = Sharded(FIRST_OF_TWO)
    assert not sharded.replicated
    with pytest.raises(ConfigError, match="Muon needs whole matrices"):
        sharded.refuse("muon", "bf16")
    with pytest.raises(ConfigError, match="precision=fp16"):
        sharded.refuse("adamw", "fp16")
    sharded.refuse("adamw", "bf16")
    Replicated(ONE).refuse("muon", "fp16")


def _two_blocks() -> nn.Module:
    return nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)]), "head": nn.Linear(2, 2)})


def _share(module: nn.Module) -> None:
    module["head"].weight = module["layers"][1].weight


def _empty(module: nn.Module) -> None:
    module["head"].weight.data = torch.empty(0)


def _quantise(module: nn.Module) -> None:
    module["head"].weight = nn.Parameter(torch.zeros(2, 2, dtype=torch.uint8), requires_grad=False)


def _mix(module: nn.Module) -> None:
    module["head"].to(torch.bfloat16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_share, r"layers\.1\.weight and head\.weight are one parameter in different blocks"),
        (_empty, r"head\.weight is empty"),
        (_quantise, r"head\.weight is torch\.uint8"),
        (_mix, r"one format, but they are torch\.bfloat16, torch\.float32"),
    ],
)
def test_parameters_that_cannot_be_sharded_are_named(change: Callable[[nn.Module], None], message: str) -> None:
    module = _two_blocks()
    change(module)
    with pytest.raises(ValueError, match=message):
        Sharded(FIRST_OF_TWO).wrap(module, steady=True)


def test_unsteady_batches_and_foreign_blocks_are_refused() -> None:
    module = _two_blocks()
    with pytest.raises(ConfigError, match="with weight zero"):
        Sharded(FIRST_OF_TWO).wrap(module, steady=False)
    with pytest.raises(ValueError, match="do not belong to the module to shard: Tanh"):
        Sharded(FIRST_OF_TWO, blocks=lambda whole: [nn.Tanh()]).wrap(module, steady=True)
