"""What a configuration and its data make of a model of parts."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from bitgen.config.values import ConfigError
from bitgen.config.vlm import stages_of
from bitgen.data.conversations.records import IMAGE_MARKER, Turn
from bitgen.data.conversations.writer import writing_conversations
from bitgen.machine.ranks import Processes
from bitgen.tasks.recipe import train_recipe
from bitgen.tasks.vlm import Vlm
from bitgen.tasks.vlm_description import _token_std
from bitgen.tasks.vlm_parts import build_parts
from bitgen.trained_vlm import open_vlm
from bitgen.vlm.description import Description, LanguageSource
from support.chat_templates import styled
from support.language_models import KINDS, VOCABULARY, tiny_language_model
from support.tiny_vlms import language_folder
from support.vlm import recipe
from support.vlm_runs import encoded

ALONE = Processes(0, 1, torch.device("cpu"))


@pytest.mark.parametrize("kind", KINDS)
def test_what_enters_beside_words_begins_as_large_as_they_are(kind: str) -> None:
    """Gemma's embedding is larger than its table."""
    embedding = tiny_language_model(kind).model.get_input_embeddings()
    with torch.no_grad():
        words = embedding(torch.arange(VOCABULARY))
    assert _token_std(embedding) == pytest.approx(words.std().item(), abs=1e-4)


def videos(folder: Path, frames: int) -> str:
    with writing_conversations(folder, "a test") as writer:
        rows = [writer.picture(f"{colour}.png", encoded(colour)) for colour in ("red", "blue", "green")]
        for number in range(8):
            visual = [rows[(number + frame) % 3] for frame in range(frames)]
            writer.add(f"q{number}", [visual], [Turn("user", f"{IMAGE_MARKER}\nit?"), Turn("assistant", "a")], [])
    return str(folder)


def test_a_perceiver_goes_on_from_captions_to_videos_of_more_and_more_frames(tmp_path: Path, monkeypatch) -> None:
    """Captions have one picture each, and no row for a frame. Asked about a video it takes as many as training had, and
    does so after a last stage on captions too."""
    perceiver = {"connector": "perceiver", "connector_queries": 4, "connector_depth": 1, "template": "libra_v1"}
    perceiver |= {"max_length": 200, "language_positions": 400, "val_data": None, "val_generated": 0, "max_steps": 1}
    stages = [{"name": "captions", "trains": "connector", **perceiver}]
    for frames in (2, 3):
        data = {"train_data": videos(tmp_path / f"of{frames}", frames), "num_frames": frames + 1}
        stages.append({"name": f"of{frames}", "trains": "connector", **perceiver, **data})
    runs = stages_of(recipe(tmp_path, stages))
    _, two, three = (run.config for run in runs)
    assert train_recipe(runs[:1], resume=False) == 0
    # How large the first stage's weights began does not matter: an earlier version measured it otherwise.
    monkeypatch.setattr("bitgen.tasks.vlm_description._token_std", lambda _: 0.5)
    begun = build_parts(two, ALONE, fresh=True)
    rows = begun.model.connector.resampler.frame_embeddings
    assert rows.shape[0] == 3 and not rows.any()  # what it was without them
    assert begun.description["speech"]["num_frames"] == 2
    assert train_recipe(runs[1:2], resume=False) == 0
    learned = open_vlm(two.output.output_dir).model.connector.resampler.frame_embeddings
    assert learned[:2].any(dim=1).all()
    rows = build_parts(three, ALONE, fresh=True).model.connector.resampler.frame_embeddings
    assert rows.shape[0] == 4 and torch.equal(rows[:3], learned) and not rows[3].any()
    places = {"output_dir": str(tmp_path / "back"), "log_dir": str(tmp_path / "back_log")}
    back = build_parts(runs[0].config.replace(init_from=two.output.output_dir, **places), ALONE, fresh=True)
    assert back.model.connector.config.frames == 3 and back.description["speech"]["num_frames"] == 2
    assert torch.equal(back.model.connector.resampler.frame_embeddings, learned)


def test_a_tokenizer_without_a_template_is_found_before_the_first_stage(tmp_path: Path) -> None:
    tokenizer = styled("chatml")
    tokenizer.chat_template = None
    folder = language_folder(tmp_path / "lm", tokenizer=tokenizer)
    stages = [
        {"name": name, "trains": "connector", "template": of} for name, of in (("a", "plain"), ("b", "tokenizer"))
    ]
    runs = stages_of(recipe(tmp_path, stages, language_model=str(folder)))
    with pytest.raises(ConfigError, match="stage b: the tokenizer has no chat template; choose another template"):
        train_recipe(runs, resume=False)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("quantization", "place"), [("none", "cpu"), ("4bit", "cuda:1"), ("8bit", "cuda:1")])
def test_a_quantized_language_model_is_made_where_it_runs(tmp_path: Path, monkeypatch, quantization, place) -> None:
    """A GPU is only named here. Where a model in 8 bits is moved to it later, its scales stay behind."""
    asked = []

    def opened(name, revision, dtype, quantization, device):
        asked.append(device)
        raise ValueError("noted")

    monkeypatch.setattr("bitgen.vlm.assembly.open_language_model", opened)
    settings = {"language_model": str(language_folder(tmp_path / "lm")), "quantization": quantization}
    [stage] = stages_of(recipe(tmp_path, [{"name": "one", "trains": "connector"}], **settings))
    gpu = torch.device("cuda", 1)
    with pytest.raises(ValueError, match="noted"):
        build_parts(stage.config, Processes(0, 1, gpu), fresh=True)
    kept = None if quantization == "none" else quantization
    description = Description(LanguageSource(settings["language_model"], quantization=kept))
    monkeypatch.setattr("bitgen.trained_vlm.read_description", lambda folder: description)
    monkeypatch.setattr("bitgen.trained_vlm.own_weights", lambda folder: {})
    with pytest.raises(ValueError, match="noted"):
        open_vlm(settings["language_model"], gpu)
    assert asked == [place, place]


def test_what_was_set_for_nothing_is_said(tmp_path: Path, caplog) -> None:
    [stage] = stages_of(recipe(tmp_path, [{"name": "one", "trains": "connector"}], group_by_length=True))
    with caplog.at_level(logging.INFO):
        Vlm().build(stage.config, ALONE, fresh=True)
    assert not [record for record in caplog.records if record.name == "bitgen.tasks.vlm"]
    assert "counting the tokens of 32 conversations" in caplog.text  # which takes minutes where there are many
    given = {"prompts": "What is it?", "system_prompt": "helpful", "language_dtype": "bfloat16"}
    Vlm().build(stage.config.replace(**given), ALONE, fresh=True)
    assert "prompts and system_prompt: the template plain writes the picture and its caption alone" in caplog.text
    assert "language_dtype=bfloat16: a 'random' language model is trained whole, in float32" in caplog.text
    assert "emulates" not in caplog.text
