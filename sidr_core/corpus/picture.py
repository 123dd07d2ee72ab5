"""A picture of a corpus: how long the teacher's texts are, and how often each code occurs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

_DPI = 110
_COLOURS = ("#3465a4", "#cc5500", "#4e9a06", "#75507b", "#a40000", "#555753")
#: Codes of a level that are drawn one by one; more are thinned out, which a curve does not show.
_MOST_POINTS = 2000


def draw(lengths: Mapping[str, Sequence[int]], counts: Mapping[str, np.ndarray], path: Path) -> None:
    """Write a PNG; the same figures give the same bytes.

    Args:
        lengths: kind of text -> words of each. counts: level letter -> occurrences of each code, ascending.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 3.6), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    _lengths(left, {kind: values for kind, values in lengths.items() if values})
    _codes(right, counts)
    metadata: dict[str, Any] = {"Software": None}
    figure.savefig(path, format="png", metadata=metadata)


def _lengths(panel: Any, lengths: Mapping[str, Sequence[int]]) -> None:
    import numpy as np

    most = max((max(values) for values in lengths.values()), default=1)
    edges = np.linspace(0, most + 1, min(most + 2, 41))
    for (kind, values), colour in zip(lengths.items(), _COLOURS, strict=False):
        shares, _ = np.histogram(values, edges)
        panel.stairs(shares / len(values), edges, color=colour, label=f"{kind} ({len(values):,})", linewidth=1.6)
    panel.set_title("Length of the teacher's texts", fontsize=10)
    panel.set_xlabel("words", fontsize=8)
    panel.set_ylabel("share of texts", fontsize=8)
    panel.grid(alpha=0.3)
    if lengths:
        panel.legend(fontsize=8)


def _codes(panel: Any, counts: Mapping[str, np.ndarray]) -> None:
    import numpy as np

    for (level, values), colour in zip(counts.items(), _COLOURS * 5, strict=False):
        places = np.linspace(0, len(values) - 1, min(len(values), _MOST_POINTS)).astype(int)
        shares = (places + 1) / len(values)
        panel.plot(shares, values[places], color=colour, label=f"level {level} ({len(values)} codes)", linewidth=1.6)
    panel.set_yscale("symlog")
    panel.set_title("How often each code occurs", fontsize=10)
    panel.set_xlabel("share of the codes in use, rarest first", fontsize=8)
    panel.set_ylabel("occurrences", fontsize=8)
    panel.grid(alpha=0.3)
    panel.legend(fontsize=8)
