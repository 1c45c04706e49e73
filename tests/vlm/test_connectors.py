"""What all connectors promise: shapes, tokens, a configuration for JSON, and errors that say what to write."""

from __future__ import annotations

import json
import re
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
import torch

from bitgen.vlm.connectors import KINDS, ConnectorConfig, build_connector
from bitgen.vlm.connectors.tac import TAC
from support.connectors import SIZES, SMALL, features_for, small_config, small_connector

# M of one picture and of two, at the sizes of ``support.connectors``: 16 tokens a picture.
TOKENS = {
    "linear": (16, 32),
    "mlp": (16, 32),
    "pixel_shuffle": (4, 8),
    "c_abstractor": (5, 10),
    "resampler": (5, 5),
    "perceiver": (5, 5),
    "tac": (16, 16),
}


def test_every_kind_is_tested_here() -> None:
    assert set(KINDS) == set(TOKENS) == set(SMALL)


@pytest.mark.parametrize("frames", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_a_visual_becomes_the_tokens_that_it_says(kind: str, frames: int) -> None:
    connector = small_connector(kind)
    output = connector(features_for(connector, visuals=3, frames=frames))
    assert connector.tokens(frames) == TOKENS[kind][frames - 1]
    assert output.shape == (3, TOKENS[kind][frames - 1], 32) and output.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_it_says_whether_it_reads_layers_apart(kind: str) -> None:
    connector = small_connector(kind)
    assert type(connector).reads_layers == (kind == "tac")
    assert connector.width == (12 if kind == "tac" else 48)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "tac"])
def test_layers_are_concatenated_on_the_last_axis(kind: str) -> None:
    """Four layers of width 12 are one layer of width 48 that holds them side by side, layer 0 first."""
    connector = small_connector(kind)
    one = small_connector(kind, layers=1, vision_width=48)
    one.load_state_dict(connector.state_dict())
    features = features_for(connector, frames=2)
    joined = torch.cat([features[:, :, layer] for layer in range(4)], dim=-1)[:, :, None]
    torch.testing.assert_close(connector(features), one(joined), rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["linear", "mlp", "pixel_shuffle", "c_abstractor"])
def test_pictures_follow_one_another(kind: str) -> None:
    connector = small_connector(kind)
    features = features_for(connector, frames=2)
    parts = [connector(features[:, frame : frame + 1]) for frame in (0, 1)]
    torch.testing.assert_close(connector(features), torch.cat(parts, dim=1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["resampler", "perceiver", "tac"])
def test_each_picture_counts(kind: str) -> None:
    connector = small_connector(kind)
    features = features_for(connector, frames=2)
    for frame in (0, 1):
        changed = features.clone()
        changed[:, frame] *= -1
        assert (connector(changed) - connector(features)).abs().max() > 1e-4


def test_only_the_perceiver_knows_the_order_of_frames() -> None:
    for kind, knows in (("perceiver", True), ("resampler", False)):
        connector = small_connector(kind)
        features = features_for(connector, frames=2)
        same = torch.allclose(connector(features), connector(features.flip(1)), atol=1e-6)
        assert same != knows


@pytest.mark.parametrize("kind", KINDS)
def test_the_configuration_of_a_built_one_survives_json(kind: str) -> None:
    connector = small_connector(kind)
    text = json.dumps(connector.config.to_dict())
    config = ConnectorConfig.from_dict(json.loads(text))
    assert config == connector.config
    build_connector(config).load_state_dict(connector.state_dict(), strict=True)


def test_a_built_one_has_every_option_written_out() -> None:
    config = build_connector(small_config("perceiver", options={"depth": 1})).config
    assert config.options == {"queries": 64, "depth": 1, "heads": 8, "head_width": 64, "token_std": 0.02}


def test_options_may_come_as_text() -> None:
    assert build_connector(small_config("mlp", options={"depth": "1"})).config.options == {"depth": 1}


def test_a_configuration_does_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        small_config("mlp").kind = "linear"  # type: ignore[misc]


ERRORS: dict[str, tuple[str, dict[str, Any], str]] = {
    "unknown kind": ("mpl", {}, "no connector 'mpl'. Did you mean mlp? Kinds: linear, mlp, "),
    "no kind": (3, {}, "kind is 3; write text"),  # type: ignore[dict-item]
    "unknown option": ("mlp", {"options": {"depht": 2}}, "mlp takes no option 'depht'. Did you mean depth? It takes"),
    "another's option": ("mlp", {"options": {"queries": 4}}, "takes no option 'queries'. It takes depth."),
    "option of none": ("linear", {"options": {"depth": 4}}, "linear takes no option 'depth'. It takes none."),
    "options as a list": ("mlp", {"options": ["depth"]}, "options are a list; write a mapping"),
    "option of a wrong type": ("mlp", {"options": {"depth": "two"}}, "its depth is 'two'; write a whole number"),
    "option out of range": ("mlp", {"options": {"depth": 0}}, "its depth is 0; it must be at least 1"),
    "dropout of one": ("tac", {"options": {"dropout": 1.0}}, "its dropout is 1.0; it must be from 0 to below 1"),
    "huge option": ("mlp", {"options": {"depth": 10**6}}, "its depth is 1000000; it must be at most 1,000"),
    "no width": ("mlp", {"vision_width": 0}, "vision_width is 0; it must be at least 1"),
    "resampler's heads": ("resampler", {"options": {"heads": 5}}, "heads is 5, which does not divide the language"),
    "tac's heads": ("tac", {"options": {"heads": 5}}, "heads is 5, which does not divide the vision width 12; write"),
    "tac's frames": ("tac", {"frames": 8}, "at most 2 pictures of a visual, and frames is 8; write frames: 2"),
    "c_abstractor's tokens": ("c_abstractor", {"tokens": 15}, "tokens of a picture is 15; write another kind"),
    "c_abstractor's queries": ("c_abstractor", {"options": {"queries": 63}}, "queries is 63; write 64 or 144, say"),
    "pixel_shuffle's tokens": ("pixel_shuffle", {"tokens": 15}, "tokens of a picture is 15; write another kind"),
    "pixel_shuffle's factor": (
        "pixel_shuffle",
        {"options": {"factor": 3}},
        "factor is 3, which does not divide the side",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_what_does_not_fit_is_an_error_of_one_line(case: str) -> None:
    kind, changes, words = ERRORS[case]
    with pytest.raises(ValueError, match=re.escape(words)) as error:
        build_connector(small_config(kind, **changes))
    assert "\n" not in str(error.value)


def test_a_name_from_outside_cannot_steer_a_terminal() -> None:
    with pytest.raises(ValueError) as error:
        build_connector(small_config("\x1b[2J"))
    assert "\x1b" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": None}, "has no kind; add it"),
        ({"stride": 2}, "no entry 'stride'. It takes kind, vision_width"),
        ({"tokens": "many"}, "tokens is 'many'; write a whole number"),
    ],
)
def test_a_broken_record_of_a_configuration_is_an_error(change: dict[str, Any], words: str) -> None:
    content = small_config("mlp").to_dict() | change
    content = {name: value for name, value in content.items() if value is not None}
    with pytest.raises(ValueError, match=re.escape(words)):
        ConnectorConfig.from_dict(content)
    with pytest.raises(ValueError, match="is a list; write a mapping"):
        ConnectorConfig.from_dict([])  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_more_pictures_than_it_was_built_for_are_an_error(kind: str) -> None:
    connector = small_connector(kind)
    for frames in (0, 3):
        with pytest.raises(ValueError, match=f"of 1 to 2 pictures, and one has {frames}; take fewer") as error:
            connector.tokens(frames)
        assert str(error.value).endswith(f"build it with frames: {max(frames, 1)} (setting num_frames).")
        with pytest.raises(ValueError, match=f"of 1 to 2 pictures, and one has {frames}; take fewer"):
            connector(features_for(connector, frames=frames))


@pytest.mark.parametrize("kind", KINDS)
def test_features_of_another_encoder_are_an_error(kind: str) -> None:
    connector = small_connector(kind)
    features = features_for(connector)
    for wrong in (features[..., :-1], features[:, :, :-1], features[:, :, :, :-1], features[:, 0]):
        with pytest.raises(ValueError, match=re.escape("that end in [4, 16, 12]; these are")):
            connector(wrong)


def test_a_prior_of_another_number_of_tokens_is_an_error() -> None:
    tac = small_connector("tac")
    assert isinstance(tac, TAC)
    with pytest.raises(ValueError, match=re.escape("[2, 9, 12] and the current image's [2, 16, 12]; encode both")):
        tac.fuse_images(torch.zeros(2, 16, 12), torch.zeros(2, 9, 12))


@pytest.mark.parametrize(
    ("width", "language_heads", "heads"),
    [(768, 32, 32), (768, 28, 24), (768, 14, 12), (768, 9, 8), (12, 5, 4), (7, 5, 1)],
)
def test_tac_takes_the_largest_divisor_not_above_the_language_models_heads(
    width: int, language_heads: int, heads: int
) -> None:
    with torch.device("meta"):
        tac = small_connector("tac", vision_width=width, language_heads=language_heads)
    assert tac.get_submodule("cross_attention").num_heads == heads


@pytest.mark.parametrize("layers", [1, 2, 3, 4, 24, 27])
def test_tac_fuses_any_number_of_layers(layers: int) -> None:
    tac = small_connector("tac", layers=layers)
    widths = [
        module.out_channels for module in tac.get_submodule("layer_fusion") if isinstance(module, torch.nn.Conv2d)
    ]
    assert widths == [max(1, layers // 2), max(1, layers // 4), 1]
    assert tac(features_for(tac)).shape == (3, SIZES["tokens"], 32)
