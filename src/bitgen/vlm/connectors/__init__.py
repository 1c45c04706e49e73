"""Connectors from a vision encoder to a language model: the table of kinds, and the one way to build them."""

from __future__ import annotations

from typing import NamedTuple

from bitgen.config.values import ConfigError, shown, suggest
from bitgen.vlm.connectors.base import Connector
from bitgen.vlm.connectors.c_abstractor import CAbstractor
from bitgen.vlm.connectors.config import SETTINGS, ConnectorConfig, read_options, with_options
from bitgen.vlm.connectors.perceiver import Perceiver
from bitgen.vlm.connectors.projections import MLP, Linear, PixelShuffle
from bitgen.vlm.connectors.resampler import Resampler
from bitgen.vlm.connectors.tac import TAC

__all__ = ["KINDS", "SETTINGS", "Connector", "ConnectorConfig", "Kind", "build_connector"]


class Kind(NamedTuple):
    """A kind of connector: its class, what it does, and where it comes from."""

    connector: type[Connector]
    what: str
    source: str


KINDS = {
    "linear": Kind(Linear, "one Linear on every patch token", "LLaVA, arXiv 2304.08485"),
    "mlp": Kind(MLP, "Linear, GELU, Linear on every patch token", "LLaVA-1.5, arXiv 2310.03744"),
    "pixel_shuffle": Kind(
        PixelShuffle, "each square of patch tokens joined into one, then a Linear", "Idefics3, arXiv 2408.12637"
    ),
    "c_abstractor": Kind(
        CAbstractor, "convolutions around an adaptive pooling, then an MLP", "Honeybee, arXiv 2312.06742"
    ),
    "resampler": Kind(
        Resampler, "learned queries attend once to all pictures, at language width", "Qwen-VL, arXiv 2308.12966"
    ),
    "perceiver": Kind(
        Perceiver,
        "learned latents attend repeatedly to all pictures, at vision width, then a Linear",
        "Flamingo, arXiv 2204.14198",
    ),
    "tac": Kind(TAC, "all layers fused, and the current image compared with a prior one", "Libra, arXiv 2411.19378"),
}


def build_connector(config: ConnectorConfig) -> Connector:
    """The connector of a configuration, with fresh weights; its ``config`` has every option written out.

    Raises:
        ConfigError: an unknown kind or option, a value out of range, or sizes that do not fit one another.
    """
    kind = KINDS.get(config.kind)
    if kind is None:
        raise ConfigError(
            f"There is no connector {shown(config.kind)}.{suggest(str(config.kind), KINDS)} Kinds: {', '.join(KINDS)}."
        )
    options = read_options(kind.connector.Options, config.options, config.kind)
    return kind.connector(with_options(config, options), options)
