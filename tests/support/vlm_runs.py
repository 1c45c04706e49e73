"""Tiny vision-language models of parts, trained in this process, and folders of conversations for them."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from bitgen.config.schema import flat_settings_of
from bitgen.config.vlm import VlmConfig, stages_of
from bitgen.data.conversations.records import IMAGE_MARKER, Turn
from bitgen.data.conversations.writer import writing_conversations
from bitgen.tasks.recipe import train_recipe
from support.runs import REPOSITORY

TINY = dict(
    image_size=28,
    vision_hidden_size=24,
    vision_num_layers=2,
    vision_num_heads=2,
    vision_patch_size=14,
    language_hidden_size=32,
    language_num_layers=2,
    language_num_heads=2,
    language_vocab_size=300,
    max_length=64,
    scenes_train=60,
    scenes_val=8,
    batch_size=4,
    val_generated=4,
    val_samples=8,
    val_max_new_tokens=8,
    eval_steps=100,
    save_steps=100,
    adapter_rank=4,
    device="cpu",
    precision="fp32",
    progress=False,
)


def tiny_flags(**changes: object) -> list[str]:
    """The flags of configs/vlm_quick.yaml made tiny."""
    settings = {**TINY, **changes}
    known = flat_settings_of(VlmConfig)
    assert not set(settings) - set(known), set(settings) - set(known)
    flags = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    return ["--config", str(REPOSITORY / "configs" / "vlm_quick.yaml"), *flags]


def train_tiny(folder: Path, steps: int = 2, **changes: object) -> Path:
    """The three stages of the recipe, a few steps each; returns the folder of the last one."""
    settings = {"max_steps": steps, "output_dir": folder / "out", "log_dir": folder / "log", **changes}
    config = VlmConfig.parse(tiny_flags(**settings))
    assert train_recipe(stages_of(config, set(settings)), resume=False) == 0
    return folder / "out" / "tune"


def encoded(colour: str, size: int = 28) -> bytes:
    """A picture of one colour as a PNG."""
    content = io.BytesIO()
    Image.new("RGB", (size, size), colour).save(content, "PNG")
    return content.getvalue()


# Colour of the picture, and what people called it.
QUESTIONS = [("red", ["red", "crimson", "red"]), ("green", ["green"]), ("blue", ["blue", "navy"]), ("white", ["white"])]


def write_questions(folder: Path, with_text: bool = False) -> Path:
    """A folder of conversations: what colour each picture has; perhaps one without a picture."""
    with writing_conversations(folder, "a test") as writer:
        for number, (colour, people) in enumerate(QUESTIONS):
            row = writer.picture(f"{colour}.png", encoded(colour))
            turns = [Turn("user", f"{IMAGE_MARKER}\nWhat colour is it?"), Turn("assistant", people[0])]
            writer.add(f"q{number}", [[row]], turns, people[1:])
        if with_text:
            writer.add("text", [], [Turn("user", "What is two and two?"), Turn("assistant", "four")])
    return folder
