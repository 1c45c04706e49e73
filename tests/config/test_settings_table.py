"""The documented settings are the settings."""

from __future__ import annotations

from pathlib import Path

from bitgen.config.table import settings_table

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "settings.md"


def test_the_documented_reference_is_the_one_of_the_code() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    written = text.split("<!-- settings:start -->\n")[1].split("\n<!-- settings:end -->")[0]
    assert written == settings_table(), "write it anew: PYTHONPATH=src python -m bitgen.config.table"
