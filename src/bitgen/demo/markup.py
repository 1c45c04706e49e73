"""Pieces of HTML for the page. Whatever a model or a person wrote is escaped: it can say nothing to the browser."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from bitgen.demo.asking import Reason
from bitgen.demo.matching import Matched
from bitgen.evaluation.word_probabilities import END, WordProbability

# From sure to guessed; dark enough for white letters.
_SURE, _LIKELY, _UNSURE, _GUESSED = "#0f766e", "#4d7c0f", "#b45309", "#b91c1c"
_LEGEND = ((_SURE, "90% and more"), (_LIKELY, "50%"), (_UNSURE, "10%"), (_GUESSED, "less"))
_CHIP = "border-radius:6px;padding:2px 7px;margin:2px;color:white;display:inline-block"


def words(caption: Sequence[WordProbability]) -> str:
    """A caption whose words are coloured by their probability, with a legend; the number is shown on hovering."""
    chips = " ".join(_word(one) for one in caption)
    legend = " ".join(f'<span style="{_CHIP};background:{colour}">{text}</span>' for colour, text in _LEGEND)
    return (
        f'<div style="font-size:1.25em;line-height:2.1">{chips}</div>'
        f'<div style="font-size:.8em;margin-top:.7em">Probability of each word, given the picture and the words before '
        f"it: {legend}</div>"
    )


def _word(one: WordProbability) -> str:
    probability = math.exp(one.log_probability)
    colour = _LEGEND[0][0] if probability >= 0.9 else _LIKELY if probability >= 0.5 else _UNSURE
    colour = _GUESSED if probability < 0.1 else colour
    text = "(end)" if one.word == END else escape(one.word)
    title = f"{probability:.1%}, log-probability {one.log_probability:.2f}"
    return f'<span style="{_CHIP};background:{colour}" title="{title}">{text}</span>'


def sentence(text: str) -> str:
    """Plain words, large."""
    return f'<div style="font-size:1.25em">{escape(text)}</div>'


def table(rows: Sequence[Sequence[str]], heading: str) -> str:
    """Rows of two cells below a heading."""
    style = "padding:4px 12px 4px 0;vertical-align:top"
    lines = [f"<tr>{''.join(f'<td style={style!r}>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows]
    return f"<h3>{escape(heading)}</h3><table>{''.join(lines)}</table>"


def bars(rows: Sequence[Matched]) -> str:
    """Captions with a bar for the share of each."""
    bar = f"background:{_SURE};color:white;border-radius:6px;padding:2px 8px;min-width:3.2em"
    parts = []
    for row in rows:
        parts.append(
            f'<div style="margin:.6em 0"><div>{escape(row.caption)}</div>'
            f'<div style="background:#94a3b833;border-radius:6px"><div style="{bar};width:{100 * row.share:.1f}%">'
            f"{row.share:.1%}</div></div>"
            f'<div style="font-size:.8em">by itself {row.probability:.1%}, cosine {row.cosine:.3f}</div></div>'
        )
    return "".join(parts)


def reasons(given: Sequence[Reason]) -> str:
    """Clauses as a list, each with whether it holds."""
    if not given:
        return ""
    marks = {True: ("&#10003;", _SURE, "true in this scene"), False: ("&#10007;", _GUESSED, "not true in this scene")}
    items = []
    for number, reason in enumerate(given, start=1):
        mark = ""
        if reason.holds is not None:
            sign, colour, what = marks[reason.holds]
            mark = f' <span style="{_CHIP};background:{colour}">{sign} {what}</span>'
        items.append(f"<div>{number}. {escape(reason.text)}{mark}</div>")
    return "".join(items)
