"""A recipe's stage, its export, and a stage that begins from the export."""

from __future__ import annotations

import torch
from PIL import Image

from bitgen.commands import ask, export, train_vlm
from bitgen.trained_vlm import open_vlm
from support.tiny_vlms import logits_of

SETTINGS = dict(
    vision_encoder="random",
    image_size=28,
    vision_hidden_size=32,
    vision_num_layers=2,
    vision_num_heads=2,
    select_layer=-1,
    connector="mlp",
    language_model="random",
    language_hidden_size=32,
    language_num_layers=2,
    language_num_heads=4,
    language_vocab_size=300,
    language_positions=512,
    template="plain",
    max_length=200,
    train_data="scenes",
    scenes_train=64,
    caption_sampling="one",
    batch_size=4,
    max_steps=3,
    trains="connector,adapter",
    adapter="lora",
    adapter_rank=2,
    learning_rate=0.01,
    num_workers=0,
    device="cpu",
    progress=False,
)


def trained(folder, **settings):
    flags = {**SETTINGS, **settings, "output_dir": folder / "c", "log_dir": folder / "l"}
    assert train_vlm.main([part for name, value in flags.items() for part in (f"--{name}", str(value))]) == 0
    return folder / "c"


def test_a_run_its_export_and_its_checkpoint_are_one_model(tmp_path, capsys):
    run = trained(tmp_path / "a")
    export.main(["--checkpoint", str(run), "--output", str(tmp_path / "x")])
    before = logits_of(open_vlm(run))
    assert torch.equal(logits_of(open_vlm(tmp_path / "x")), before)
    export.main(["--checkpoint", str(run), "--output", str(tmp_path / "m"), "--merge_lora", "True"])
    torch.testing.assert_close(logits_of(open_vlm(tmp_path / "m")), before, atol=1e-5, rtol=1e-5)
    Image.effect_noise((40, 40), 90).convert("RGB").save(tmp_path / "photo.png")
    capsys.readouterr()
    said = []
    for model in (run, tmp_path / "x", next(run.glob("step-*"))):
        ask.main([str(tmp_path / "photo.png"), "--model", str(model), "--question", "?", "--max_new_tokens", "4"])
        said.append(capsys.readouterr().out)
    assert len(set(said)) == 1
    # A next stage begins where the export ends, merged or not.
    for start in ("x", "m"):
        more = {"learning_rate": 1e-30, "max_steps": 1, "init_from": tmp_path / start}
        after = logits_of(open_vlm(trained(tmp_path / f"after {start}", **more)))
        torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)
