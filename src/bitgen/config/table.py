"""The table of docs/settings.md, written from the settings themselves: run it to print it."""

from __future__ import annotations

from dataclasses import fields

from bitgen.config import Config


def settings_table() -> str:
    """All settings as Markdown, a table a group: name, default, and the help text of ``--help``."""
    config, parts = Config(), []
    for group in fields(config):
        rows = [f"**{group.name}**", "", "| setting | default | |", "|---|---|---|"]
        settings = getattr(config, group.name)
        for field in fields(settings):
            help_text = field.metadata["help"].replace("%%", "%").replace("|", "\\|")
            rows.append(f"| `{field.name}` | `{getattr(settings, field.name)}` | {help_text} |")
        parts.append("\n".join(rows))
    return "\n\n".join(parts)


if __name__ == "__main__":
    print(settings_table())
