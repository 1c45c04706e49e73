"""peft's layers against LoRA's own equations, in float64: forward, gradients, scale, merge and unmerge."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from peft import inject_adapter_in_model
from torch import nn

from bitgen.vlm.adapter_config import AdapterConfig
from vlm.reference_lora import ReferenceLora, dora_forward

WIDTH, OUT, ROWS = 12, 20, 7


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def adapted(config: AdapterConfig) -> nn.Module:
    """A peft layer with weights of its own in A and B, in a module named ``it``."""
    torch.manual_seed(0)
    holder = nn.ModuleDict({"it": nn.Linear(WIDTH, OUT, bias=False)})
    inject_adapter_in_model(config.to_peft(["it"]), holder)
    with torch.no_grad():
        holder["it"].lora_B["default"].weight.normal_()
    return holder["it"]


def parts(layer: nn.Module) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return layer.base_layer.weight, layer.lora_A["default"].weight, layer.lora_B["default"].weight


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("rank", [1, 4, 16])
def test_peft_is_the_reference(rank: int, rslora: bool) -> None:
    config = AdapterConfig(rank=rank, alpha=6.0, dropout=0.0, rslora=rslora)
    layer = adapted(config)
    weight, down, up = parts(layer)
    reference = ReferenceLora(weight.detach(), down.detach(), up.detach(), 6.0, rslora)
    assert config.scale == reference.scale == layer.scaling["default"]
    x, g = torch.randn(ROWS, WIDTH), torch.randn(ROWS, OUT)
    out = layer(x)
    torch.testing.assert_close(out, reference.forward(x), rtol=1e-6, atol=1e-6)
    out.backward(g)
    down_gradient, up_gradient = reference.gradients(x, g)
    torch.testing.assert_close(down.grad, down_gradient, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(up.grad, up_gradient, rtol=1e-6, atol=1e-6)
    assert weight.grad is None


def test_the_closed_form_is_the_derivative() -> None:
    """In float64, by differences: independent of autograd and of peft."""
    torch.manual_seed(1)
    shapes = ((OUT, WIDTH), (4, WIDTH), (OUT, 4))
    weight, down, up = (torch.randn(*shape) for shape in shapes)
    x, target = torch.randn(ROWS, WIDTH), torch.randn(ROWS, OUT)

    def loss(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return ((ReferenceLora(weight, a, b, 8.0).forward(x) - target) ** 2).sum() / 2

    g = ReferenceLora(weight, down, up, 8.0).forward(x) - target
    for part, gradient in enumerate(ReferenceLora(weight, down, up, 8.0).gradients(x, g)):
        for row, column in ((0, 0), (1, 3), (3, 2)):
            step = torch.zeros_like((down, up)[part])
            step[row, column] = 1e-5
            plus, minus = ([down, up] for _ in range(2))
            plus[part], minus[part] = plus[part] + step, minus[part] - step
            by_difference = (loss(*plus) - loss(*minus)) / 2e-5
            assert gradient[row, column].item() == pytest.approx(by_difference.item(), rel=1e-6)


def test_merge_and_unmerge_are_the_reference() -> None:
    layer = adapted(AdapterConfig(rank=4, alpha=8.0, dropout=0.0))
    weight, down, up = (part.detach().clone() for part in parts(layer))
    reference, x = ReferenceLora(weight, down, up, 8.0), torch.randn(ROWS, WIDTH)
    before = reference.forward(x)
    layer.merge()
    reference.merge()
    torch.testing.assert_close(layer.base_layer.weight, reference.weight, rtol=0, atol=1e-6)
    torch.testing.assert_close(x @ reference.weight.T, before, rtol=1e-6, atol=1e-6)
    layer.unmerge()
    reference.unmerge()
    torch.testing.assert_close(layer.base_layer.weight, reference.weight, rtol=0, atol=1e-6)
    torch.testing.assert_close(reference.weight, weight, rtol=0, atol=1e-6)


@pytest.mark.parametrize("rslora", [False, True])
def test_dora_is_its_formula(rslora: bool) -> None:
    config = AdapterConfig("dora", rank=4, alpha=8.0, dropout=0.0, rslora=rslora)
    layer = adapted(config)
    weight, down, up = parts(layer)
    magnitude = layer.lora_magnitude_vector["default"].weight
    torch.testing.assert_close(magnitude.detach(), torch.linalg.norm(weight, dim=1), rtol=1e-6, atol=1e-6)
    with torch.no_grad():
        magnitude.mul_(torch.linspace(0.5, 2.0, OUT))
    x, g = torch.randn(ROWS, WIDTH), torch.randn(ROWS, OUT)
    copies = [part.detach().clone().requires_grad_() for part in (down, up, magnitude)]
    expected = dora_forward(x, weight.detach(), *copies, config.scale)
    out = layer(x)
    torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-6)
    out.backward(g)
    expected.backward(g)
    for part, copy in zip((down, up, magnitude), copies, strict=True):
        torch.testing.assert_close(part.grad, copy.grad, rtol=1e-6, atol=1e-6)


def test_the_start_is_peft_s() -> None:
    """A is uniform within 1/sqrt(in), or normal with deviation 1/r; B is 0, so that the output is the base's."""
    torch.manual_seed(0)
    for init in ("kaiming", "gaussian"):
        holder = nn.ModuleDict({"it": nn.Linear(400, 30)})
        inject_adapter_in_model(AdapterConfig(rank=16, dropout=0.0, init=init).to_peft(["it"]), holder)
        _, down, up = parts(holder["it"])
        bound, deviation = 400**-0.5, 1 / 16
        if init == "kaiming":
            assert 0.98 * bound < down.abs().max() <= bound
            deviation = bound / 3**0.5
        assert down.std().item() == pytest.approx(deviation, rel=0.05)
        assert not up.any()
        x = torch.randn(3, 400)
        assert torch.equal(holder["it"](x), holder["it"].base_layer(x))
