"""The figure of a corpus: how long the teacher's texts are, and how often each code occurs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

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
    import numpy as np

    figure = new_figure(9.0, 3.6)
    left, right = figure.subplots(1, 2)
    lengths = {kind: words for kind, words in lengths.items() if words}
    longest = max((max(words) for words in lengths.values()), default=1)
    edges = np.linspace(0, longest + 1, min(longest + 2, 41))
    for (kind, words), colour in zip(lengths.items(), COLOURS, strict=False):
        texts, _ = np.histogram(words, edges)
        left.stairs(texts / len(words), edges, color=colour, label=f"{kind} ({len(words):,})", linewidth=1.6)
    for (level, values), colour in zip(counts.items(), COLOURS * 5, strict=False):
        at = np.linspace(0, len(values) - 1, min(len(values), _MOST_POINTS)).astype(int)
        label = f"level {level} ({len(values)} codes)"
        right.plot((at + 1) / len(values), values[at], color=colour, label=label, linewidth=1.6)
    right.set_yscale("symlog")
    for panel, title, across, up in (
        (left, "Length of the teacher's texts", "words", "share of texts"),
        (right, "How often each code occurs", "share of the codes in use, rarest first", "occurrences"),
    ):
        panel.set_title(title, fontsize=10)
        panel.set_xlabel(across, fontsize=8)
        panel.set_ylabel(up, fontsize=8)
        panel.grid(alpha=0.3)
        if lengths or panel is right:
            panel.legend(fontsize=8)
    save_png(figure, path)
