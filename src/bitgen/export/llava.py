"""A vision-language model of parts as transformers' ``LlavaForConditionalGeneration``, which needs transformers alone.

That format has one kind of connector, two Linears with a GELU, and drops one token or none before the patches. What it
would lose is refused.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, GenerationConfig, LlavaConfig, LlavaForConditionalGeneration

from bitgen.export.card import metrics_table
from bitgen.export.llava_processor import IMAGE_TOKEN, llava_processor, tokenizer_with_image
from bitgen.machine.files import apply_umask
from bitgen.model.image_settings import PAD
from bitgen.trained_vlm import TrainedVlm
from bitgen.vlm.pretrained import BITGEN
from bitgen.vlm.vision import VisionTower

# By the encoder's type: how tokens before the patches are dropped, and the beginning of its weights' names in files of
# the Hub, which all releases of transformers read.
_TOWERS = {
    "clip_vision_model": ("default", "vision_model."),
    "siglip_vision_model": ("full", "vision_model."),
    "dinov2": ("default", ""),
}
_LONGEST_ANSWER = 256
_INDEX = "model.safetensors.index.json"


def why_not(trained: TrainedVlm) -> str | None:
    """What the format would lose, and what to do instead; None: nothing. Adapters are merged before."""
    model, keep = trained.model, "export without --format llava"
    connector, tower, config = model.connector, model.tower, model.language.config
    if connector is None:
        return f"it has no connector, for it is a language model alone; {keep}"
    if connector.config.kind != "mlp" or connector.config.options.get("depth") != 2:
        depth = connector.config.options.get("depth")
        said = connector.config.kind + (f" of depth {depth}" if connector.config.kind == "mlp" else "")
        return f"its connector is {said}, and the format has room for mlp of depth 2 alone; {keep}"
    if not isinstance(tower, VisionTower):
        return f"it takes features computed earlier and has no vision encoder, which the format needs; {keep}"
    kind = tower.vision_config.get("model_type", "dinov2")
    if kind not in _TOWERS:
        more = f" with {tower.prefix_tokens} tokens before the patches" if tower.prefix_tokens > 1 else ""
        return f"its vision encoder is of type {kind}{more}; the format takes {', '.join(_TOWERS)}; {keep}"
    own_size = tower.vision_config["image_size"]
    if tower.kind.asks_to_interpolate and tower.spec.image_size != own_size:
        return (
            f"its pictures have {tower.spec.image_size} pixels a side and the encoder was made for {own_size}, which "
            f"the format cannot say; {keep}"
        )
    if tower.spec.fit == PAD:
        return f"its pictures are padded to squares, which the format's image processor does not do; {keep}"
    if getattr(config, "final_logit_softcapping", None) is not None:
        return f"its language model ({config.model_type}) caps its logits, which the format leaves out; {keep}"
    if config.model_type == BITGEN:
        return f"its language model is an export of BitGen, which transformers alone does not know; {keep}"
    if trained.description.language.quantization is not None:
        return f"its language model is quantized ({trained.description.language.quantization}); {keep}"
    return None


def write_llava(trained: TrainedVlm, folder: Path, metrics: Mapping[str, Any] | None = None) -> None:
    """Write a model without adapters into ``folder``: weights under the Hub's names, configuration and processor.

    Args:
        metrics: results of ``src/evaluate.py`` for the model card.

    Logits and greedy answers are those of the model itself. Its vocabulary has ``<image>`` besides, which is never
    written.

    Raises:
        ValueError: the format would lose something.
    """
    if (reason := why_not(trained)) is not None:
        raise ValueError(f"--format llava would not be the same model: {reason}.")
    tower, language = trained.model.tower, trained.model.language
    assert isinstance(tower, VisionTower)
    strategy, prefix = _TOWERS[tower.vision_config.get("model_type", "dinov2")]
    tokenizer, image_id = tokenizer_with_image(trained.tokenizer)
    processor = llava_processor(trained, tokenizer, strategy)
    model = _llava(trained, strategy, image_id)
    model.generation_config = GenerationConfig(
        bos_token_id=language.generation_config.bos_token_id,
        eos_token_id=trained.speech.ends,
        pad_token_id=trained.tokenizer.pad_token_id,
        max_new_tokens=min(_LONGEST_ANSWER, language.config.max_position_embeddings // 2),
        suppress_tokens=[image_id],
    )
    model.save_pretrained(folder)
    _rename(folder, "vision_tower.", f"vision_tower.{prefix}")
    processor.save_pretrained(folder)
    card = _CARD.replace("TOKEN", IMAGE_TOKEN) + "\n## Metrics\n\n" + metrics_table(dict(metrics or {}))
    (folder / "README.md").write_text(card, encoding="utf-8")


def _llava(trained: TrainedVlm, strategy: str, image_id: int) -> LlavaForConditionalGeneration:
    """The same tensors in transformers' classes; nothing is copied but an embedding that grows."""
    tower, connector, language = trained.model.tower, trained.model.connector, trained.model.language
    assert isinstance(tower, VisionTower) and connector is not None
    rows = max(language.get_input_embeddings().weight.shape[0], image_id + 1)
    text, vision = copy.deepcopy(language.config), tower.tower.config.to_dict()
    text.vocab_size = rows
    # As LLaVA counts: -1 is the last block.
    layers = [layer - tower.spec.layers - 1 for layer in tower.layers]
    config = LlavaConfig(
        vision_config=AutoConfig.for_model(**vision),
        text_config=text,
        image_token_index=image_id,
        image_seq_length=tower.spec.tokens,
        projector_hidden_act="gelu",
        vision_feature_layer=layers[0] if len(layers) == 1 else layers,
        vision_feature_select_strategy=strategy,
        tie_word_embeddings=bool(text.tie_word_embeddings),
        dtype=language.dtype,
    )
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    state = {f"model.vision_tower.{name}": tensor for name, tensor in tower.tower.state_dict().items()}
    state |= {f"model.multi_modal_projector.{name}": tensor for name, tensor in connector.state_dict().items()}
    decoder = language.get_decoder()
    state |= {f"model.language_model.{name}": tensor for name, tensor in decoder.state_dict().items()}
    state["lm_head.weight"] = language.get_output_embeddings().weight
    for name in ("lm_head.weight", "model.language_model.embed_tokens.weight"):
        state[name] = _grown(state[name], rows)
    # As it is used: one type for all, which a model of transformers has.
    state = {name: tensor.detach().to(language.dtype) for name, tensor in state.items()}
    model.load_state_dict(state, assign=True)
    model.tie_weights()
    return model.eval()


def _grown(table: torch.Tensor, rows: int) -> torch.Tensor:
    """A table with rows for new tokens: the mean of the others, as usual."""
    missing = rows - len(table)
    if missing <= 0:
        return table
    return torch.cat([table, table.float().mean(dim=0, keepdim=True).to(table.dtype).repeat(missing, 1)])


def _rename(folder: Path, old: str, new: str) -> None:
    """Change the beginnings of names in a folder's weights, file by file."""

    def renamed(name: str) -> str:
        return new + name.removeprefix(old) if name.startswith(old) else name

    for path in folder.glob("*.safetensors"):
        save_file({renamed(name): tensor for name, tensor in load_file(path).items()}, path, {"format": "pt"})
        apply_umask(path)
    if (folder / _INDEX).exists():
        content: dict[str, Any] = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
        content["weight_map"] = {renamed(name): file for name, file in content["weight_map"].items()}
        (folder / _INDEX).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


_CARD = """\
---
library_name: transformers
pipeline_tag: image-text-to-text
tags: [llava, vision-language]
---
# A vision-language model

Trained with BitGen, written for transformers alone.

```python
from PIL import Image, ImageOps
from transformers import AutoProcessor, LlavaForConditionalGeneration

model = LlavaForConditionalGeneration.from_pretrained(DIR).eval()
processor = AutoProcessor.from_pretrained(DIR)
said = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}]
prompt = processor.apply_chat_template(said, add_generation_prompt=True)
picture = ImageOps.exif_transpose(Image.open("photo.jpg"))  # upright, as in training
inputs = processor(images=picture, text=prompt, add_special_tokens=False, return_tensors="pt")
new = model.generate(**inputs, do_sample=False)[0, inputs["input_ids"].shape[1]:]
print(processor.decode(new, skip_special_tokens=True))
```

For a batch set `processor.tokenizer.padding_side = "left"`. `TOKEN` stands for a picture and is never written.
"""
