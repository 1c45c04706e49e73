"""A real language model behind a connector that alone learns: it memorises what two pictures are to be called."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bitgen.data.conversations.dataset import VisualCollator
from bitgen.data.conversations.records import Turn
from bitgen.data.conversations.speech import Speech
from bitgen.evaluation.answers import Decoding, write_answers
from bitgen.objectives.supervised import NextTokens
from bitgen.vlm.connectors import ConnectorConfig, build_connector
from bitgen.vlm.language import open_language_model
from bitgen.vlm.modeling import VisionLanguageModel
from bitgen.vlm.vision import StoredFeatures

CAPTIONS = ("A red fox sleeps under an old oak tree.", "Two children fly a kite on the windy beach.")
TOKENS, WIDTH, STEPS = 9, 64, 30


@pytest.mark.realweights
def test_a_frozen_language_model_memorises_two_captions_through_its_connector(smollm2: Path) -> None:
    torch.manual_seed(0)
    opened = open_language_model(smollm2)
    lm, tokenizer = opened.model.requires_grad_(False), opened.tokenizer
    assert tokenizer is not None
    before = {name: parameter.clone() for name, parameter in lm.named_parameters()}
    config = ConnectorConfig("mlp", WIDTH, lm.config.hidden_size, TOKENS, 1, 1, lm.config.num_attention_heads)
    model = VisionLanguageModel(StoredFeatures(TOKENS, WIDTH), build_connector(config), lm)
    speech = Speech(tokenizer, "tokenizer")
    features = torch.randn(2, 1, TOKENS, WIDTH)
    samples = []
    for number, caption in enumerate(CAPTIONS):
        turns = [Turn("user", "<image>\nDescribe the image."), Turn("assistant", caption)]
        ids, labels = (torch.tensor(values) for values in speech(turns, [TOKENS]))
        sample = {"input_ids": ids, "labels": labels, "frames": [1], "vision_features": features[number]}
        samples.append({**sample, "index": number, "image_id": number, "words": 9, "truncated": False})
    collate = VisualCollator(tokenizer.pad_token_id)
    batch = {name: value for name, value in collate(samples).items() if isinstance(value, torch.Tensor)}
    objective, optimizer = NextTokens(model), torch.optim.AdamW(model.connector.parameters(), lr=1e-3)
    losses = []
    for _ in range(STEPS):
        loss = objective(batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.connector.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[0] > 2.0 and losses[-1] < 0.2, losses
    written = write_answers(model, speech, samples, collate, Decoding(max_new_tokens=24))
    assert written == list(CAPTIONS)
    assert all(torch.equal(parameter, before[name]) for name, parameter in lm.named_parameters())
