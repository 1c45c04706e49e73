"""The tables of docs/settings.md and docs/vlm_settings.md, written from the settings themselves: run it to print one.

PYTHONPATH=src python -m bitgen.config.table         stage 1
PYTHONPATH=src python -m bitgen.config.table vlm     vision-language models of parts
"""

from __future__ import annotations

import sys
from dataclasses import fields

from bitgen.config import Config
from bitgen.config.schema import Schema
from bitgen.config.vlm import VlmConfig

SCHEMAS: dict[str, type[Schema]] = {"stage1": Config, "vlm": VlmConfig}


def settings_table(kind: str = "stage1") -> str:
    """All settings of a kind of run as Markdown, a table a group: name, default, and the help text of ``--help``."""
    config = SCHEMAS[kind]()
    parts = []
    for group in fields(config):
        rows = [f"**{group.name}**", "", "| setting | default | |", "|---|---|---|"]
        settings = getattr(config, group.name)
        for field in fields(settings):
            help_text = field.metadata["help"].replace("%%", "%").replace("|", "\\|")
            rows.append(f"| `{field.name}` | `{getattr(settings, field.name)}` | {help_text} |")
        parts.append("\n".join(rows))
    return "\n\n".join(parts)


if __name__ == "__main__":
    print(settings_table(*sys.argv[1:2]))
