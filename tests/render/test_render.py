"""Text that is harmless, and tables of it."""

from sidr_core.render.grid import Grid, markdown_table
from sidr_core.render.text import markdown_text, printable


def test_printable_leaves_nothing_that_drives_a_terminal():
    assert printable("a\x1b]0;x\x07\u202eb\nc") == "a ]0;x  b c"
    assert printable(None) == ""
    assert printable(3) == "3"


def test_markdown_text_is_inert_and_short():
    assert markdown_text("<b>a|b\n[c](d)</b>") == r"&lt;b&gt;a\|b \[c\](d)&lt;/b&gt;"
    assert markdown_text("x" * 99, 10) == "x" * 9 + "…"
    assert markdown_text("a\x1b[31m\x07b") == r"a \[31m b"


def test_a_markdown_table_aligns_as_told():
    rows = [("a", "1", "2"), ("b", "3", "4")]
    assert markdown_table(("n", "x", "y"), rows).splitlines() == [
        "| n | x | y |",
        "| --- | ---: | ---: |",
        "| a | 1 | 2 |",
        "| b | 3 | 4 |",
    ]
    assert markdown_table(("n", "x", "y"), [], "rl") == "| n | x | y |\n| ---: | --- | --- |"
    assert markdown_table(("n",), [], "lr") == "| n |\n| --- |"


def test_a_grid_is_a_table_under_its_title():
    grid = Grid("HR@10", ("model", "value"), (("sft", "0.1"),))
    assert grid.markdown() == "## HR@10\n\n| model | value |\n| --- | ---: |\n| sft | 0.1 |"
    assert [column.header.plain for column in grid.rich().columns] == ["model", "value"]
