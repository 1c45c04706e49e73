"""What a model writes: captions of images, continuations of texts; greedy or by beam search, with a KV cache."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from tqdm import tqdm
from transformers import GenerationConfig, PreTrainedTokenizerBase

from bitgen.evaluation.encode import Runner, Split, image_batches, image_input
from bitgen.guards.texts import as_question, check_texts
from bitgen.model.causal_lm_bitgen import BitGenForCausalLM
from bitgen.model.modeling_bitgen import BitGenModel
from bitgen.model.processing_bitgen import text_ids
from bitgen.model.recalled import Recalled
from bitgen.trained import Trained

BATCH = 64
LONGEST = 40
# Of a search, both ends included: memory grows with the beams, and a context with more tokens than these is unheard of.
SEARCH_RANGES = {"num_beams": (1, 256), "max_new_tokens": (1, 1_000_000)}
COLDEST, HOTTEST = 0.01, 100.0  # temperature: below it one word is sure, above it all are alike


def language_model(model: BitGenModel, tokenizer: PreTrainedTokenizerBase) -> BitGenForCausalLM:
    """The same network with ``generate()``: its modules themselves, not copies, so that it follows their training.

    A model that can already generate (an export) is returned as it is.
    """
    if isinstance(model, BitGenForCausalLM):
        return model
    special = {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in ("bos", "eos", "pad")}
    config = copy.deepcopy(model.config)
    for name, value in special.items():
        setattr(config, name, value)
    with torch.device("meta"):  # takes no memory; what is built here is replaced at once
        generator = BitGenForCausalLM(config)
    for name, module in model.named_children():
        setattr(generator, name, module)
    generator.training = model.training
    generator.generation_config = GenerationConfig(**special)
    return generator


def generate_texts(
    model: BitGenForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    num_beams: int = 1,
    max_new_tokens: int = LONGEST,
    temperature: float = 0.0,
    **image: torch.Tensor,
) -> list[str]:
    """What the model writes after ``BOS prompt``, as it follows the prompt, without special tokens; one batch.

    Args:
        model: in eval mode.
        temperature: 0: what is likeliest; else each token is drawn, from torch's global random state.
        image: ``pixel_values [B, 3, H, W]`` or ``vision_features [B, P, C]``, one for each prompt; none: text alone.
            And what a memory recalled for them, ``recalled [B, S, D + 5 d + 1]`` and ``recalled_mask [B, S]``; none:
            nothing.

    Raises:
        ValueError: a prompt as long as the context, after which nothing can follow, or a search out of its range.
    """
    for name, value in (("num_beams", num_beams), ("max_new_tokens", max_new_tokens)):
        least, most = SEARCH_RANGES[name]
        if not least <= value <= most:
            raise ValueError(f"{name} is {value}; it must be from {least} to {most:,}")
    drawn: dict[str, Any] = {"do_sample": False}
    if temperature:
        if not COLDEST <= temperature <= HOTTEST:
            raise ValueError(f"temperature is {temperature}; it must be 0, or from {COLDEST:g} to {HOTTEST:g}")
        if num_beams > 1:
            raise ValueError(f"temperature draws words and {num_beams} beams search for the likeliest: choose one")
        drawn = {"do_sample": True, "temperature": temperature, "top_k": 0}
    check_texts((prompt for prompt in prompts if prompt.strip()), longest=None)
    encoded = text_ids(tokenizer, prompts)
    longest = max(len(ids) for ids in encoded)
    width = longest + 1
    input_ids = torch.full((len(encoded), width), tokenizer.pad_token_id)
    mask = torch.zeros_like(input_ids)
    for row, ids in enumerate(encoded):  # padded on the left, so that all go on from the last column
        start = longest - len(ids)
        input_ids[row, start:] = torch.tensor([tokenizer.bos_token_id, *ids])
        mask[row, start:] = 1
    written = model.generate(
        input_ids.to(model.device),
        attention_mask=mask.to(model.device),
        num_beams=num_beams,
        max_new_tokens=max_new_tokens,
        **drawn,
        **image,
    )
    return [
        _continuation(tokenizer, prompt, ids, new)
        for prompt, ids, new in zip(prompts, encoded, written[:, width:].tolist(), strict=True)
    ]


def _continuation(tokenizer: PreTrainedTokenizerBase, prompt: str, ids: list[int], new: list[int]) -> str:
    """What ``new`` ids add to a prompt's text: whether a word begins with a space is known beside what it follows."""

    def text_of(tokens: list[int]) -> str:
        return tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    before, whole = text_of(ids), text_of([*ids, *new])
    added = whole[len(os.path.commonprefix([before, whole])) :]
    # A prompt's last space is lost with tokenizers that mark words, and is in the next word instead.
    return added.lstrip(" ") if prompt.endswith(" ") and not before.endswith(" ") else added


def sample_captions(
    model: BitGenModel,
    dataset: Split,
    rows: Sequence[int],
    tokenizer: PreTrainedTokenizerBase,
    device: torch.device | str = "cpu",
    autocast: Callable[[], AbstractContextManager] = nullcontext,
    max_new_tokens: int = LONGEST,
    *,
    num_beams: int = 1,
    batch_size: int = BATCH,
    num_workers: int = 0,
    show_progress: bool = False,
) -> list[str]:
    """A caption for each of these images; the model's train/eval mode comes back, and no random state is touched.

    Args:
        model: on ``device``.
        dataset: has kind ("images" | "features") and image_tensor(row), as the model takes them.
        rows: of images; in any order, with repetitions.
        num_beams: beams of the search; 1: greedy.

    Returns:
        Captions on one line each, in the order of ``rows``; "" where the model ends at once.

    Raises:
        ValueError: an image that cannot be read; the message names it.
    """
    captions: list[str] = []
    name = image_input(dataset)
    bar = tqdm(total=len(rows), desc="captions", unit=" images", leave=False, disable=None if show_progress else True)
    read = image_batches(dataset, rows, batch_size, num_workers)
    with bar, Runner(model, batch_size, device, autocast).evaluating(), read as batches:
        generator = language_model(model, tokenizer)
        for batch in batches:
            image: dict[str, Any] = {name: batch.to(device)}
            texts = generate_texts(generator, tokenizer, [""] * len(batch), num_beams, max_new_tokens, **image)
            captions += [" ".join(text.split()) for text in texts]
            bar.update(len(batch))
    return captions


def continue_text(
    model: BitGenModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    device: torch.device | str = "cpu",
    max_new_tokens: int = LONGEST,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
) -> list[str]:
    """How the model goes on after each prompt, greedily: ``prompt + continuation`` is the whole text.

    The model, on ``device``, gets its train/eval mode back; no random state is touched.

    Raises:
        ValueError: a prompt as long as the context.
    """
    continuations: list[str] = []
    with Runner(model, BATCH, device, autocast).evaluating():
        generator = language_model(model, tokenizer)
        for start in range(0, len(prompts), BATCH):
            part = prompts[start : start + BATCH]
            continuations += generate_texts(generator, tokenizer, part, max_new_tokens=max_new_tokens)
    return continuations


def caption_of(
    trained: Trained,
    image: torch.Tensor,
    prompt: str = "",
    num_beams: int = 3,
    max_new_tokens: int = LONGEST,
    recalled: Recalled | None = None,
    temperature: float = 0.0,
) -> str:
    """The caption of one image, the prompt included.

    Args:
        image: ``[1, 3, H, W]`` as the processor makes it, or of a model without a tower ``[1, P, C]``.
        recalled: what a memory gives the model to say of it; None: nothing.
        temperature: of :func:`generate_texts`.

    Raises:
        ValueError: the prompt is as long as the context.
    """
    return f"{prompt}{_continued(trained, image, prompt, num_beams, max_new_tokens, recalled, temperature)}".strip()


def answer_of(
    trained: Trained,
    question: str,
    image: torch.Tensor | None = None,
    num_beams: int = 1,
    max_new_tokens: int = LONGEST,
    recalled: Recalled | None = None,
) -> str:
    """What a model that was trained to speak from a memory answers to a question (:func:`as_question`), on one line.

    Args:
        image: that it is about, as for :func:`caption_of`; None: the question stands alone.
        recalled: what a memory gives the model to say; None: nothing.

    Raises:
        ValueError: the question is as long as the context.
    """
    asked = as_question(question)
    return " ".join(_continued(trained, image, asked, num_beams, max_new_tokens, recalled).split())


def _continued(
    trained: Trained,
    image: torch.Tensor | None,
    prompt: str,
    num_beams: int,
    max_new_tokens: int,
    recalled: Recalled | None,
    temperature: float = 0.0,
) -> str:
    generator = language_model(trained.model, trained.tokenizer)
    given: dict[str, torch.Tensor] = {}
    if image is not None:
        name = "vision_features" if trained.model.config.takes_features else "pixel_values"
        given[name] = image.to(generator.device)
    if recalled is not None:
        given |= {"recalled": recalled.tokens, "recalled_mask": recalled.present}
    return generate_texts(generator, trained.tokenizer, [prompt], num_beams, max_new_tokens, temperature, **given)[0]
