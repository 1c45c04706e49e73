"""Any vision encoder as patch features of the layers that were asked for: pictures [K, 3, S, S] to [K, L, N, C]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

import torch
from torch import nn

from bitgen.machine.files import digest
from bitgen.model.factory import initialise_random_tower, random_vision_config
from bitgen.model.frozen_tower import FrozenTower
from bitgen.model.image_settings import ImageSettings, check_image_settings
from bitgen.model.pretrained_tower import load_pretrained_weights, pretrained_images, pretrained_vision_config
from bitgen.model.processing_bitgen import MAX_IMAGE_PIXELS, BitGenProcessor
from bitgen.model.vision_towers import check_vision_config, tower_kind
from bitgen.vlm.library_attention import use_fast_attention

SelectLayer = int | Sequence[int] | str
ALL, RANDOM, FEATURES = "all", "random", "features"
# The key of a stored configuration under which lies what is ours: how pictures are prepared, and where it is from.
OURS = "bitgen"
# Of block outputs: the encoder's final LayerNorm is not applied, as LLaVA and Libra have it.
RAW = "raw"
# Sizes of the built-in tower, where none are given: hidden size, layers, heads, patch side, image side.
_RANDOM_SIZES = (192, 4, 3, 14, 224)


@dataclass(frozen=True)
class VisionSpec:
    """What a vision encoder takes and gives.

    Args:
        image_size: side S of the square in pixels; None of features computed earlier, as everything about pictures.
        tokens: patches N of a picture, without prefix tokens; counted.
        width: C.
        layers: blocks that may be selected, 1 to this.
        prefix_tokens: tokens before the patches, CLS and registers; they are dropped.
        mean, std, resample, fit, shortest: as in :class:`~bitgen.model.image_settings.ImageSettings`.
        features: ``raw``: outputs of blocks, before the final norm.
        source, revision: the folder or hub id of the weights, or ``random``.
        weights: SHA-256 of the pretrained weights; None: never loaded.
    """

    image_size: int | None
    tokens: int
    width: int
    layers: int
    prefix_tokens: int = 0
    mean: tuple[float, ...] = ImageSettings().mean
    std: tuple[float, ...] = ImageSettings().std
    resample: str = ImageSettings().resample
    fit: str = ImageSettings().fit
    shortest: int | None = None
    features: str = RAW
    source: str | None = None
    revision: str | None = None
    weights: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


def layers_of(select_layer: SelectLayer, available: int) -> tuple[int, ...]:
    """The blocks that ``select_layer`` means, from 1 to ``available``, in the order asked for.

    Args:
        select_layer: an index of hidden states as LLaVA counts them (-1 the last block's output, -2 that of the one
            before, 1 the first's), several of them, or ``all``.

    Raises:
        ValueError: a layer that there is not, or one named twice.
    """
    if select_layer == ALL:
        return tuple(range(1, available + 1))
    asked = [select_layer] if isinstance(select_layer, int) else select_layer
    is_list = isinstance(asked, (list, tuple)) and asked
    if not is_list or not all(isinstance(n, int) and not isinstance(n, bool) for n in asked):
        _refuse(select_layer, available)
    found = tuple(layer if layer > 0 else available + 1 + int(layer) for layer in asked if isinstance(layer, int))
    if len(set(found)) < len(found) or not all(1 <= layer <= available for layer in found):
        _refuse(select_layer, available)
    return found


def _refuse(select_layer: object, available: int) -> NoReturn:
    raise ValueError(
        f"select_layer is {select_layer!r}; this encoder has layers 1 to {available}, or -{available} to -1. Write one "
        "of them, a list of different ones, or all."
    )


class VisionTower(FrozenTower):
    """A frozen encoder whose block outputs are read. Always in eval mode; no gradient unless adapters in it train.

    Its blocks after the last one asked for are not computed. LoRA goes into ``tower`` by full names
    (:func:`bitgen.model.frozen_tower.resolve_lora_targets`).

    Args:
        vision_config: the encoder's configuration, and what :attr:`vision_config` added to it.
        select_layer: see :func:`layers_of`.

    Raises:
        ValueError: no such layer, an encoder of an unknown kind, or one that cannot look at such pictures.
    """

    def __init__(self, vision_config: dict[str, Any], select_layer: SelectLayer) -> None:
        own, ours = _split(vision_config)
        check_vision_config(own)
        super().__init__(own)
        use_fast_attention(self.tower)
        self.select_layer = select_layer
        self._config = own
        # In a tuple: they are modules of the tower already.
        self._blocks = (_blocks(self.tower),)
        self.layers = layers_of(select_layer, len(self._blocks[0]))
        images = _images(own, ours)
        assert images.size is not None
        self.spec = VisionSpec(
            image_size=images.size,
            tokens=_count(own, images.size) - self.prefix_tokens,
            width=own["hidden_size"],
            layers=len(self._blocks[0]),
            prefix_tokens=self.prefix_tokens,
            mean=tuple(images.mean),
            std=tuple(images.std),
            resample=images.resample,
            fit=images.fit,
            shortest=images.shortest,
            source=ours.get("source"),
            revision=ours.get("revision"),
            weights=ours.get("weights"),
        )

    @property
    def vision_config(self) -> dict[str, Any]:
        """What :func:`build_tower` makes the same tower of, without weights; plain values. Without the key ``bitgen``
        it is the encoder's own configuration, as transformers has it."""
        return {**self._config, OURS: self.spec.to_dict()}

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """``[K, 3, S, S]``, normalised -> the selected blocks' outputs of the patches, ``[K, L, N, C]``."""
        with torch.set_grad_enabled(self.trainable and torch.is_grad_enabled()):
            outputs = self._outputs(pixel_values)
            return torch.stack([outputs[layer][:, self.prefix_tokens :] for layer in self.layers], dim=1)

    def _outputs(self, pixel_values: torch.Tensor) -> dict[int, torch.Tensor]:
        """The wanted blocks' outputs by layer. Hooks keep these alone; ``output_hidden_states`` would keep them all."""
        blocks, last = self._blocks[0], max(self.layers)
        outputs: dict[int, torch.Tensor] = {}

        def keep(layer: int) -> Any:
            def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
                outputs[layer] = output[0] if isinstance(output, tuple) else output

            return hook

        def stop(_module: nn.Module, _inputs: Any) -> NoReturn:
            raise _Enough

        handles = [blocks[layer - 1].register_forward_hook(keep(layer)) for layer in self.layers]
        if last < len(blocks):
            handles.append(blocks[last].register_forward_pre_hook(stop))
        try:
            self.tower(pixel_values, **self.call_options())
        except _Enough:
            pass
        finally:
            for handle in handles:
                handle.remove()
        return outputs


class _Enough(Exception):
    """The last wanted block is done."""


class StoredFeatures(nn.Module):
    """Features computed earlier in place of a tower: ``[K, N, C]`` (or ``[K, C]``, ``[K, L, N, C]``) as they come."""

    def __init__(self, tokens: int, width: int, layers: int = 1) -> None:
        super().__init__()
        self.select_layer: SelectLayer = ALL
        self.layers = tuple(range(1, layers + 1))
        self.spec = VisionSpec(None, tokens, width, layers, features=FEATURES, source=FEATURES)

    @property
    def vision_config(self) -> dict[str, Any]:
        """As that of :class:`VisionTower`."""
        spec = self.spec
        return {
            "model_type": FEATURES,
            "feature_tokens": spec.tokens,
            "feature_dim": spec.width,
            "feature_layers": spec.layers,
        }

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """``[K, L, N, C]``. Raises ``ValueError`` for features of another shape."""
        expected = (self.spec.layers, self.spec.tokens, self.spec.width)
        if features.dim() == 2:
            features = features[:, None]
        if features.dim() == 3:
            features = features[:, None]
        if tuple(features.shape[1:]) != expected:
            raise ValueError(
                f"features of a picture are {tuple(features.shape[1:])} (layers, tokens, width), and {expected} were "
                "expected: compute them with the encoder that this model was made for."
            )
        return features


def build_tower(vision_config: dict[str, Any], select_layer: SelectLayer) -> VisionTower | StoredFeatures:
    """The tower of a configuration, with random weights; see :class:`VisionTower` for the errors."""
    if vision_config.get("model_type") == FEATURES:
        sizes: list[Any] = [vision_config.get(name) for name in ("feature_tokens", "feature_dim")]
        sizes.append(vision_config.get("feature_layers", 1))
        if not all(isinstance(size, int) and size > 0 for size in sizes):
            raise ValueError(
                "features computed earlier: write feature_tokens (vectors of a picture) and feature_dim (their width) "
                f"as numbers, and feature_layers where there are several; they are {sizes}."
            )
        return StoredFeatures(*sizes)
    return VisionTower(vision_config, select_layer)


def open_tower(
    source: str,
    select_layer: SelectLayer,
    revision: str | None = None,
    image_size: int | None = None,
    random_config: dict[str, Any] | None = None,
) -> VisionTower:
    """A tower with its pretrained weights.

    Args:
        source: a hub id or folder, or ``random``: the built-in tower, for trying things out.
        revision: commit or tag of the hub id.
        image_size: side of the square, where it is to be another than the encoder's image processor has.
        random_config: the configuration of ``random``.

    Raises:
        ValueError: it cannot be loaded, is of an unknown kind, or has no such layer; the message says what to do.
    """
    if source == RANDOM:
        sizes = (*_RANDOM_SIZES[:-1], image_size or _RANDOM_SIZES[-1])
        ours: dict[str, Any] = {"source": RANDOM, "image_size": image_size}
        tower = VisionTower({**(random_config or random_vision_config(*sizes)), OURS: ours}, select_layer)
        initialise_random_tower(tower)
    else:
        vision_config = pretrained_vision_config(source, revision)
        images = pretrained_images(source, vision_config, revision)
        ours = {"source": source, "revision": revision}
        ours |= {"image_size" if name == "size" else name: value for name, value in images._asdict().items()}
        if image_size is not None:
            # The margin that the crop cuts off keeps its share.
            scale = image_size / (images.size or vision_config["image_size"])
            shortest = None if images.shortest is None else round(images.shortest * scale)
            ours |= {"image_size": image_size, "shortest": shortest}
        tower = VisionTower({**vision_config, OURS: ours}, select_layer)
        load_pretrained_weights(tower, source, revision)
    weights = digest(sorted(tower.tower_parameters()))
    tower.spec = VisionSpec(**{**asdict(tower.spec), "weights": weights})
    return tower


def image_processor(spec: VisionSpec, max_image_pixels: int = MAX_IMAGE_PIXELS) -> BitGenProcessor:
    """What prepares pictures of any size for an encoder: ``image_processor(spec).images([...])`` is
    ``[K, 3, S, S]``, by the same decoding as everywhere.

    Raises:
        ValueError: the features are computed earlier, and no picture is looked at.
    """
    if spec.image_size is None:
        raise ValueError("features computed earlier take no pictures: pass the features")
    return BitGenProcessor(
        None,
        spec.image_size,
        image_mean=spec.mean,
        image_std=spec.std,
        max_image_pixels=max_image_pixels,
        image_resample=spec.resample,
        image_fit=spec.fit,
        image_shortest=spec.shortest,
    )


# ---------------------------------------------------------------- what an encoder is like


def _split(vision_config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The encoder's own configuration, and ours."""
    own = {name: value for name, value in vision_config.items() if name != OURS}
    return own, dict(vision_config.get(OURS) or {})


def _images(own: dict[str, Any], ours: dict[str, Any]) -> ImageSettings:
    """How pictures are prepared: as stored, else as is usual for the kind, at the size of its position table."""
    usual = tower_kind(own).images
    stored = {name: ours[name] for name in ("mean", "std", "resample", "fit", "shortest") if name in ours}
    found = usual._replace(size=ours.get("image_size") or own["image_size"], **stored)
    check_image_settings(*found[1:])
    return found


def _blocks(tower: nn.Module) -> Any:
    """The encoder's blocks: the outermost list of as many modules, all alike, as the configuration has layers."""
    count: Any = tower.config
    count = count.num_hidden_layers
    for module in tower.modules():
        if isinstance(module, (nn.ModuleList, nn.Sequential)) and len(module) == count:
            if len({type(block) for block in module}) == 1:
                return module
    raise ValueError(f"{type(tower).__name__} has no list of {count} blocks: its layers cannot be told apart.")


def _count(own: dict[str, Any], image_size: int) -> int:
    """Tokens of a picture, prefix tokens included, from a forward pass on the meta device, which computes nothing.

    Raises:
        ValueError: the encoder cannot look at pictures of this size.
    """
    try:
        with torch.device("meta"), torch.no_grad():
            probe = FrozenTower(own)
            output = probe.tower(torch.empty(1, 3, image_size, image_size), **probe.call_options())
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        reason = next(iter(str(error).splitlines()), "")[:200]
        raise ValueError(
            f"This {own.get('model_type', 'dinov2')} encoder cannot look at pictures of {image_size} pixels a side "
            f"({reason}). Write the size that it was trained with, image_size={own['image_size']}."
        ) from error
    return output.last_hidden_state.shape[1]
