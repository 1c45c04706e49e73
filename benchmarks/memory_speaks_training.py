"""Teaching in one write against fine-tuning a model by gradient until it says the same."""

from __future__ import annotations

import copy
import re
import time
from typing import Any

import torch

from bitgen.data.episodes.dataset import Episode, EpisodeDataset
from bitgen.evaluation.generation import generate_texts, language_model
from bitgen.memory.address_space import IMAGE
from bitgen.memory.answering import Speaker
from bitgen.memory.associative import AssociativeMemory
from bitgen.model.likelihood import next_token_labels
from bitgen.objectives.language import language_loss
from bitgen.objectives.recall import RecallObjective

RATES = (3e-4, 1e-3, 3e-3)
_MOST_STEPS, _ENOUGH = 120, 0.99


def teaching_and_tuning(speaker: Speaker, episode: Episode) -> dict[str, dict[str, Any]]:
    """CPU seconds of teaching an episode's facts, and of fine-tuning the model on them: ``{name: line}``.

    A memory computes the matrices of its addresses once, before its first write, and they are the same for all facts:
    they are a line of their own, and ``fine_tuning_over_first`` has them in.
    """
    tensors, empty = speaker.tensors(episode), AssociativeMemory.empty(speaker.space)
    with torch.no_grad():
        began = time.process_time()
        empty.precision  # noqa: B018  # and the first write of any
        empty.written(torch.randn(1, sum(speaker.space.halves)))
        addresses = time.process_time() - began
        began = time.process_time()
        memory = empty.written(torch.cat(speaker.objective.write(tensors), dim=1))
        memory.read(memory.halves(IMAGE)[:1], IMAGE)
        taught = time.process_time() - began
    tuned = fine_tuned_seconds(speaker.objective, speaker.data, episode)
    over = {"fine_tuning_over_teaching": taught, "fine_tuning_over_first": taught + addresses}
    seconds = {name: tuned[name] for name in ("value", "at_least") if name in tuned}
    return {
        "addresses_seconds": {"value": addresses},
        "teach_seconds": {"value": taught},
        "fine_tuning_seconds": tuned,
    } | {
        name: {kind: None if long is None else long / base for kind, long in seconds.items()}
        for name, base in over.items()
    }


def fine_tuned_seconds(objective: RecallObjective, data: EpisodeDataset, episode: Episode) -> dict[str, Any]:
    """CPU seconds of the best of three rates until the greedy captions of the taught pictures hold their texts' names,
    and the steps that it took. None where no rate gets there, with the seconds of the fastest as ``at_least``.

    The model learns the taught text as the caption of its picture, all facts in each step.
    """
    best: dict[str, Any] = {"value": None, "rate": None, "steps": None}
    in_vain = []
    for rate in RATES:
        spent, steps, says = _seconds(objective, data, episode, rate)
        if not says:
            in_vain.append(spent)
        elif best["value"] is None or spent < best["value"]:
            best = {"value": spent, "rate": rate, "steps": steps}
    return best if best["value"] is not None else best | {"at_least": min(in_vain)}


def _seconds(
    objective: RecallObjective, data: EpisodeDataset, episode: Episode, rate: float
) -> tuple[float, int, bool]:
    """CPU seconds, steps, and whether the captions hold the names then."""
    model = copy.deepcopy(objective.model).eval()
    tokenizer = data.processor.tokenizer
    assert tokenizer is not None
    tensors = data.tensors(episode)
    ids, mask = tensors["taught_ids"], tensors["taught_mask"]
    # The name: the word with a capital letter in each taught text.
    names = [next(word for word in re.findall(r"\w+", text) if word[0].isupper()) for text, _ in episode.taught]
    trained = [p for name, p in model.named_parameters() if not name.startswith(("vision_encoder.", "recall."))]
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(trained, rate)
    generator = language_model(model, tokenizer)
    spent = 0.0
    with torch.no_grad():
        kind = "vision_features" if model.config.takes_features else "pixel_values"
        began = time.process_time()
        patches = (
            model.patch_features(tensors["taught_pictures"]) if kind == "pixel_values" else tensors["taught_pictures"]
        )
        spent += time.process_time() - began
    labels = next_token_labels(ids, mask)
    for step in range(1, _MOST_STEPS + 1):
        began = time.process_time()
        tokens = model.pool_image_tokens(model.encode_image(vision_features=patches).image_tokens)
        hidden = model.run_stack(ids, mask, tokens).hidden_states
        language_loss(hidden, model.embeddings.token.weight, labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        spent += time.process_time() - began
        with torch.no_grad():  # looking is not counted
            tokens = model.pool_image_tokens(model.encode_image(vision_features=patches).image_tokens)
            said = generate_texts(generator, tokenizer, [""] * len(ids), 1, 24, image_tokens=tokens.to(model.dtype))
        hits = [name in re.findall(r"\w+", text) for name, text in zip(names, said, strict=True)]
        if sum(hits) >= _ENOUGH * len(hits):
            return spent, step, True
    return spent, _MOST_STEPS, False
