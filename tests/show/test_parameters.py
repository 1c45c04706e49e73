"""Parameter counts: the real stage-1 shapes, built on the meta device, and the table in LORA_ARCHITECTURE.md."""

import json
from pathlib import Path

import pytest
import torch

from bitgen.config import Config, load_config
from bitgen.model.configuration_bitgen import BitGenConfig
from bitgen.model.factory import DINOV2_BASE
from bitgen.model.modeling_bitgen import BitGenModel
from bitgen.show.parameters import (
    END_MARKER,
    START_MARKER,
    ComponentCount,
    count_parameters,
    table_in_document,
)
from bitgen.stages import Group, Phase, Stage
from bitgen.tasks.stage1 import groups as groups_of_stage1

REPOSITORY = Path(__file__).resolve().parents[2]
TINY_VISION = {
    "model_type": "dinov2",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "patch_size": 14,
    "image_size": 28,
}
TINY = {"image_size": 28, "vocab_size": 40, "embed_dim": 8, "vision_embed_dim": 8, "num_layers": 1, "num_heads": 2}


def on_meta(**settings) -> BitGenModel:
    with torch.device("meta"):
        return BitGenModel(BitGenConfig(**settings))


@pytest.fixture(scope="module")
def stage1() -> BitGenModel:
    return on_meta(vision_config=DINOV2_BASE)


def test_stage1_has_the_designed_sizes(stage1):
    parts = count_parameters(stage1).components
    assert parts["vision_base"] == ComponentCount(86_580_480, 0, 0)
    assert parts["lora"] == ComponentCount(589_824, 0, 589_824)
    assert parts["compressor"] == ComponentCount(344_832, 344_832, 344_832)
    assert parts["embeddings"].total == 50_257 * 128 + 256 * 128


def test_stage1_stays_below_fifty_million_trained_parameters(stage1):
    total = count_parameters(stage1).total
    assert total.phase2 < 50_000_000
    assert total.phase2 - total.phase1 == 589_824


def test_every_parameter_is_counted_once(stage1):
    table = count_parameters(stage1)
    assert table.total.total == sum(p.numel() for p in stage1.parameters())
    assert sum(c.total for c in table.components.values()) == table.total.total


@pytest.mark.parametrize("positions, rows", [("learned", 256), ("rope", 0)])
@pytest.mark.parametrize("feed_forward, matrices", [("gelu", 2), ("swiglu", 3)])
def test_the_text_stacks_options_are_counted(positions, rows, feed_forward, matrices):
    sizes = {**TINY, "ffn_dim": 16}
    model = on_meta(feature_dim=20, feature_tokens=4, positions=positions, feed_forward=feed_forward, **sizes)
    parts = count_parameters(model).components
    assert parts["embeddings"].total == (40 + rows) * 8
    attention, norms, biases = 4 * 8 * 8 + 8, 3 * 2 * 8, (matrices - 1) * 16 + 8
    assert parts["decoder"].total == attention + norms + matrices * 8 * 16 + biases
    assert sum(part.total for part in parts.values()) == sum(p.numel() for p in model.parameters())


def test_counts_do_not_depend_on_the_phase_that_the_model_is_in():
    model = on_meta(vision_config=TINY_VISION, **TINY)
    before = count_parameters(model)
    model.set_adapters_trainable(True)
    after = count_parameters(model)
    assert after == before
    # and they are what an optimizer would hold in either phase
    assert after.total.phase2 == sum(p.numel() for p in model.parameters() if p.requires_grad)
    model.set_adapters_trainable(False)
    assert before.total.phase1 == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_full_tuning_trains_the_tower_in_phase_two_only():
    model = on_meta(vision_config=TINY_VISION, vision_tuning="full", **TINY)
    base = count_parameters(model).components["vision_base"]
    assert base.phase1 == 0
    assert 0 < base.phase2 <= base.total
    assert "lora" not in count_parameters(model).components


NEW = {"decoder", "recall"}


@pytest.mark.parametrize(
    ("groups", "first", "second"),
    [
        (lambda: groups_of_stage1(Config(), 5), NEW, NEW | {"lora"}),
        (lambda: groups_of_stage1(Config(), None), NEW, NEW),
        (lambda: groups_of_stage1(Config(), 0), NEW | {"lora"}, NEW | {"lora"}),
        (lambda: (Group("new", ("recall/*",), 1e-3),), {"recall"}, {"recall"}),
    ],
    ids=["two phases", "text alone", "stage 2", "recall"],
)
def test_what_is_counted_as_trained_is_what_the_run_trains(groups, first, second):
    """And not what stage 1 would train of such a model."""
    model = on_meta(vision_config=TINY_VISION, recall_tokens=4, **TINY)
    starts = sorted({group.start for group in groups()})
    stage = Stage("it", groups(), 9, 9, phases=tuple(Phase(start) for start in starts))
    parts = count_parameters(model, stage=stage).components
    parts = {name: parts[name] for name in ("vision_base", "lora", "decoder", "recall")}
    assert {name for name, count in parts.items() if count.phase1} == first
    assert {name for name, count in parts.items() if count.phase2} == second
    assert all(count.phase2 in (0, count.total) for count in parts.values())


def test_features_have_no_tower():
    table = count_parameters(on_meta(feature_dim=20, feature_tokens=4, **TINY))
    assert not {"vision_base", "lora"} & set(table.components)
    assert table.total.phase1 == table.total.phase2 == table.total.total


def test_parameters_outside_the_model_are_added():
    model = on_meta(feature_dim=20, feature_tokens=4, **TINY)
    plain = count_parameters(model)
    table = count_parameters(model, {"temperature": [torch.nn.Parameter(torch.zeros(()))]})
    assert table.components["temperature"] == ComponentCount(1, 1, 1)
    assert table.total.phase1 == plain.total.phase1 + 1


def test_text_lists_each_component_and_the_total(stage1):
    text = count_parameters(stage1).to_text()
    for words in ("vision encoder (pretrained)", "LoRA adapters", "86,580,480", "589,824", "total"):
        assert words in text
    assert len({len(line) for line in text.splitlines()[1:]}) == 1, "columns are not aligned"


def test_table_is_written_to_the_run_folder(stage1, tmp_path):
    table = count_parameters(stage1)
    table.write(tmp_path / "run")
    counts = json.loads((tmp_path / "run" / "parameters.json").read_text())
    assert counts["lora"] == {"total": 589_824, "phase1": 0, "phase2": 589_824}
    assert counts["total"]["total"] == table.total.total
    assert (tmp_path / "run" / "parameters.txt").read_text().strip() == table.to_text().strip()


def test_unwritable_run_folder_is_named(stage1, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"--output_dir .*file.run"):
        count_parameters(stage1).write(tmp_path / "file" / "run")


@pytest.mark.parametrize(
    "document", ["", START_MARKER, f"{END_MARKER}{START_MARKER}", f"{START_MARKER}{END_MARKER}" * 2]
)
def test_document_without_one_pair_of_markers_is_refused(document):
    with pytest.raises(ValueError, match="expected one parameter table"):
        table_in_document(document)


def test_stage1_yaml_asks_for_the_shapes_that_are_counted(stage1):
    asked = load_config(REPOSITORY / "configs" / "stage1.yaml").flat()
    built = stage1.config.to_dict()
    shapes = ("embed_dim", "num_layers", "num_heads", "ffn_dim", "vision_embed_dim", "compressor_dim", "vocab_size")
    shapes += ("max_seq_len", "fusion", "image_pooling", "use_memory", "memory_size", "memory_dim", "lora_rank")
    assert {name: asked[name] for name in shapes} == {name: built[name] for name in shapes}
    assert (asked["vision_encoder"], asked["vision_tuning"]) == ("facebook/dinov2-base", "lora")


def test_documented_table_is_true(stage1):
    document = (REPOSITORY / "LORA_ARCHITECTURE.md").read_text(encoding="utf-8")
    expected = count_parameters(stage1).to_markdown()
    assert table_in_document(document) == expected, f"put this between the markers:\n{expected}"
