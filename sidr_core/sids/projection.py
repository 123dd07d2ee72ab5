"""What is quantized: a projection of the text vectors (N, D) into the latent space (N, d) of a codebook.

A projection is saved with its codebook and applies to items that come later. Deviation from the paper:
it quantizes text vectors alone, through the encoder of an RQ-VAE (here :class:`Mlp`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

# Rows that pass through the layers at once.
_BLOCK = 16_384


class Projection(Protocol):
    """A fixed map of text vectors into the latent space."""

    name: ClassVar[str]

    def project(self, vectors: np.ndarray, items: Sequence[str] | None = None) -> np.ndarray:
        """(N, D) text vectors, and the item ids in the same order where known, to (N, d) float32."""
        ...

    def lift(self, latent: np.ndarray) -> np.ndarray:
        """Back to text vectors, as near as can be: (N, d) to (N, D) float32."""
        ...

    def tensors(self) -> dict[str, np.ndarray]:
        """All that :func:`restore` needs."""
        ...


@dataclass(frozen=True)
class Whitened:
    """Principal directions, each scaled to unit variance.

    Args:
        mean: (D,).
        components: (D, d), orthonormal columns.
        scale: (d,) standard deviations, of which a little is added to each so that noise is not blown up.
    """

    mean: np.ndarray
    components: np.ndarray
    scale: np.ndarray
    name: ClassVar[str] = "whitened"

    def project(self, vectors: np.ndarray, items: Sequence[str] | None = None) -> np.ndarray:
        matrix = self.components / self.scale
        return vectors @ matrix - self.mean @ matrix

    def lift(self, latent: np.ndarray) -> np.ndarray:
        return (latent * self.scale) @ self.components.T + self.mean

    def tensors(self) -> dict[str, np.ndarray]:
        return {"mean": self.mean, "components": self.components, "scale": self.scale}


@dataclass(frozen=True)
class Fused:
    """The unit text vector beside the unit co-occurrence vector: distances are weighted sums of both.

    An item without co-occurrence, such as one that came after the fit, gets the co-occurrence vector
    expected from its text (ridge regression on the items that have one). So its codes depend on its text alone, and it
    lies among items that people buy with similar ones; zeros would pull all such items to the centroids with the least
    co-occurrence.

    Args:
        items: (n,) ids of the items with co-occurrence.
        behaviour: (n, b) their unit co-occurrence vectors.
        expected: (D, b) from unit text vector to co-occurrence vector.
        weight: share of the squared length that co-occurrence gets.
    """

    items: tuple[str, ...]
    behaviour: np.ndarray
    expected: np.ndarray
    weight: float
    name: ClassVar[str] = "fused"

    def project(self, vectors: np.ndarray, items: Sequence[str] | None = None) -> np.ndarray:
        width = vectors.shape[1]
        latent = np.empty((len(vectors), width + self.behaviour.shape[1]), dtype=np.float32)
        latent[:, :width] = unit(vectors)
        latent[:, width:] = latent[:, :width] @ self.expected
        if items is not None:
            row = {item: n for n, item in enumerate(self.items)}
            known = np.array([row.get(item, -1) for item in items], dtype=np.int64)
            latent[known >= 0, width:] = self.behaviour[known[known >= 0]]
        latent[:, :width] *= np.float32(np.sqrt(1 - self.weight))
        latent[:, width:] *= np.float32(np.sqrt(self.weight))
        return latent

    def lift(self, latent: np.ndarray) -> np.ndarray:
        """The text part: unit vectors (N, D)."""
        return latent[:, : len(self.expected)] / np.float32(np.sqrt(1 - self.weight))

    def tensors(self) -> dict[str, np.ndarray]:
        texts = [item.encode() for item in self.items]
        return {
            "items": np.frombuffer(b"".join(texts), dtype=np.uint8),
            "ends": np.cumsum([len(text) for text in texts], dtype=np.int64),
            "behaviour": self.behaviour,
            "expected": self.expected,
            "weight": np.array([self.weight]),
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, np.ndarray]) -> Fused:
        data, ends = tensors["items"].tobytes(), tensors["ends"].tolist()
        items = tuple(data[start:end].decode() for start, end in zip([0, *ends], ends, strict=False))
        return cls(items, tensors["behaviour"], tensors["expected"], float(tensors["weight"][0]))


@dataclass(frozen=True)
class Mlp:
    """The encoder of an RQ-VAE, and its decoder to come back; ReLU between layers, none on the last.

    Args:
        encoder, decoder: layers in order, weights (out, in) and bias (out,).
    """

    encoder: tuple[tuple[np.ndarray, np.ndarray], ...]
    decoder: tuple[tuple[np.ndarray, np.ndarray], ...]
    name: ClassVar[str] = "mlp"

    def project(self, vectors: np.ndarray, items: Sequence[str] | None = None) -> np.ndarray:
        return _forward(self.encoder, vectors)

    def lift(self, latent: np.ndarray) -> np.ndarray:
        return _forward(self.decoder, latent)

    def tensors(self) -> dict[str, np.ndarray]:
        tensors: dict[str, np.ndarray] = {}
        for side, layers in (("encoder", self.encoder), ("decoder", self.decoder)):
            for n, (weight, bias) in enumerate(layers):
                tensors |= {f"{side}.{n}.weight": weight, f"{side}.{n}.bias": bias}
        return tensors

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, np.ndarray]) -> Mlp:
        depth = len(tensors) // 4

        def layers(side: str) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
            return tuple((tensors[f"{side}.{n}.weight"], tensors[f"{side}.{n}.bias"]) for n in range(depth))

        return cls(layers("encoder"), layers("decoder"))


def restore(name: str, tensors: Mapping[str, np.ndarray]) -> Projection:
    """The projection called `name`, from its tensors."""
    kinds: dict[str, Callable[[Mapping[str, np.ndarray]], Projection]] = {
        Whitened.name: lambda tensors: Whitened(**tensors),
        Fused.name: Fused.from_tensors,
        Mlp.name: Mlp.from_tensors,
    }
    return kinds[name](tensors)


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows of length 1; a zero row stays zero."""
    length = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
    return vectors / np.where(length > 0, length, 1)[:, None]


def _forward(layers: Sequence[tuple[np.ndarray, np.ndarray]], vectors: np.ndarray) -> np.ndarray:
    output = np.empty((len(vectors), len(layers[-1][1])), dtype=np.float32)
    for start in range(0, len(vectors), _BLOCK):
        part = vectors[start : start + _BLOCK]
        for n, (weight, bias) in enumerate(layers):
            part = part @ weight.T + bias
            if n < len(layers) - 1:
                np.maximum(part, 0, out=part)
        output[start : start + _BLOCK] = part
    return output
