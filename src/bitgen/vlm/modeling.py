"""The whole model: pictures through encoder and connector into the places that a text keeps for them.

Shapes: B rows, T tokens, H width of the language model; V visuals of F pictures each, K pictures in all; L layers of
the encoder, N patches, C channels; a visual becomes M tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bitgen.model.configuration_bitgen import BitGenConfig
from bitgen.model.likelihood import IGNORED
from bitgen.model.parameter_roles import FUSION
from bitgen.stages import Role
from bitgen.vlm.adapters import is_adapted
from bitgen.vlm.connectors import Connector
from bitgen.vlm.language import supervised_logits
from bitgen.vlm.reach import reached_parameters
from bitgen.vlm.splice import splice
from bitgen.vlm.vision import StoredFeatures, VisionTower

CONNECTOR, ADAPTER, VISION, LANGUAGE = "connector", "adapter", "vision", "language"
MATRIX, OTHER = "matrix", "other"  # maps; and tables, convolutions and vectors
# Kinds of an adapter's parameters, by what their names hold (peft's).
ADAPTER_KINDS = {"lora_A": "lora_a", "lora_B": "lora_b", "lora_magnitude_vector": "magnitude"}
_PART_OF = {"connector": CONNECTOR, "tower": VISION, "language": LANGUAGE}
BITGEN = BitGenConfig.model_type
_ASLEEP = (
    *("vision_encoder.", "compressor.", "compressor_convolutions.", "image_pooling.", "image_projection."),
    *("text_projection.", "itm_head.", "recall.", "memory.gpm."),
)


def _adapter_kind(name: str) -> str | None:
    return next((kind for mark, kind in ADAPTER_KINDS.items() if mark in name), None)


class Supervised(NamedTuple):
    """``logits [n, vocabulary]`` of the positions whose next token is supervised, and those ``targets [n]``."""

    logits: Tensor
    targets: Tensor


class VisionLanguageModel(nn.Module):
    """Encoder, connector and causal language model.

    Args:
        tower: gives the connector's features; None: there is no connector.
        connector: None: a language model alone.
        language: a causal language model of transformers, perhaps with adapters in it.
        own_parts: parts beside connector and adapters whose weights are this model's own, because a run trained them or
            drew them at random: ``vision``, ``language``. The others are whatever the names in the configuration stand
            for, and no checkpoint holds them.
    """

    def __init__(
        self,
        tower: VisionTower | StoredFeatures | None,
        connector: Connector | None,
        language: Any,
        own_parts: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__()
        self.tower, self.connector, self.language, self.own_parts = tower, connector, language, own_parts

    @property
    def device(self) -> torch.device:
        """Where its parameters are."""
        return next(self.parameters()).device

    # ---- forward ----

    def forward(self, inputs: Mapping[str, Tensor]) -> Supervised:
        """Next-token logits where ``labels`` ask for them.

        Args:
            inputs: ``input_ids``, ``labels``, ``attention_mask`` ``[B, T]`` (-200 for each token of a visual; -100 for
                what is not supervised), and of the visuals, in reading order, ``pictures [K, 3, S, S]`` or ``features
                [K, N, C]`` or ``[K, L, N, C]``, and ``frames [V]``. Packed rows have ``position_ids`` and no mask.
        """
        embeds = self.embed(inputs)
        targets = inputs["labels"][:, 1:]
        keep = nn.functional.pad(targets != IGNORED, (0, 1))  # a position's label is the token after it
        logits = supervised_logits(
            self.language, embeds, inputs.get("attention_mask"), keep, position_ids=inputs.get("position_ids")
        )
        return Supervised(logits, targets[keep[:, :-1]])

    def embed(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """``[B, T, H]``: the embeddings of the text, and the visuals' tokens in their places.

        Raises:
            ValueError: the text keeps another number of places than the visuals fill, or the visuals' tokens have
                another width.
        """
        ids = inputs["input_ids"]
        embeds = self.language.get_input_embeddings()(ids.clamp(min=0))
        if self.connector is None:
            return embeds
        tokens = self.visual_tokens(inputs)
        if tokens is None:
            # On several processes every rank has to run what trains of it, whatever its batch holds.
            return embeds + 0.0 * self._without_a_picture().to(embeds.dtype) if self.training else embeds
        return splice(embeds, ids, tokens)

    def visual_tokens(self, inputs: Mapping[str, Tensor]) -> Tensor | None:
        """``[sum of M, H]``: the tokens of all visuals in their order; None: there is none."""
        assert self.connector is not None
        frames = inputs["frames"].tolist() if "frames" in inputs else []
        if not frames:
            return None
        features = self.features(inputs)
        if len(set(frames)) == 1:  # the usual batch, without a copy of what the encoder gave
            return self.connector(features.unflatten(0, (len(frames), frames[0]))).flatten(0, 1)
        starts = [sum(frames[:number]) for number in range(len(frames))]
        done: dict[int, Tensor] = {}
        for count in sorted(set(frames)):  # visuals of as many pictures go through the connector together
            which = [number for number, frame in enumerate(frames) if frame == count]
            rows = torch.tensor([starts[number] + place for number in which for place in range(count)])
            pictures = features.index_select(0, rows.to(features.device)).unflatten(0, (len(which), count))
            done.update(zip(which, self.connector(pictures), strict=True))
        return torch.cat([done[number] for number in range(len(frames))])

    def features(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """``[K, L, N, C]`` of all pictures."""
        assert self.tower is not None
        given = inputs.get("features")
        if given is None:
            return self.tower(inputs["pictures"])
        parameter = next(self.connector.parameters(), None) if self.connector is not None else None
        if parameter is not None:  # a cache may keep half precision for a run in float32
            given = given.to(parameter.dtype)
        return given if given.dim() == 4 else given.unsqueeze(1)

    def _without_a_picture(self) -> Tensor:
        """A number that every parameter of connector and encoder has a part in, those that train at least."""
        assert self.connector is not None and self.tower is not None
        config = self.connector.config
        like = next(self.connector.parameters())
        if any(parameter.requires_grad for parameter in self.tower.parameters()):
            side = self.tower.spec.image_size
            assert side is not None
            features = self.tower(torch.zeros(1, 3, side, side, device=like.device))
        else:
            # Ones, not zeros: a connector may divide by the norm of what it sees.
            shape = (1, config.layers, config.tokens, config.vision_width)
            features = torch.ones(shape, dtype=like.dtype, device=like.device)
        return self.connector(features.unsqueeze(0)).sum()

    # ---- what its parameters are ----

    def role_of(self, name: str, parameter: nn.Parameter) -> Role:
        """The role of a parameter by its name here."""
        part = _PART_OF[name.split(".", 1)[0]]
        reached = name in self._seeing if part == VISION else not self._sleeps(name)
        kind = _adapter_kind(name)
        if kind is not None and not self._sleeps(name):
            return Role(ADAPTER if part == LANGUAGE else part, kind, decays=kind != "magnitude", reached=reached)
        is_table = "embed" in name or (part == LANGUAGE and parameter.shape[:1] == (self.vocabulary,))
        kind = MATRIX if parameter.dim() == 2 and not is_table else OTHER
        return Role(part, kind, decays=parameter.dim() >= 2, reached=reached)

    def _sleeps(self, name: str) -> bool:
        """Whether a weight is of a part of BitGen as the language model that text alone never runs, such as its own
        vision tower, whose adapters are none of this model's."""
        top, _, inner = name.partition(".")
        if _PART_OF[top] != LANGUAGE or self.language.config.model_type != BITGEN:
            return False
        return inner.startswith(_ASLEEP) or f".{FUSION}." in f".{inner}"

    @cached_property
    def _seeing(self) -> frozenset[str]:
        """Names of the encoder's parameters that can learn: its features depend on them, and they are adapters where it
        has some, else its own weights where these are this model's own."""
        named = [name for name, _ in self.tower.named_parameters()] if self.tower is not None else []
        adapters = {name for name in named if ".lora_" in name}
        if not isinstance(self.tower, VisionTower) or not (adapters or VISION in self.own_parts):
            return frozenset()
        return frozenset(f"tower.{name}" for name in reached_parameters(self.tower) & (adapters or set(named)))

    @property
    def vocabulary(self) -> int:
        """Rows of the language model's embedding."""
        return self.language.get_input_embeddings().weight.shape[0]

    def owns(self, name: str) -> bool:
        """Whether a weight, by its name here, is this model's own, so that checkpoints hold it."""
        part = _PART_OF[name.split(".", 1)[0]]
        adapts = _adapter_kind(name) is not None and not self._sleeps(name)
        return part == CONNECTOR or part in self.own_parts or adapts

    def part_of(self, name: str) -> str:
        """The part that a weight belongs to, by its name here."""
        part = _PART_OF[name.split(".", 1)[0]]
        return ADAPTER if part == LANGUAGE and _adapter_kind(name) is not None and not self._sleeps(name) else part

    def load_own(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy weights in by their names, which must all be there. Raises ``KeyError`` for one that is not."""
        state = self.state_dict()
        with torch.no_grad():
            for name, tensor in tensors.items():
                state[name].copy_(tensor)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """What :meth:`owns` says alone: encoder and language model that no run changes are not copied."""
        state, prefix = super().state_dict(*args, **kwargs), kwargs.get("prefix", "")
        for name in [name for name in state if not self.owns(name.removeprefix(prefix))]:
            del state[name]
        return state

    def train(self, mode: bool = True) -> VisionLanguageModel:
        """What is frozen drops nothing out; where adapters alone train, they do."""
        super().train(mode)
        for part in (self.tower, self.connector, self.language):
            if part is None:
                continue
            learning = {_adapter_kind(name) for name, parameter in part.named_parameters() if parameter.requires_grad}
            if None in learning:
                continue
            part.eval()
            for name, module in part.named_modules():
                # LoRA's dropout goes by its own flag, DoRA's by that of its layer. And a block's own flag switches the
                # recomputing of its activations on; what is in it stays in eval mode.
                adapts = is_adapted(module) or "lora_dropout" in name
                if (adapts and learning) or getattr(module, "gradient_checkpointing", False):
                    module.training = mode
        return self
