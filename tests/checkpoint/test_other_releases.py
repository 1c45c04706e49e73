"""Checkpoints name weights as transformers' modules do: which names those are, and what is said where a release has
others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import transformers
from torch import nn

from bitgen.checkpoint.manifest import CheckpointError
from bitgen.model import frozen_tower
from bitgen.model.vision_towers import TIMM, TOWER_KINDS
from bitgen.trained import open_model
from bitgen.trained_vlm import open_vlm
from support.runs import written_run
from support.vlm_runs import train_tiny

NAMES = Path(__file__).parents[1] / "golden" / "tower_names.json"
SIZES = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48)
GATED = {"dinov2": "use_swiglu_ffn", "dinov2_with_registers": "use_swiglu_ffn", "dinov3_vit": "use_gated_mlp"}
# A kind of tower with further settings, by its name in the file. timm names its own weights.
TOWERS = {kind: (kind, {}) for kind in TOWER_KINDS if kind != TIMM}
TOWERS |= {f"{kind}, gated": (kind, {setting: True}) for kind, setting in GATED.items()}


@pytest.mark.parametrize("name", TOWERS)
def test_every_release_names_a_towers_weights_as_files_have_them(name: str) -> None:
    """Where this fails after an update of transformers, checkpoints of before would not open any more: raise the floor
    in requirements.txt or let the checkpoint's reader translate, and only then write the new names into the file."""
    kind, settings = TOWERS[name]
    tower = frozen_tower.FrozenTower({"model_type": kind, **SIZES, "image_size": 28, "patch_size": 14, **settings})
    assert sorted(tower.state_dict()) == json.loads(NAMES.read_text())[name]


@pytest.fixture
def older_release(monkeypatch: pytest.MonkeyPatch):
    """Call it to have transformers name DINOv2's projections as before 5.18."""

    def install() -> None:
        build = frozen_tower._built

        def built(vision_config: dict) -> nn.Module:
            tower = build(vision_config)
            for module in list(tower.modules()):
                for now, then in (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value")):
                    if now in module._modules:
                        projection = module._modules[then] = module._modules.pop(now)
                        module.__dict__[now] = projection  # for `forward`, which this release wrote
            return tower

        monkeypatch.setattr(frozen_tower, "_built", built)
        monkeypatch.setattr("bitgen.checkpoint.format.transformers.__version__", "5.17.0")

    return install


@pytest.mark.parametrize("kind", ["stage 1", "parts"])
def test_a_checkpoint_of_another_release_says_of_which(kind: str, older_release, tmp_path: Path) -> None:
    folder, opened = (written_run(), open_model) if kind == "stage 1" else (train_tiny(tmp_path), open_vlm)
    now = transformers.__version__
    opened(folder)  # under the release that wrote it nothing is said
    older_release()
    with pytest.raises(CheckpointError, match=f"transformers {now}, and 5.17.0 is installed: .* export"):
        opened(folder)


def test_the_release_is_not_blamed_where_it_is_the_same(older_release, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, now = written_run(), transformers.__version__
    older_release()
    monkeypatch.setattr("bitgen.checkpoint.format.transformers.__version__", now)
    with pytest.raises(CheckpointError, match="does not fit") as caught:
        open_model(folder)
    assert "transformers" not in str(caught.value)
