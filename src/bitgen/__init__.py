"""BitGen: a tiny multimodal language model that sees, reads, remembers and writes.

``bitgen.train`` and ``bitgen.load`` are in ``bitgen.api``, which is imported when one of them is first used: it brings
torch with it.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bitgen.api import Model as Model
    from bitgen.api import RunStopped as RunStopped
    from bitgen.api import VisionLanguage as VisionLanguage
    from bitgen.api import load as load
    from bitgen.api import load_vlm as load_vlm
    from bitgen.api import train as train

__version__ = "0.2.0"

_API = ("Model", "RunStopped", "VisionLanguage", "load", "load_vlm", "train")


def _is_news(record: logging.LogRecord) -> bool:
    # On some CPUs bitsandbytes warns, whenever peft imports it, that an optional package for faster products of 4 bits
    # is not there; the results are the same without. Whatever else it says is shown.
    return "No module named 'kernels'" not in record.getMessage()


logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(_is_news)


def __getattr__(name: str) -> Any:
    if name in _API:
        from bitgen import api

        return getattr(api, name)
    raise AttributeError(f"module 'bitgen' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_API])
