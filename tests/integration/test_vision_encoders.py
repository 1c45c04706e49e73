"""Runs of the entry with ``--vision_encoder FOLDER``: what fits trains through both phases, the rest is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoModel, CLIPConfig, CLIPImageProcessor, CLIPModel

from bitgen.commands import export
from bitgen.model.image_settings import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN
from bitgen.trained import open_model

SIZES = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, patch_size=7, image_size=28)
FITTING = {
    "dinov2": SIZES,
    "dinov3_vit": SIZES | {"intermediate_size": 48, "num_register_tokens": 2},
    "clip_vision_model": SIZES | {"intermediate_size": 48},
    "dinov2_with_registers": SIZES | {"num_register_tokens": 4},
    "siglip_vision_model": SIZES | {"intermediate_size": 48, "image_size": 14},
}


@pytest.fixture
def save(tmp_path):
    """``save(kind, **sizes)``: the folder of a saved model with random weights."""

    def write(kind: str, **sizes: object) -> Path:
        torch.manual_seed(3)
        folder = tmp_path / kind
        AutoModel.from_config(AutoConfig.for_model(kind, **sizes)).save_pretrained(folder)
        return folder

    return write


@pytest.mark.parametrize("tuning", ["lora", "full"])
@pytest.mark.parametrize("kind", FITTING)
def test_another_tower_trains_through_both_phases(main, tiny_config, save, kind, tuning) -> None:
    folder = save(kind, **FITTING[kind])
    status, said = main(vision_encoder=folder, vision_tuning=tuning, max_steps=6, lora_warmup_steps=3)
    assert status == 0, said
    assert "Phase 2" in said
    model = open_model(tiny_config().output.output_dir).model
    assert model.config.image_tokens == 16
    plain = dict(AutoModel.from_pretrained(folder).named_parameters())
    base = {name.replace(".base_layer.", "."): p for name, p in model.vision_encoder.tower_parameters()}
    assert base.keys() == plain.keys()
    moved = {name for name in plain if not torch.equal(base[name], plain[name])}
    reached = {name.removeprefix("tower.") for name, _ in model.vision_encoder.adapter_parameters()}
    assert moved == (reached if tuning == "full" else set())
    if tuning == "lora":
        adapters = dict(model.vision_encoder.adapter_parameters())
        assert adapters and all(p.any() for p in adapters.values())


@pytest.fixture
def clip(tmp_path) -> Path:
    """A whole CLIP as it is on the hub: both halves, and how pictures are prepared."""
    torch.manual_seed(3)
    half = {**SIZES, "intermediate_size": 48}
    text = {**half, "vocab_size": 40, "bos_token_id": 1, "eos_token_id": 2}
    CLIPModel(CLIPConfig(text_config=text, vision_config=half)).save_pretrained(tmp_path / "clip")
    CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}).save_pretrained(
        tmp_path / "clip"
    )
    return tmp_path / "clip"


def test_a_whole_clip_is_one_flag_and_sees_as_it_was_taught_to_the_end(main, tiny_config, clip, tmp_path) -> None:
    status, said = main(vision_encoder=clip, max_steps=4, lora_warmup_steps=2)
    assert status == 0, said
    run = Path(tiny_config().output.output_dir)
    trained = open_model(run)
    half = CLIPModel.from_pretrained(clip).vision_model
    base = {name.replace(".base_layer.", "."): p for name, p in trained.model.vision_encoder.tower_parameters()}
    assert all(torch.equal(base.pop(name), weight) for name, weight in half.named_parameters()) and not base
    export.main(["--checkpoint", str(run), "--output", str(tmp_path / "exported")])
    exported = open_model(tmp_path / "exported")
    picture = torch.randint(0, 256, (40, 60, 3), dtype=torch.uint8).numpy()
    found = [opened.processor.image(Image.fromarray(picture)) for opened in (trained, exported)]
    assert torch.equal(*found)
    for opened in (trained, exported):
        assert opened.model.config.image_mean == pytest.approx(CLIP_MEAN)
        assert opened.processor.image_mean == pytest.approx(CLIP_MEAN)
        assert opened.processor.image_std == pytest.approx(CLIP_STD)


def test_a_run_from_before_goes_on_with_the_normalisation_that_it_began_with(main, tiny_config, clip) -> None:
    """Which was ImageNet's, whatever the encoder; nothing of it stands in its checkpoint."""
    assert main(vision_encoder=clip, max_steps=2, image_normalisation="imagenet")[0] == 0
    again = dict(vision_encoder=clip, max_steps=4, resume="auto")
    status, said = main(**again, image_normalisation="encoder")
    assert status == 2 and "image_normalisation was not set and is encoder" in " ".join(said.split())
    assert main(**again, image_normalisation="imagenet")[0] == 0
    assert open_model(tiny_config().output.output_dir).processor.image_mean == pytest.approx(IMAGENET_MEAN)


@pytest.mark.parametrize(
    "kind, sizes",
    [
        ("resnet", dict(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])),
        ("bert", SIZES | {"intermediate_size": 48, "vocab_size": 40}),
    ],
)
def test_a_model_that_is_no_tower_is_one_message_and_status_2(main, tiny_config, save, kind, sizes) -> None:
    folder = save(kind, **sizes)
    status, said = main(vision_encoder=folder)
    assert status == 2
    assert "Traceback" not in said and said.count("error: ") == 1
    for part in (str(folder), f"a {kind} model", "dinov2_with_registers", "--vision_encoder facebook/dinov2-base"):
        assert part in " ".join(said.split()), part
    assert not Path(tiny_config().output.output_dir, "tokenizer").exists()  # before anything was made
