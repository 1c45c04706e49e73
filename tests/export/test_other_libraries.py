"""What other libraries call on an export: transformers' pipelines, trainer and caches, and peft."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from PIL import Image
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    Trainer,
    TrainingArguments,
    pipeline,
)
from transformers.pipelines import check_task

from bitgen.export.revisions import export_run
from support.runs import written_run


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return str(export_run(str(written_run()), str(tmp_path_factory.mktemp("libraries") / "bitgen"), True, False, {}))


@pytest.fixture
def model(exported):
    return AutoModelForCausalLM.from_pretrained(exported, trust_remote_code=True).eval()


@pytest.fixture(scope="module")
def inputs(exported):
    processor = AutoProcessor.from_pretrained(exported, trust_remote_code=True)
    return processor(text=["the cat sat on a mat", "the red dog"], padding=True, return_tensors="pt")


@pytest.fixture
def photo():
    return Image.effect_noise((50, 40), 90).convert("RGB")


# ---------------------------------------------------------------- pipelines


@pytest.mark.parametrize(
    ("task", "call", "begins"),
    [
        ("image-text-to-text", lambda pipe, photo: pipe(images=photo, text="the cat", max_new_tokens=3), "the cat"),
        ("image-text-to-text", lambda pipe, photo: pipe(photo, max_new_tokens=3), ""),
        ("image-to-text", lambda pipe, photo: pipe(photo, max_new_tokens=3), ""),
        ("text-generation", lambda pipe, photo: pipe("the cat", max_new_tokens=3), "the cat"),
    ],
)
def test_a_pipeline_writes(exported, photo, task, call, begins):
    [found] = call(pipeline(task, model=exported, trust_remote_code=True, device="cpu"), photo)
    assert found["generated_text"].startswith(begins)


def test_what_is_saved_again_has_its_pipeline(exported, model, photo, tmp_path):
    """As after fine-tuning: transformers copies the code that the entry file names."""
    model.save_pretrained(tmp_path)
    AutoProcessor.from_pretrained(exported, trust_remote_code=True).save_pretrained(tmp_path)
    pipes = (
        pipeline("image-text-to-text", model=folder, trust_remote_code=True, device="cpu")
        for folder in (exported, str(tmp_path))
    )
    before, again = (pipe(photo, max_new_tokens=3) for pipe in pipes)
    assert again == before


def test_a_pipeline_opens_the_files_that_it_is_given(exported, photo, tmp_path):
    pipe = pipeline("image-text-to-text", model=exported, trust_remote_code=True, device="cpu")
    path = tmp_path / "photo.png"
    photo.save(path)
    [found] = pipe(photo, max_new_tokens=3)
    for one in (pipe(str(path), max_new_tokens=3), pipe(images=path, max_new_tokens=3)):
        assert one[0]["generated_text"] == found["generated_text"]
    several = pipe([str(path), path], max_new_tokens=3)
    flat = [one[0] if isinstance(one, list) else one for one in several]
    assert [one["generated_text"] for one in flat] == [found["generated_text"]] * 2
    with pytest.raises(ValueError, match="nowhere.png"):
        pipe(str(tmp_path / "nowhere.png"))


def test_the_processor_gives_arrays_and_names_what_is_no_image(exported, photo):
    processor = AutoProcessor.from_pretrained(exported, trust_remote_code=True)
    tensors = processor(images=[photo] * 2, text=["the cat", "a mat"], return_tensors="pt")
    arrays = processor(images=[photo] * 2, text=["the cat", "a mat"], return_tensors="np")
    assert set(arrays) == set(tensors) > {"token_type_ids", "pixel_values"}
    for name, tensor in tensors.items():
        assert isinstance(arrays[name], np.ndarray) and (arrays[name] == tensor.numpy()).all(), name
    for wrong in ("photo.jpg", arrays["pixel_values"][0]):
        with pytest.raises(ValueError, match="image 0 is a (str|ndarray), not an image: open it with PIL.Image first"):
            processor(images=wrong)


def test_prompts_of_different_lengths_are_written_on_as_each_alone(exported, photo):
    pipe = pipeline("image-text-to-text", model=exported, trust_remote_code=True, device="cpu")
    texts = ["the cat sat on", "a"]
    both = pipe(images=[photo, photo], text=texts, max_new_tokens=4)
    alone = [pipe(images=photo, text=text, max_new_tokens=4) for text in texts]
    flat = [one[0] if isinstance(one, list) else one for one in both]
    assert [one["generated_text"] for one in flat] == [one[0]["generated_text"] for one in alone]


@pytest.mark.parametrize("features", [False, True])
def test_the_cards_task_is_one_that_transformers_has(tmp_path, features):
    folder = export_run(str(written_run(features=features)), str(tmp_path / "model"), True, False, {})
    task = re.search(r"^pipeline_tag: (.*)$", (folder / "README.md").read_text(), re.MULTILINE)[1]
    assert check_task(task)[0] == task == ("text-generation" if features else "image-text-to-text")
    assert ("custom_pipelines" in json.loads((folder / "config.json").read_text())) != features


def test_the_class_for_images_and_text_is_the_same_model(exported, model, inputs):
    other = AutoModelForImageTextToText.from_pretrained(exported, trust_remote_code=True).eval()
    with torch.no_grad():
        assert torch.equal(other(**inputs).logits, model(**inputs).logits)


# ---------------------------------------------------------------- fine-tuning


@pytest.mark.parametrize("task_type", ["CAUSAL_LM", None])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_lora_trains(model, inputs, task_type, checkpointing):
    tuned = get_peft_model(model, LoraConfig(task_type=task_type, target_modules=["query_key_value"])).train()
    if checkpointing:
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
    optimizer = torch.optim.Adam((p for p in tuned.parameters() if p.requires_grad), lr=0.01)
    losses = []
    for _ in range(8):
        loss = tuned(**inputs, labels=inputs["input_ids"]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert tuned.eval().generate(**inputs, max_new_tokens=2).shape == (2, inputs["input_ids"].shape[1] + 2)


def test_prompt_tuning_goes_through_embeddings(model, inputs):
    sizes = dict(token_dim=16, num_layers=model.config.num_layers, num_attention_heads=model.config.num_heads)
    tuned = get_peft_model(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, **sizes))
    tuned(**inputs, labels=inputs["input_ids"]).loss.backward()
    [grad] = [p.grad for p in tuned.parameters() if p.requires_grad]
    assert grad.abs().max() > 0


def test_activations_computed_anew_give_the_same_gradients(model, inputs):
    found = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.train().zero_grad()
        torch.manual_seed(3)  # dropout
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert model.is_gradient_checkpointing and found[0].keys() == found[1].keys()
    for name, grad in found[0].items():
        torch.testing.assert_close(grad, found[1][name], msg=name)


def test_the_trainer_of_transformers_trains(model, inputs, tmp_path):
    rows = [
        {"input_ids": ids, "attention_mask": mask, "labels": ids} for ids, mask in zip(*inputs.values(), strict=True)
    ]
    arguments = TrainingArguments(
        str(tmp_path), max_steps=2, gradient_checkpointing=True, gradient_accumulation_steps=2, report_to=[],
        per_device_train_batch_size=1, use_cpu=True, save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    before = model.text_projection.weight.clone(), model.embeddings.token.weight.clone()
    assert Trainer(model, arguments, train_dataset=rows).train().training_loss > 0
    assert torch.equal(model.text_projection.weight, before[0])  # no loss reaches it
    assert not torch.equal(model.embeddings.token.weight, before[1])


def test_a_summed_loss_is_divided_by_what_the_trainer_says(model, inputs):
    labels = inputs["input_ids"].clone()
    labels[0, 3:] = -100
    count = int((labels[:, 1:] != -100).sum())
    with torch.no_grad():
        mean = model(**inputs, labels=labels).loss
        torch.testing.assert_close(model(**inputs, labels=labels, num_items_in_batch=count).loss, mean)
        torch.testing.assert_close(model(**inputs, labels=labels, num_items_in_batch=2 * count).loss, mean / 2)


# ---------------------------------------------------------------- arguments


def test_embeddings_take_the_place_of_ids(model, inputs):
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    mask = inputs["attention_mask"]
    with torch.no_grad():
        expected = model(**inputs)
        found = model(inputs_embeds=embeds, attention_mask=mask)
        ones = {"max_new_tokens": 3, "eos_token_id": None}
        written = model.generate(inputs_embeds=embeds[:1], **ones)
    assert torch.equal(found.logits, expected.logits)
    assert torch.equal(written, model.generate(inputs["input_ids"][:1], **ones)[:, embeds.shape[1] :])


def test_attentions_are_the_weights_of_each_block(model, inputs):
    with torch.no_grad():
        found = model(**inputs, output_attentions=True, output_hidden_states=True)
    length = inputs["input_ids"].shape[1]
    assert len(found.attentions) == model.config.num_layers == len(found.hidden_states) - 1
    for weights in found.attentions:
        assert weights.shape == (2, model.config.num_heads, length, length)
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(weights.shape[:3]))
        assert not weights.triu(1).any()
    block, entered = model.decoder.blocks[0].attention, found.hidden_states[0]
    value = block.query_key_value(model.decoder.blocks[0].attention_norm(entered)).chunk(3, dim=-1)[2]
    mixed = (found.attentions[0] @ value.unflatten(-1, (model.config.num_heads, -1)).transpose(1, 2)).transpose(1, 2)
    attended = block(model.decoder.blocks[0].attention_norm(entered))
    torch.testing.assert_close(block.output(mixed.flatten(2)), attended, atol=1e-5, rtol=1e-4)


def test_positions_may_be_given(model, inputs):
    ids = inputs["input_ids"][:1]
    count = torch.arange(ids.shape[1])[None]
    with torch.no_grad():
        expected = model(ids).logits
        assert torch.equal(model(ids, position_ids=count).logits, expected)
        assert not torch.equal(model(ids, position_ids=count + 1).logits, expected)


def test_what_it_does_not_know_is_ignored_with_a_warning(model, inputs, caplog):
    with torch.no_grad():
        assert torch.equal(model(**inputs, task_ids=3, cache_position=None).logits, model(**inputs).logits)
    said = caplog.text
    assert "has no argument task_ids: it is ignored" in said and "cache_position" not in said


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, ids: m.generate(ids, cache_implementation="static", max_new_tokens=2), "'static'. is not supported"),
        (lambda m, ids: m(), "input_ids or inputs_embeds"),
        (lambda m, ids: m(ids, inputs_embeds=m.get_input_embeddings()(ids)), "input_ids or inputs_embeds"),
        (lambda m, ids: m(ids, position_ids=torch.full_like(ids, 40)), "reach 40; the context ends at max_seq_len=40"),
        (lambda m, ids: m(ids, position_ids=torch.zeros(3, 2).long()), r"position_ids is \[3, 2\]; it must be \[2, "),
        (lambda m, ids: m(inputs_embeds=torch.zeros(1, 41, 16)), "41 tokens are more than max_seq_len=40"),
        (lambda m, ids: m(ids.repeat(1, 20), torch.ones(1, 3)), r"attention_mask is \[1, 3\]"),
    ],
)
def test_what_it_cannot_do_is_said(model, inputs, call, message):
    with pytest.raises(ValueError, match=message):
        call(model, inputs["input_ids"])
