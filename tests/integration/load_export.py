"""Runs in a fresh process, in an empty folder, without this repository and without peft: `load_export.py DIR FILE ...`.

Loads the export in each DIR and compares its logits with those in FILE (of the trainer's model).
"""

import sys

sys.modules["peft"] = None  # importing it fails, as where it is not installed
sys.modules["bitgen"] = None

import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoProcessor  # noqa: E402


def compare(folder: str, file: str) -> None:
    expected = load_file(file)
    inputs = {name: expected[name] for name in ("input_ids", "attention_mask")}
    image = {name: expected[name] for name in ("pixel_values", "vision_features") if name in expected}
    model, loading = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
    assert not any(loading.values()), loading
    base = AutoModel.from_pretrained(folder, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    assert AutoConfig.from_pretrained(folder, trust_remote_code=True).hidden_size == base.config.embed_dim
    with torch.no_grad():
        text, seen = model(**inputs), model(**inputs, **image, output_hidden_states=True)
        hidden = base(**inputs, **image).last_hidden_state
    assert text.logits.dtype == torch.float32
    assert torch.equal(hidden, seen.hidden_states[-1])
    for name, logits in (("text", text.logits), ("image", seen.logits)):
        difference = (logits - expected[name]).abs().max().item()
        assert difference <= 1e-5, f"{name}: {difference}"
        print(name, difference)
    prompt = processor(text="the cat", return_tensors="pt")
    print(model.generate(**prompt, **{k: v[:1] for k, v in image.items()}, num_beams=2, max_new_tokens=4).shape)


for pair in zip(sys.argv[1::2], sys.argv[2::2], strict=True):
    compare(*pair)
