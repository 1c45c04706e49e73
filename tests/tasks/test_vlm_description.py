"""What a configuration and its data make of a model of parts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bitgen.config.values import ConfigError
from bitgen.config.vlm import stages_of
from bitgen.data.conversations.records import IMAGE_MARKER, Turn
from bitgen.data.conversations.writer import writing_conversations
from bitgen.machine.ranks import Processes
from bitgen.tasks.recipe import train_recipe
from bitgen.tasks.vlm_description import _token_std
from bitgen.tasks.vlm_parts import build_parts
from bitgen.trained_vlm import open_vlm
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
    """Captions have one picture each, and no row for a frame. Asked about a video it takes as many as training had."""
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
