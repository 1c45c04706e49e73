"""The LLaVA layout: a process of its own with transformers alone gives the same logits and the same greedy answers."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoProcessor

from bitgen.data.conversations.dataset import VisualCollator
from bitgen.data.conversations.records import Turn
from bitgen.evaluation.answers import Decoding, up_to_the_answer, write_answers
from bitgen.export.llava import why_not, write_llava
from bitgen.export.vlm_merge import merged
from bitgen.vlm.description import SpeechSource
from bitgen.vlm.vision import StoredFeatures, image_processor
from support.chat_templates import STYLES, styled
from support.tiny_vlms import LORA, an_input, language_folder, tiny_vlm, tower_folder
from support.warm import run_alone

TOWERS = ("clip_vision_model", "siglip_vision_model", "dinov2")
FAMILIES = ("llama", "qwen2", "phi3")
QUESTION = "What is it?"
FRESH = """
import sys
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor, LlavaForConditionalGeneration

folder, given, out, question = sys.argv[1:]
model, report = LlavaForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
assert not report["missing_keys"] and not report["unexpected_keys"], report
model, processor = model.eval(), AutoProcessor.from_pretrained(folder)
said = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
prompt = processor.apply_chat_template(said, add_generation_prompt=True)
inputs = processor(images=Image.open(given + ".png"), text=prompt, add_special_tokens=False, return_tensors="pt")
found = {"ids": inputs["input_ids"], "picture": inputs["pixel_values"]}
inputs["pixel_values"] = load_file(given)["picture"]
with torch.no_grad():
    found["logits"] = model(**inputs).logits[0]
found["written"] = model.generate(**inputs, do_sample=False, max_new_tokens=12)[0, inputs["input_ids"].shape[1]:]
save_file({name: tensor.contiguous() for name, tensor in found.items()}, out)
print(processor.decode(found["written"], skip_special_tokens=True))
"""


def photo(path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(path)
    return path


def in_a_fresh_process(folder, picture, tmp_path, question=QUESTION):
    save_file({"picture": picture}, tmp_path / "given")
    words = ["-c", FRESH, folder, tmp_path / "given", tmp_path / "out", question]
    done = run_alone(words, tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    return load_file(tmp_path / "out"), done.stdout.strip()


def ours(trained, picture, question=QUESTION):
    """Ids of the prompt, logits at its positions, and the answer."""
    turns = [Turn("user", f"<image>\n{question}"), Turn("assistant", "x")]
    ids, labels = trained.speech(turns, [trained.model.connector.tokens(1)])
    rest = {"words": 0, "truncated": False, "index": 0, "image_id": -1}
    sample = {"input_ids": torch.tensor(ids), "labels": torch.tensor(labels), "pixel_values": picture, "frames": [1]}
    collate = VisualCollator(trained.tokenizer.pad_token_id, "left")
    decoding = Decoding(max_new_tokens=12)
    [answer] = write_answers(trained.model, trained.speech, [sample | rest], collate, decoding)
    start = labels.index(next(label for label in labels if label != -100))
    given = torch.tensor([ids[:start]])
    with torch.no_grad():
        embeds = trained.model.embed({"input_ids": given, "pictures": picture, "frames": torch.tensor([1])})
        return given[0], trained.model.language(inputs_embeds=embeds).logits[0], answer


def same_in_a_fresh_process(trained, tmp_path):
    path = photo(tmp_path / "given.png")
    picture = image_processor(trained.model.tower.spec).images([path.read_bytes()])
    ids, logits, answer = ours(trained, picture)
    folder = tmp_path / "llava"
    folder.mkdir()
    write_llava(trained, folder)
    found, said = in_a_fresh_process(folder, picture, tmp_path)
    image_id = AutoConfig.from_pretrained(folder).image_token_index
    assert found["ids"][0].tolist() == [image_id if token == -200 else token for token in ids.tolist()]
    torch.testing.assert_close(found["logits"][:, : logits.shape[1]], logits, atol=2e-5, rtol=1e-5)
    assert " ".join(said.split()) == answer and image_id not in found["written"].tolist()
    # Pixels are those of this project but for the rounding of another resampling.
    assert (found["picture"] - picture).abs().max() < 0.05 and (found["picture"] - picture).abs().mean() < 0.01
    return folder


@pytest.mark.parametrize(
    ("tower", "family"), [(tower, "llama") for tower in TOWERS] + [("clip_vision_model", f) for f in FAMILIES[1:]]
)
def test_transformers_alone_gives_the_same_logits_and_answers(tower, family, tmp_path):
    more = {"tie_word_embeddings": True, "vocab_size": 310} if family == "qwen2" else {}
    trained = merged(tiny_vlm(tower_folder(tmp_path / "t", tower), language_folder(tmp_path / "lm", family, **more)))
    folder = same_in_a_fresh_process(trained, tmp_path)
    with safe_open(folder / "model.safetensors", "pt") as file:
        names = set(file.keys())
    starts = {".".join(name.split(".")[:2]) for name in names if name.startswith("vision_tower.")}
    assert starts == {"vision_tower.vision_model"} or tower == "dinov2"
    assert {"multi_modal_projector.linear_1.weight", "multi_modal_projector.linear_2.bias"} <= names
    assert "language_model.model.embed_tokens.weight" in names
    assert ("language_model.lm_head.weight" in names) == (not more)


@pytest.mark.parametrize("layers", [-1, [-2, -1], "all"])
def test_layers_are_concatenated_in_their_order(layers, tmp_path):
    trained = tiny_vlm(
        tower_folder(tmp_path / "t"), language_folder(tmp_path / "lm"), layers=layers, adapter=None, tuning="lora"
    )
    folder = same_in_a_fresh_process(merged(trained), tmp_path)
    expected = {"all": [-3, -2, -1]}.get(str(layers), layers)
    assert AutoConfig.from_pretrained(folder).vision_feature_layer == expected


# Name of a style, of a tokenizer, of a template, and the system prompt.
SPEECHES = [(style, "byte_level", "tokenizer", "helpful") for style in STYLES if style != "thinking"] + [
    ("chatml", "sentencepiece_like", "tokenizer", None),
    ("llama3", "sentencepiece_like", "tokenizer", "helpful"),
    ("mistral", "sentencepiece_like", "libra_v1", "chest_xray"),
    ("mistral", "byte_level", "libra_v1", None),
    ("mistral", "sentencepiece_like", "plain", "helpful"),
    ("mistral", "byte_level", "plain", None),
]


@pytest.mark.parametrize(("style", "kind", "template", "system"), SPEECHES)
def test_the_chat_template_writes_what_training_saw(style, kind, template, system, tmp_path):
    lm = language_folder(tmp_path / "lm", tokenizer=styled(style, kind))
    speech = SpeechSource(template, system)
    trained = tiny_vlm(tower_folder(tmp_path / "t"), lm, adapter=None, speech=speech)
    (tmp_path / "llava").mkdir()
    write_llava(trained, tmp_path / "llava")
    processor = AutoProcessor.from_pretrained(tmp_path / "llava")
    turns = [Turn("user", "What is it?"), Turn("assistant", "A dog."), Turn("user", "Where is it?")]
    turns = turns[:1] if template == "plain" else turns
    shown = [Turn("user", "<image>\nWhat is it?"), *turns[1:], Turn("assistant", "There.")]
    ids, labels = (torch.tensor(values) for values in trained.speech(shown, [4]))
    expected = up_to_the_answer({"input_ids": ids, "labels": labels})["input_ids"].tolist()
    chat = [{"role": turn.role, "content": [{"type": "text", "text": turn.text}]} for turn in turns]
    chat[0]["content"].insert(0, {"type": "image"})
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    given = processor(images=Image.new("RGB", (30, 30)), text=text, add_special_tokens=False)["input_ids"][0]
    image_id = processor.image_token_id
    assert [-200 if token == image_id else token for token in given] == expected


# ---- what the format would lose ----

REFUSED = {
    "connector": (dict(connector="linear"), {}, {}, "its connector is linear"),
    "depth": (dict(options={"depth": 3}), {}, {}, "mlp of depth 3"),
    "registers": ({}, dict(kind="dinov2_with_registers", num_register_tokens=4), {}, "5 tokens before the patches"),
    "softcap": ({}, {}, dict(kind="gemma2"), "caps its logits"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_format_would_lose_is_refused(case, tmp_path):
    settings, tower, language, reason = REFUSED[case]
    trained = tiny_vlm(
        tower_folder(tmp_path / "t", **tower), language_folder(tmp_path / "lm", **language), adapter=None, **settings
    )
    (tmp_path / "llava").mkdir()
    with pytest.raises(ValueError, match=reason) as error:
        write_llava(trained, tmp_path / "llava")
    assert "export without --format llava" in str(error.value)
    assert list((tmp_path / "llava").iterdir()) == []


def test_other_losses_have_reasons_too(tmp_path):
    trained = merged(tiny_vlm(tower_folder(tmp_path / "t"), language_folder(tmp_path / "lm"), adapter=LORA))
    assert why_not(trained) is None and an_input(trained)
    language = dataclasses.replace(trained.description.language, quantization="4bit")
    quantized = trained._replace(description=dataclasses.replace(trained.description, language=language))
    assert "quantized (4bit)" in (why_not(quantized) or "")
    spec, tower = trained.model.tower.spec, trained.model.tower
    tower.spec = dataclasses.replace(spec, fit="pad")
    assert "padded to squares" in (why_not(trained) or "")
    tower.spec = dataclasses.replace(spec, image_size=56)
    assert "56 pixels a side" in (why_not(trained) or "")
    trained.model.tower = StoredFeatures(4, 32)
    assert "features computed earlier" in (why_not(trained) or "")
    trained.model.connector = None
    assert "no connector" in (why_not(trained) or "")
