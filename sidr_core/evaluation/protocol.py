"""What is compared with what, and on which rows: shared by the lists and their evaluation."""

from __future__ import annotations

from collections.abc import Sequence

from sidr_core.settings.models import LANGUAGE_MODELS, MODELS, language_model, split_name
from sidr_core.tables.columns import DIRECT, THINKING

#: Baselines that language models are compared with, where the profile has them; without any, with POPULARITY.
REFERENCES = tuple(model.name for model in MODELS if model.is_reference)
POPULARITY = "popularity"
#: Cut-offs of the headline and of the paired comparisons, where the profile evaluates them.
HEADLINE_KS = (5, 10)

_SEED = 42


def headline(ks: Sequence[int]) -> list[int]:
    """The cut-offs to show first: 5 and 10, or the largest that there is."""
    return [k for k in HEADLINE_KS if k in ks] or [max(ks)]


def comparisons(models: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs (a, b) whose difference a - b is reported, of `<model>/<mode>` names that are both in `models`.

    Thinking, always or where unsure, and mixtures against direct mode of the same checkpoint; each training stage
    against the nearest one before it that has lists in the same mode; every neural list against each of REFERENCES.
    No "best" model is picked first: picking on test rows flatters. All pairs are one family for the correction of
    p-values, so there are no others.
    """
    neural = [name for name in models if language_model(split_name(name)[0])]
    pairs = []
    for name in neural:
        model, mode = split_name(name)
        other = mode == THINKING or model not in LANGUAGE_MODELS
        pairs += [(name, f"{language_model(model)}/{DIRECT}")] if other else []
    for name in neural:
        model, mode = split_name(name)
        before = LANGUAGE_MODELS[: LANGUAGE_MODELS.index(model)] if model in LANGUAGE_MODELS else ()
        pairs += [(name, f"{other}/{mode}") for other in reversed(before) if f"{other}/{mode}" in models][:1]
    references = [f"{name}/{DIRECT}" for name in REFERENCES if f"{name}/{DIRECT}" in models]
    for reference in references or [f"{POPULARITY}/{DIRECT}"]:
        pairs += [(name, reference) for name in neural]
    return [(a, b) for a, b in pairs if a in models and b in models]


def with_horizons(verdict: str, seen_a: str, seen_b: str) -> str:
    """A verdict on two models, and that they know data of different periods, where they do.

    >>> with_horizons("higher", "2018-06-01", "2018-01-01")
    'higher (different horizons)'
    """
    return verdict if seen_a == seen_b else f"{verdict} (different horizons)"


def thinking_pairs(models: Sequence[str]) -> list[tuple[str, str]]:
    """Those of :func:`comparisons` that are a checkpoint's thinking against its direct mode."""
    return [
        (a, b)
        for a, b in comparisons(models)
        if language_model(split_name(a)[0]) == language_model(split_name(b)[0]) and split_name(a)[1] != split_name(b)[1]
    ]
