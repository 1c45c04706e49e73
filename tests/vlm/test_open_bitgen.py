"""An export of BitGen as a language model, and adapters around any model."""

from __future__ import annotations

import re

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from bitgen.commands import export
from bitgen.data.conversations.chat import encode_chat
from bitgen.evaluation.generation import language_model
from bitgen.export.vlm_folder import write_vlm_folder
from bitgen.trained import open_model
from bitgen.vlm.language import generate, open_language_model
from bitgen.vlm.modeling import VisionLanguageModel
from support.language_models import padded, ragged, supervised_loss, tiny_language_model
from support.runs import written_run
from support.tiny_vlms import LORA, tiny_vlm


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "model"
    export.main(["--checkpoint", str(written_run()), "--output", str(folder)])
    return folder


def test_an_export_is_opened_with_our_own_classes(exported):
    lm, own = open_language_model(exported), open_model(exported)
    assert lm.tokenizer.get_vocab() == own.tokenizer.get_vocab()
    ids, mask = padded(ragged())
    embeds = lm.model.get_input_embeddings()(ids)
    with torch.no_grad():
        expected = own.model(input_ids=ids, attention_mask=mask).logits
        total, count = supervised_loss(lm, embeds, mask, ids.masked_fill(mask == 0, -100))
        torch.testing.assert_close(lm.model(inputs_embeds=embeds, attention_mask=mask).logits, expected)
        whole = own.model(input_ids=ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100))
    torch.testing.assert_close(total / count, whole.loss, atol=1e-6, rtol=1e-6)


def test_an_export_learns_from_chats_and_writes(exported):
    lm = open_language_model(exported)
    messages = [{"role": "user", "content": "<image>"}, {"role": "assistant", "content": "a red dog"}]
    encoded = encode_chat(lm.tokenizer, messages, "plain", visuals=1)
    assert lm.tokenizer.decode(encoded.labels[encoded.labels >= 0]).endswith("red dog</s>")
    ids, mask = padded(ragged())
    answers = generate(lm, lm.model.get_input_embeddings()(ids), mask, max_new_tokens=4)
    prompts = [ids[i, : int(mask[i].sum())] for i in range(3)]
    for prompt, answer in zip(prompts, answers, strict=True):
        expected = lm.model.generate(prompt[None], max_new_tokens=4, do_sample=False)[0, len(prompt) :]
        assert answer[: len(expected)].tolist() == expected.tolist()


def test_a_model_of_parts_around_it_is_loaded_as_its_card_says(exported, tmp_path):
    trained = tiny_vlm(None, exported, adapter=LORA, own_parts=("language",))
    ids = torch.tensor([[3, 4, 5]])
    with torch.no_grad():
        expected = trained.model.language(input_ids=ids).logits
    write_vlm_folder(trained, tmp_path / "vlm", {})  # which takes the adapter off the language model
    card = (tmp_path / "vlm" / "README.md").read_text()
    opened, adapted = re.findall("```python\n(.*)\n```", card)
    names = {"AutoModelForCausalLM": AutoModelForCausalLM, "PeftModel": PeftModel, "DIR": str(tmp_path / "vlm")}
    model = eval(opened.replace("'DIR/", f"'{tmp_path}/vlm/"), names)
    with torch.no_grad():
        assert (model(input_ids=ids).logits - expected).abs().max() > 1e-2
        whole = eval(adapted.replace("'DIR/", f"'{tmp_path}/vlm/"), names)
        torch.testing.assert_close(whole(input_ids=ids).logits, expected)


def test_an_export_is_too_small_to_quantize(exported):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    with pytest.raises(ValueError, match="too small to gain by quantization"):
        open_language_model(exported, quantization="4bit")


@pytest.mark.parametrize("kind", ["llama", "gemma2", "phi3"])
def test_a_model_with_adapters_around_it_is_used_in_the_same_way(kind):
    lm = tiny_language_model(kind)
    ids, mask = padded(ragged())
    embeds = lm.model.get_input_embeddings()(ids).detach()
    labels = ids.masked_fill(mask == 0, -100)
    before = supervised_loss(lm, embeds, mask, labels), generate(lm, embeds, mask, max_new_tokens=4)
    adapted = get_peft_model(lm.model, LoraConfig(r=2, target_modules="all-linear"))
    for model in (adapted, lm._replace(model=adapted)):
        after = supervised_loss(model, embeds, mask, labels), generate(model, embeds, mask, max_new_tokens=4)
        torch.testing.assert_close(after, before)
    after[0][0].backward()
    assert all(p.grad is not None for name, p in adapted.named_parameters() if "lora_B" in name)


def test_what_text_never_runs_of_an_export_is_neither_adapter_nor_trained():
    """Its own vision tower's LoRA, and what speaks from a memory: DDP would wait for their gradients, and a checkpoint
    that held them could not be opened again."""
    language = language_model(open_model(written_run(recall_tokens=4)).model, open_model(written_run()).tokenizer)
    model = VisionLanguageModel(None, None, language, frozenset({"language"}))
    roles = {name: model.role_of(name, parameter) for name, parameter in model.named_parameters()}
    asleep = {name for name, role in roles.items() if not role.reached}
    named = ("vision_encoder", "compressor", "recall", "itm_head", "image_projection", "memory.gpm")
    assert all(any(f".{part}" in name for name in asleep) for part in named)
    assert {role.part for role in roles.values()} == {"language"}
    ids, mask = padded(ragged())
    model.language(inputs_embeds=language.get_input_embeddings()(ids), attention_mask=mask).logits.sum().backward()
    unread = ("language.embeddings", "language.memory.read_logvar")
    without = {name for name, p in model.named_parameters() if p.grad is None and not name.startswith(unread)}
    assert without == {name for name in asleep if not name.startswith(unread)}
    frozen = VisionLanguageModel(None, None, language, frozenset())
    assert not [name for name, _ in frozen.named_parameters() if frozen.owns(name)]
