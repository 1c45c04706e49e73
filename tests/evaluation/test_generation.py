"""Generated texts, against a plain loop that reads everything anew for each token."""

from __future__ import annotations

import pytest
import torch

from bitgen.evaluation.generation import continue_text, language_model, sample_captions
from bitgen.export.revisions import export_run
from bitgen.trained import open_model
from support.runs import written_run


class Images:
    """Random images, or features of them."""

    def __init__(self, config, count=5):
        self.kind = "features" if config.takes_features else "images"
        shape = (config.feature_tokens, config.feature_dim) if config.takes_features else (3, 28, 28)
        self.tensors = torch.randn(count, *shape, generator=torch.Generator().manual_seed(1))

    def image_tensor(self, row):
        return self.tensors[row]


@torch.no_grad()
def plain_greedy(model, tokenizer, prompt="", image=None, steps=8):
    """The most probable token, one after the other, without a cache and without a batch."""
    ids = [tokenizer.bos_token_id, *tokenizer(prompt, add_special_tokens=False)["input_ids"]]
    prompted, tokens = len(ids), None
    if image is not None:
        name = "vision_features" if model.config.takes_features else "pixel_values"
        tokens = model.pool_image_tokens(model.encode_image(**{name: image[None]}).image_tokens)
    while len(ids) - prompted < steps and len(ids) < model.config.max_seq_len:
        ids.append(int(model(torch.tensor([ids]), image_tokens=tokens)[0, -1].argmax()))
        if ids[-1] == tokenizer.eos_token_id:
            break
    return tokenizer.decode(ids[prompted:], skip_special_tokens=True, clean_up_tokenization_spaces=False)


@pytest.fixture(params=[False, True], ids=["images", "features"])
def loaded(request):
    loaded = open_model(written_run(features=request.param))
    with torch.no_grad():  # else it writes its last token again and again, whatever the image
        loaded.model.embeddings.token.weight.mul_(0.02)
    return loaded


def test_captions_are_those_of_the_plain_loop(loaded):
    dataset, rows = Images(loaded.model.config), [3, 0, 4, 0]
    found = sample_captions(loaded.model, dataset, rows, loaded.tokenizer, max_new_tokens=8, batch_size=3)
    plain = [plain_greedy(loaded.model, loaded.tokenizer, image=dataset.tensors[row]) for row in rows]
    assert found == [" ".join(text.split()) for text in plain]
    assert len(set(found)) > 1  # the image is looked at


def test_texts_go_on_as_in_the_plain_loop_whatever_the_lengths_of_the_others(loaded):
    prompts = ["the cat", "", "a dog sat on the red mat and", "the cat runs"]
    found = continue_text(loaded.model, loaded.tokenizer, prompts, max_new_tokens=6)
    assert found == [plain_greedy(loaded.model, loaded.tokenizer, prompt, steps=6) for prompt in prompts]


def test_a_prompt_as_long_as_the_context_is_refused(loaded):
    with pytest.raises(ValueError, match="context max_seq_len=40"):
        continue_text(loaded.model, loaded.tokenizer, ["cat " * 60])


@pytest.mark.parametrize("stray", ["caf\udce9", "\ud83d"])
def test_stray_bytes_of_a_command_line_are_named(loaded, stray):
    with pytest.raises(ValueError, match="is not valid Unicode"):
        continue_text(loaded.model, loaded.tokenizer, [stray])


def test_nothing_of_the_model_changes(loaded):
    model = loaded.model.train()
    model.embeddings.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.get_rng_state()
    dataset = Images(model.config)
    first = sample_captions(model, dataset, range(5), loaded.tokenizer, max_new_tokens=4)
    assert model.training and torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert first == sample_captions(model.eval(), dataset, range(5), loaded.tokenizer, max_new_tokens=4)


def test_the_language_model_shares_its_parameters(loaded):
    generator = language_model(loaded.model, loaded.tokenizer)
    own = dict(loaded.model.named_parameters())
    assert all(parameter is own[name] for name, parameter in generator.named_parameters())
    assert language_model(generator, loaded.tokenizer) is generator


def test_beams_find_captions_at_least_as_probable(loaded):
    dataset = Images(loaded.model.config, 4)
    name = "vision_features" if loaded.model.config.takes_features else "pixel_values"
    generator = language_model(loaded.model, loaded.tokenizer)
    totals = {}
    for beams in (1, 6):
        ids = generator.generate(
            **{name: dataset.tensors}, num_beams=beams, do_sample=False, max_new_tokens=3, min_new_tokens=3
        )
        tokens = generator.image_context(**{name: dataset.tensors})
        scores = loaded.model(ids, image_tokens=tokens)[:, :-1].log_softmax(-1)
        totals[beams] = scores.gather(2, ids[:, 1:, None]).sum().item()
    assert totals[6] >= totals[1] - 1e-4
    captions = sample_captions(loaded.model, dataset, range(4), loaded.tokenizer, num_beams=3)
    assert len(captions) == 4 and all(isinstance(caption, str) for caption in captions)


def test_an_export_writes_what_its_checkpoint_writes(tmp_path):
    folder = written_run(features=True)
    exported = open_model(export_run(str(folder), str(tmp_path / "export"), True, False, {}))
    loaded = open_model(folder)
    dataset = Images(exported.model.config)
    expected = sample_captions(loaded.model, dataset, range(5), loaded.tokenizer, max_new_tokens=8)
    found = sample_captions(exported.model, dataset, range(5), exported.tokenizer, max_new_tokens=8)
    assert found == expected
