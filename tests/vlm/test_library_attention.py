"""Models of transformers attend in float32 on CPUs, and in nothing else differently."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from bitgen.vlm.language import build_language_model, open_language_model
from bitgen.vlm.library_attention import ATTENTION, use_fast_attention
from bitgen.vlm.vision import build_tower
from support.tokenizers import tiny_tokenizer

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
LANGUAGE = SMALL | {"vocab_size": 50, "num_key_value_heads": 2, "max_position_embeddings": 32}
VISION = SMALL | {"image_size": 28, "patch_size": 14}
MODELS = [
    *(("language", kind, LANGUAGE) for kind in ("llama", "qwen3", "gemma3_text")),
    *(("vision", kind, VISION) for kind in ("dinov2", "clip_vision_model", "siglip_vision_model")),
]


def build(what: str, kind: str, sizes: dict, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    torch.manual_seed(0)
    if kind == "gemma3_text":
        sizes = sizes | {"head_dim": 8}
    factory = AutoModelForCausalLM if what == "language" else AutoModel
    return factory.from_config(AutoConfig.for_model(kind, **sizes)).to(dtype).eval()


def run(what: str, model: torch.nn.Module, attention_mask: torch.Tensor | None = None) -> list[torch.Tensor]:
    """Output and gradients of a fixed input."""
    generator = torch.Generator().manual_seed(1)
    dtype = next(model.parameters()).dtype
    if what == "language":
        ids = torch.randint(50, (3, 7), generator=generator)
        out = model(input_ids=ids, attention_mask=attention_mask).logits
    else:
        out = model(pixel_values=torch.randn(2, 3, 28, 28, generator=generator).to(dtype)).last_hidden_state
    (out.float() * torch.randn(out.shape, generator=generator)).sum().backward()
    return [out.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize(("what", "kind", "sizes"), MODELS, ids=[kind for _, kind, _ in MODELS])
def test_float32_is_equal_to_the_last_bit(what: str, kind: str, sizes: dict) -> None:
    mask = torch.tensor([[1] * 7, [0] * 2 + [1] * 5, [1] * 4 + [0] * 3]) if what == "language" else None
    plain, ours = build(what, kind, sizes), build(what, kind, sizes)
    use_fast_attention(ours)
    assert (plain.config._attn_implementation, ours.config._attn_implementation) == ("sdpa", ATTENTION)
    expected, found = run(what, plain, mask), run(what, ours, mask)
    assert len(expected) == len(found) > 10
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


@pytest.mark.parametrize("half", ["weights", "autocast"])
@pytest.mark.parametrize(("what", "kind", "sizes"), MODELS, ids=[kind for _, kind, _ in MODELS])
def test_half_precision_attends_in_float32(
    what: str, kind: str, sizes: dict, half: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(what, kind, sizes, torch.bfloat16 if half == "weights" else torch.float32)
    use_fast_attention(model)
    seen: list[torch.dtype] = []
    original = F.scaled_dot_product_attention

    def watched(query: torch.Tensor, *rest: object, **options: object) -> torch.Tensor:
        attended = original(query, *rest, **options)
        seen.extend((query.dtype, attended.dtype))
        return attended

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    exact = build(what, kind, sizes)
    exact.load_state_dict({name: value.float() for name, value in model.state_dict().items()})
    with torch.autocast("cpu", torch.bfloat16, enabled=half == "autocast"):
        found = run(what, model)
    assert len(seen) == 4 and set(seen) == {torch.float32}
    # As one vector: the gradient of a key's bias is nothing but rounding.
    a, b = (torch.cat([tensor.float().flatten() for tensor in tensors]) for tensors in (run(what, exact), found))
    assert torch.linalg.vector_norm(a - b) <= 0.05 * torch.linalg.vector_norm(a)


def test_no_file_names_it(tmp_path: Path) -> None:
    model = build("language", "llama", LANGUAGE)
    use_fast_attention(model)
    model.save_pretrained(tmp_path)
    assert ATTENTION not in json.dumps(json.loads((tmp_path / "config.json").read_text()))
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config._attn_implementation == "sdpa"


def test_another_choice_is_left_alone() -> None:
    model = build("language", "llama", LANGUAGE)
    model.set_attn_implementation("eager")
    use_fast_attention(model)
    assert model.config._attn_implementation == "eager"


def test_the_parts_of_a_vision_language_model_attend_so(tmp_path: Path) -> None:
    built = build_language_model({"model_type": "llama", **LANGUAGE, "vocab_size": 300}).model
    built.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(str(tmp_path))
    tower = build_tower({"model_type": "dinov2", **VISION}, -1).tower
    parts = (built, open_language_model(tmp_path).model, tower)
    assert [part.config._attn_implementation for part in parts] == [ATTENTION] * 3
