"""An export is taught and speaks with transformers alone, and what it was taught is read here too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bitgen.export.revisions import export_run
from bitgen.model.causal_lm_bitgen import BitGenForCausalLM
from bitgen.model.token_ids import words_of
from bitgen.trained import open_model
from support.runs import written_run
from support.warm import run_alone

HERE = Path(__file__).parent
RECALL = {"recall_tokens": 8, "recall_dim": 16, "recall_code": 8}


def test_it_is_taught_and_speaks_in_a_fresh_process_without_this_repository(tmp_path):
    folders = []
    for name, features in (("images", False), ("features", True)):
        run = written_run(features=features, **RECALL)
        folders.append(export_run(str(run), str(tmp_path / name), True, False, {}))
    (tmp_path / "empty").mkdir()
    done = run_alone([HERE / "speak_export.py", *folders], tmp_path / "empty")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("spoke") == 2, done.stdout
    for folder in folders:
        model, said = BitGenForCausalLM.from_pretrained(folder), load_file(f"{folder}.said")
        memory = model.load_memory(f"{folder}.facts")
        assert memory.texts == ("the dog sat", "this is a red dog")
        model.recall.threshold.data.fill_(-2)
        model.recall.word_worth[1].bias.data.fill_(-9)
        image = {"vision_features" if model.config.takes_features else "pixel_values": said["pictures"][1:]}
        options = {"memory": memory, "max_new_tokens": 6, "eos_token_id": None}
        text = {name: said[name] for name in ("input_ids", "attention_mask")}
        for kind, beams in (("found", 1), ("beams", 3)):
            for inputs, expected in zip((text, image), said[kind], strict=True):
                assert torch.equal(model.generate(**inputs, **options, num_beams=beams)[:, -6:], expected)


def test_an_export_of_an_earlier_release_learns_its_words_where_it_is_opened_and_is_named_elsewhere(tmp_path):
    folder = export_run(str(written_run(**RECALL)), str(tmp_path / "export"), True, False, {})
    file = Path(folder) / "config.json"
    config = json.loads(file.read_text())
    words = config.pop("recall_words")
    file.write_text(json.dumps(config))
    opened = open_model(folder)
    assert opened.model.config.recall_words == words == words_of(opened.tokenizer)
    model = BitGenForCausalLM.from_pretrained(folder)
    memory = model.new_memory()
    memory.teach("the dog sat", opened.tokenizer)
    with pytest.raises(ValueError, match="written by an earlier release"):
        model.generate(torch.tensor([[0, 5, 6]]), memory=memory)
