"""Tables as text and as Markdown."""

from bitgen.show import tables


def test_plain_table_is_aligned():
    text = tables.format_table(("name", "n"), [("a", "1"), ("long name", "12,345")], title="T")
    assert text.splitlines() == [
        "T",
        "  name            n",
        "  ---------  ------",
        "  a               1",
        "  long name  12,345",
    ]


def test_markdown_table_escapes_bars():
    assert tables.format_markdown(("a", "b"), [("x|y", "1")]).splitlines()[-1] == r"| x\|y | 1 |"
