"""Progress bars of other libraries."""

from __future__ import annotations

import sys

from transformers.utils import logging


def bars_on_terminals_alone() -> None:
    """Keep transformers from drawing progress bars where nobody watches: in a file they steer whoever reads it."""
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
