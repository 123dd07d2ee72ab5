"""The figure of a corpus: how long the teacher's texts are, and how often each code occurs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sidr_core.render.figures import COLOURS, new_figure, save_png

if TYPE_CHECKING:
    import numpy as np

#: Most points of a level's curve; more codes are thinned out, which the curve does not show.
_MOST_POINTS = 2000


def draw(lengths: Mapping[str, Sequence[int]], counts: Mapping[str, np.ndarray], path: Path) -> None:
    """Write a PNG; the same figures give the same bytes.

    Args:
        lengths: kind of text -> words of each. counts: level letter -> occurrences of each code, ascending.
    """
    figure = new_figure(9.0, 3.6)
    left, right = figure.subplots(1, 2)
    _draw_lengths(left, {kind: values for kind, values in lengths.items() if values})
    _draw_codes(right, counts)
    save_png(figure, path)


def _draw_lengths(panel: Any, lengths: Mapping[str, Sequence[int]]) -> None:
    import numpy as np

    longest = max((max(values) for values in lengths.values()), default=1)
    edges = np.linspace(0, longest + 1, min(longest + 2, 41))
    for (kind, values), colour in zip(lengths.items(), COLOURS, strict=False):
        counts, _ = np.histogram(values, edges)
        panel.stairs(counts / len(values), edges, color=colour, label=f"{kind} ({len(values):,})", linewidth=1.6)
    panel.set_title("Length of the teacher's texts", fontsize=10)
    panel.set_xlabel("words", fontsize=8)
    panel.set_ylabel("share of texts", fontsize=8)
    panel.grid(alpha=0.3)
    if lengths:
        panel.legend(fontsize=8)


def _draw_codes(panel: Any, counts: Mapping[str, np.ndarray]) -> None:
    import numpy as np

    for (level, values), colour in zip(counts.items(), COLOURS * 5, strict=False):
        at = np.linspace(0, len(values) - 1, min(len(values), _MOST_POINTS)).astype(int)
        panel.plot(
            (at + 1) / len(values),
            values[at],
            color=colour,
            label=f"level {level} ({len(values)} codes)",
            linewidth=1.6,
        )
    panel.set_yscale("symlog")
    panel.set_title("How often each code occurs", fontsize=10)
    panel.set_xlabel("share of the codes in use, rarest first", fontsize=8)
    panel.set_ylabel("occurrences", fontsize=8)
    panel.grid(alpha=0.3)
    panel.legend(fontsize=8)
