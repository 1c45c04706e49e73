"""What the documents point to exists: links, headings that links name, and paths of this repository."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
_LINK = re.compile(r"\]\(([^()\s]+(?:\([^()\s]*\)[^()\s]*)?)\)|\bsrc=\"([^\"]+)\"")
# A path as prose and commands write it. `*`, `$`, `{` and `<` stand for something: such paths are not looked for.
_PATH = re.compile(r"(?<![\w/.])(?:src|docs|configs|data_prep|benchmarks|tests)/[\w.\-/*${}<>]*")
_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def documents() -> list[Path]:
    """The Markdown files of the project itself: not of environments or outputs beside it."""
    folders = (REPOSITORY, REPOSITORY / "docs", REPOSITORY / "data_prep", REPOSITORY / "benchmarks")
    return sorted(path for folder in folders for path in folder.glob("*.md"))


def anchors(document: str) -> set[str]:
    """The names of a document's headings, as GitHub makes them: lower case, spaces to hyphens, the rest left out."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ +(.+?) *#*$", _FENCE.sub("", document), re.MULTILINE):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        name = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        found.add(name if name not in found else f"{name}-1")
    return found


def broken_links(path: Path) -> list[str]:
    """Relative links of a document to files or headings that do not exist."""
    text = _FENCE.sub("", path.read_text(encoding="utf-8"))
    broken = []
    for link in (first or second for first, second in _LINK.findall(text)):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = path.parent / name if name else path
        if not target.exists():
            broken.append(link)
        elif anchor and target.suffix == ".md" and anchor not in anchors(target.read_text(encoding="utf-8")):
            broken.append(link)
    return broken


def missing_paths(text: str) -> list[str]:
    """Paths of this repository that a text mentions and that do not exist."""
    mentioned = {match.rstrip(".") for match in _PATH.findall(text)}
    return sorted(p for p in mentioned if not re.search(r"[*${}<>]", p) and not (REPOSITORY / p).exists())


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def test_links_and_paths_of_a_document_exist(path: Path) -> None:
    assert broken_links(path) == []
    assert missing_paths(path.read_text(encoding="utf-8")) == []


def test_paths_in_configurations_exist() -> None:
    missing = {path.name: missing_paths(path.read_text()) for path in (REPOSITORY / "configs").glob("*.yaml")}
    assert {name: paths for name, paths in missing.items() if paths} == {}


def test_docstrings_cite_documents_that_exist() -> None:
    cited = re.compile(r"(?<![\w/.*])((?:docs/)?[A-Za-z_]+\.md)\b")
    kept = {"README.md", "report.md"}  # also files that an export and a submission hold
    missing = []
    for folder in ("src", "data_prep", "benchmarks"):
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            names = set(cited.findall(path.read_text(encoding="utf-8"))) - kept
            missing += [f"{path.name}: {name}" for name in names if not (REPOSITORY / name).is_file()]
    assert missing == []


def test_every_figure_is_shown_and_small() -> None:
    shown = "\n".join(path.read_text(encoding="utf-8") for path in documents())
    figures = sorted((REPOSITORY / "docs" / "figures").iterdir())
    assert figures and [figure.name for figure in figures if figure.name not in shown] == []
    assert [figure.name for figure in figures if figure.stat().st_size > 300_000] == []


def test_broken_links_and_paths_are_found(tmp_path: Path) -> None:
    other = tmp_path / "other.md"
    other.write_text("# A heading: of `two` words\n\n```\n# no heading\n```\n", encoding="utf-8")
    path = tmp_path / "page.md"
    path.write_text(
        "[a](other.md) [b](other.md#a-heading-of-two-words) [c](https://example.org/x) [d](gone.md)\n"
        "[e](other.md#no-heading) [f](#nowhere) ![g](gone.png)\n",
        encoding="utf-8",
    )
    assert broken_links(path) == ["gone.md", "other.md#no-heading", "#nowhere", "gone.png"]
    text = "`src/bitgen/gone.py`, src/bitgen/model/, `docs/*.md`, ../data/src/x, `configs/stage1.yaml`."
    assert missing_paths(text) == ["src/bitgen/gone.py"]


def test_the_citation_file_names_the_licence_and_a_version() -> None:
    text = (REPOSITORY / "CITATION.cff").read_text(encoding="utf-8")
    assert "license: Apache-2.0" in text and re.search(r"^version: \d+\.\d+\.\d+$", text, re.MULTILINE)


def test_the_network_is_drawn(tmp_path: Path) -> None:
    script = runpy.run_path(str(REPOSITORY / "docs" / "make_figures.py"))
    script["draw_network"](tmp_path / "network.svg")
    script["draw_network"](tmp_path / "again.svg")
    drawn = (tmp_path / "network.svg").read_text(encoding="utf-8")
    assert "<svg" in drawn and "feature compressor" in drawn
    assert drawn == (tmp_path / "again.svg").read_text(encoding="utf-8"), "the drawing is not reproducible"
