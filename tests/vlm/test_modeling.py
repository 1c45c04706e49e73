"""The whole model against a loop over rows and visuals; what trains, what is saved, and what drops out."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from bitgen.data.conversations.dataset import VisualCollator
from bitgen.data.conversations.packing import PackingCollator
from bitgen.objectives.supervised import NextTokens
from bitgen.stages import Group, Stage
from bitgen.training.optimizer import freeze_and_unfreeze
from bitgen.vlm.adapters import is_adapted
from bitgen.vlm.modeling import VisionLanguageModel
from bitgen.vlm.splice import IMAGE_ID
from support.vlm import CONNECTORS, sample_of, tiny_vlm

# Visuals of one, two and three pictures, several in a row, and rows of text alone.
SHAPES = [([1], 4, 3, 0), ([2, 1], 5, 4, 1), ([], 6, 2, 2), ([3], 3, 5, 3), ([], 2, 1, 4), ([1, 3, 2], 5, 2, 5)]


def samples_of(model: VisionLanguageModel, shapes=SHAPES) -> list[dict]:
    return [sample_of(model, *shape) for shape in shapes]


def tensors(batch: dict) -> dict[str, torch.Tensor]:
    return {name: value for name, value in batch.items() if isinstance(value, torch.Tensor)}


def embedded(model: VisionLanguageModel, sample: dict) -> torch.Tensor:
    """``[T, H]`` of one sample: one visual after another through encoder and connector, one token after another."""
    visuals, pictures = [], list(sample.get("pixel_values", ()))
    for count in sample["frames"]:
        features = torch.stack([model.tower(pictures.pop(0)[None])[0] for _ in range(count)])
        visuals += list(model.connector(features[None])[0])
    embedding = model.language.get_input_embeddings()
    rows = [visuals.pop(0) if token == IMAGE_ID else embedding(token) for token in sample["input_ids"]]
    assert not visuals
    return torch.stack(rows)


@pytest.mark.parametrize("connector", CONNECTORS)
@pytest.mark.parametrize("lm", ["llama", "gemma3"])
def test_the_forward_is_that_of_one_row_and_one_visual_at_a_time(connector: str, lm: str) -> None:
    model = tiny_vlm(connector, lm=lm).eval()
    samples = samples_of(model)
    batch = tensors(VisualCollator(0)(samples))
    with torch.no_grad():
        embeds = model.embed(batch)
        logits, targets = model(batch)
        expected, words = [], []
        for row, sample in enumerate(samples):
            own = embedded(model, sample)
            torch.testing.assert_close(embeds[row, : len(own)], own, atol=1e-5, rtol=1e-5)
            whole = model.language(inputs_embeds=own[None], use_cache=False).logits[0].float()
            for place in range(1, len(own)):
                if sample["labels"][place] != -100:
                    expected.append(whole[place - 1])
                    words.append(int(sample["labels"][place]))
    assert targets.tolist() == words and len(words) == sum(shape[2] for shape in SHAPES)
    torch.testing.assert_close(logits, torch.stack(expected), atol=2e-5, rtol=2e-5)
    found = NextTokens(model)(batch)
    torch.testing.assert_close(found.loss, F.cross_entropy(torch.stack(expected), torch.tensor(words)))
    right = (torch.stack(expected).argmax(-1) == torch.tensor(words)).float().mean()
    assert found.metrics["token_acc"] == right


def test_places_and_pictures_that_do_not_fit_are_an_error() -> None:
    model = tiny_vlm()
    batch = tensors(VisualCollator(0)(samples_of(model, SHAPES[:1])))
    batch["input_ids"][0, 1] = 5
    with pytest.raises(ValueError, match="keep 15 places for visual tokens, and its pictures fill 16"):
        model.embed(batch)


def test_a_connector_of_another_width_is_an_error() -> None:
    model = tiny_vlm()
    model.language = tiny_vlm(lm="bitgen").language
    with pytest.raises(ValueError, match="gives tokens 32 wide and the language model reads 16"):
        model.embed(tensors(VisualCollator(0)(samples_of(model))))


@pytest.mark.parametrize("tuned", [False, True], ids=["frozen encoder", "trained encoder"])
def test_a_batch_without_a_picture_gives_zero_gradients_and_changes_nothing(tuned: bool) -> None:
    trains = ("connector", "adapter", "vision") if tuned else ("connector", "adapter")
    model = tiny_vlm(own=("vision",) if tuned else (), adapter="lora")
    reached = learning(model, trains).train()
    batch = tensors(VisualCollator(0)(samples_of(model, [SHAPES[2], SHAPES[4]])))
    model.embed(batch)
    torch.testing.assert_close(model.embed(batch), model.language.get_input_embeddings()(batch["input_ids"]))
    reached(batch).loss.backward()
    for name, parameter in model.named_parameters():
        part = model.role_of(name, parameter).part
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert bool(parameter.grad.any()) == ("lora_B" in name), name  # A's is zero while B is
        else:
            assert parameter.grad is None and part in ("vision", "language"), name


def test_a_batch_without_a_label_has_a_loss_of_zero_that_reaches_everything() -> None:
    model = tiny_vlm(adapter="lora")
    objective = learning(model, ("connector", "adapter")).train()
    batch = tensors(VisualCollator(0)(samples_of(model)))
    batch["labels"].fill_(-100)
    loss = objective(batch).loss
    loss.backward()
    assert loss == 0 and all(p.grad is not None and not p.grad.any() for p in model.parameters() if p.requires_grad)


def learning(model: VisionLanguageModel, parts: tuple[str, ...]) -> NextTokens:
    """The objective with what trains unfrozen, as the trainer does it."""
    objective = NextTokens(model)
    groups = tuple(Group(part, (f"{part}/*",), 1e-3) for part in parts)
    freeze_and_unfreeze(objective, objective.roles(), Stage("vlm", groups, 1, 1), 0)
    return objective


@pytest.mark.parametrize(
    ("trains", "own", "adapter", "layer"),
    [
        (("connector",), (), None, -1),
        (("adapter",), (), "lora", -1),
        (("adapter",), (), "dora", -1),
        (("connector", "adapter"), (), "lora", -2),
        (("language",), ("language",), None, -1),
        (("connector", "vision"), ("vision",), None, -1),
        (("connector", "vision"), ("vision",), None, -2),
        (("connector", "language", "vision"), ("language", "vision"), None, [-2, -1]),
    ],
)
def test_what_trains_gets_a_gradient_and_the_rest_does_not(trains, own, adapter, layer) -> None:
    model = tiny_vlm(own=own, adapter=adapter, select_layer=layer)
    objective = learning(model, trains).train()
    objective(tensors(VisualCollator(0)(samples_of(model)))).loss.backward()
    learns = set()
    for name, parameter in model.named_parameters():
        role = model.role_of(name, parameter)
        assert (parameter.grad is not None) == parameter.requires_grad, name
        assert parameter.requires_grad == (role.part in trains and role.reached), name
        if parameter.requires_grad:
            learns.add(role.part)
    assert learns == set(trains)
    # Of an encoder read before its last layer, that layer learns nothing.
    last = [p.requires_grad for name, p in model.tower.named_parameters() if ".layer.1." in name]
    assert last and all(last) == any(last) == ("vision" in trains and layer != -2)


def test_roles() -> None:
    model = tiny_vlm("perceiver", own=("language",), adapter="dora")
    roles = {name: model.role_of(name, parameter) for name, parameter in model.named_parameters()}
    kinds = {(role.part, role.kind) for role in roles.values()}
    assert kinds == {
        *(("adapter", kind) for kind in ("lora_a", "lora_b", "magnitude")),
        *((part, kind) for part in ("connector", "vision", "language") for kind in ("matrix", "other")),
    }
    tables = [name for name, role in roles.items() if role.part == "language" and role.kind == "other" and role.decays]
    assert sorted(tables) == ["language.lm_head.weight", "language.model.embed_tokens.weight"]
    assert not any(role.decays for name, role in roles.items() if roles[name].kind == "magnitude" or "bias" in name)
    assert not any(role.reached for name, role in roles.items() if role.part == "vision")


def test_the_roles_of_adapters_give_b_a_rate_of_its_own() -> None:
    model = tiny_vlm(adapter="dora", lm="qwen2")
    groups = [
        Group("a", ("adapter/lora_a", "adapter/magnitude"), 1e-4),
        Group("b", ("adapter/lora_b",), 1e-4, ratio=16),
    ]
    for name, parameter in model.language.named_parameters():
        role = model.role_of(f"language.{name}", parameter)
        taken = [group.name for group in groups if group.takes(role)]
        assert taken == (["b"] if ".lora_B." in name else ["a"] if ".lora_" in name else []), name
        if taken:
            assert role.decays == (".lora_A." in name or ".lora_B." in name), name
        assert parameter.requires_grad == bool(taken), name


@pytest.mark.parametrize("own", [(), ("language",), ("vision",), ("language", "vision")])
def test_a_checkpoint_holds_connector_adapters_and_own_parts_alone(own: tuple[str, ...]) -> None:
    model = tiny_vlm(own=own, adapter="lora")
    saved = set(model.state_dict())
    for name, _ in model.named_parameters():
        part = model.part_of(name)
        assert (name in saved) == (part in ("connector", "adapter", *own)), name
    other = tiny_vlm(own=own, adapter="lora", seed=1)
    other.load_own(model.state_dict())
    for name, tensor in other.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name
    with pytest.raises(KeyError):
        other.load_own({"connector.none": torch.zeros(1)})


@pytest.mark.parametrize("own", [(), ("language",)])  # what an earlier run trained, and this one does not
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_of_frozen_parts_the_adapters_alone_drop_out(kind: str, own: tuple[str, ...]) -> None:
    model = tiny_vlm(own=own, adapter=kind, dropout=0.5)
    for module in model.language.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("lora_" in name)
            if "lora_B" in name:
                parameter.normal_()
    batch = tensors(VisualCollator(0)(samples_of(model)))

    def draws() -> bool:
        with torch.no_grad():
            return not torch.equal(model(batch).logits, model(batch).logits)

    model.train()
    assert draws()
    on = [name for name, module in model.named_modules() if module.training and name]
    assert on and all("lora_dropout" in name or is_adapted(model.get_submodule(name)) for name in on)
    model.eval()
    assert not any(module.training for module in model.modules()) and not draws()
    for name, parameter in model.named_parameters():  # with adapters that stay as they are
        parameter.requires_grad_(name.startswith("connector."))
    model.train()
    assert all(module.training for module in model.connector.modules())
    assert not any(module.training for part in (model.tower, model.language) for module in part.modules())
    assert not draws()


@pytest.mark.parametrize("lm", ["llama", "qwen3", "bitgen"])
def test_packed_batches_have_the_loss_of_padded_ones(lm: str) -> None:
    model = tiny_vlm("perceiver", lm=lm)
    samples = samples_of(model)
    padded, packed = VisualCollator(0)(samples), PackingCollator(0, 30)(samples)
    assert len(packed["input_ids"]) < len(padded["input_ids"]) and packed["input_ids"].shape[1] <= 30
    assert "attention_mask" not in packed and packed["supervised"].equal(padded["supervised"])
    assert sorted(packed["indices"].tolist()) == padded["indices"].tolist() != packed["indices"].tolist()
    with torch.no_grad():
        losses = [NextTokens(model).eval()(tensors(batch)).loss for batch in (padded, packed)]
    torch.testing.assert_close(*losses, atol=1e-5, rtol=0)
