"""The documented settings are the settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from bitgen.config.table import settings_table

DOCUMENTS = Path(__file__).resolve().parents[2] / "docs"


@pytest.mark.parametrize(("document", "kind"), [("settings.md", "stage1"), ("vlm_settings.md", "vlm")])
def test_the_documented_reference_is_the_one_of_the_code(document: str, kind: str) -> None:
    text = (DOCUMENTS / document).read_text(encoding="utf-8")
    written = text.split("<!-- settings:start -->\n")[1].split("\n<!-- settings:end -->")[0]
    assert written == settings_table(kind), f"write it anew: PYTHONPATH=src python -m bitgen.config.table {kind}"
