"""RQ-VAE (docs/method.md, "Codebooks"): an autoencoder whose code is quantized level by level while it is trained.

As in the paper: layers of 2048, 1024, …, 64 units and ReLU between them, Xavier-normal weights, zero
biases; nearest code of the residual, straight-through gradient; loss = MSE(x, x̂) + the mean over levels
of MSE(sg(r), e) + 0.25 · MSE(r, sg(e)); codes begin as k-means centroids of the first batch; AdamW
without decay, a constant rate after warm-up, gradients clipped at 1, batches of 20,480, and the state
with the fewest collisions wins.

Deviations:
- Only the widths below that of the vectors are used. The paper's vectors have 2,560 dimensions, so that
  every layer narrows; behind vectors of 384, 2048 units would only cost.
- 500 epochs by default, not 10,000, and a tenth of them, at most 50, to warm up.
- States count from the second half of training on: k-means codes of an encoder that has learnt nothing
  can collide less than those of one that has.
- The loss takes the lower levels' codes in a residual as constants.
- Vectors that are not finite are refused, not zeroed.

The outcome depends on vectors, settings and seed, and in its last bits on the number of threads.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from sidr_core.errors import ProfileError
from sidr_core.sids import kmeans
from sidr_core.sids.projection import Mlp
from sidr_core.sids.quantizers import Quantized

if TYPE_CHECKING:
    from sidr_core.pipeline.stage import Progress
    from sidr_core.settings import Quantizer

WIDTHS = (2048, 1024, 512, 256, 128, 64)
_BATCH = 20_480
_BETA = 0.25
_CLIP = 1.0
_WARM_UP = 50
_KMEANS_ITERATIONS = 100
_EVALUATIONS = 20


def widths(dimension: int, code_size: int) -> list[int]:
    """Units per layer from input to code: `dimension`, those of :data:`WIDTHS` between the two, `code_size`."""
    return [dimension, *(width for width in WIDTHS if code_size < width < dimension), code_size]


def fit(vectors: np.ndarray, size: int, config: Quantizer, progress: Progress | None = None) -> Quantized:
    """Train on vectors (N, D) float32.

    Args:
        size: codes per level.
        progress: told of the epochs.

    Returns:
        The centroids (L, size, code_size) and the encoder with its decoder.

    Raises:
        ProfileError: the loss is no longer finite.
    """
    generator = torch.Generator().manual_seed(config.seed)
    data = torch.from_numpy(np.ascontiguousarray(vectors, dtype=np.float32))
    model = _Model(data.shape[1], size, config, generator)
    order = _order(len(data), generator)
    model.start_codes(data[order[:_BATCH]], config.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=0.0)
    warm_up = max(1, min(_WARM_UP, config.epochs // 10))
    fewest, best = len(data) + 1, {}
    for epoch in range(1, config.epochs + 1):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * min(1.0, epoch / warm_up)
        loss = _epoch(model, optimizer, data, order)
        if not np.isfinite(loss):
            raise ProfileError(
                "sid_codebook: the RQ-VAE diverged",
                expected="a finite loss",
                found=f"loss {loss} in epoch {epoch}",
                fix=f"lower `quantizer.learning_rate` ({config.learning_rate:g})",
            )
        if _is_due(epoch, config.epochs) and (collisions := model.collisions(data)) < fewest:
            fewest, best = collisions, {key: value.clone() for key, value in model.state_dict().items()}
        if progress is not None:
            progress.tick(epoch, config.epochs, "epochs of the RQ-VAE", f"loss {loss:.5f}")
        order = _order(len(data), generator)
    model.load_state_dict(best)
    return Quantized(model.codes.detach().numpy().copy(), Mlp(_weights(model.encoder), _weights(model.decoder)))


def _order(rows: int, generator: torch.Generator) -> torch.Tensor:
    """Shuffled row numbers; as they are where one batch takes all."""
    return torch.arange(rows) if rows <= _BATCH else torch.randperm(rows, generator=generator)


def _epoch(model: _Model, optimizer: torch.optim.Optimizer, data: torch.Tensor, order: torch.Tensor) -> float:
    """One pass over data (N, D); returns the mean loss."""
    total = 0.0
    for batch in order.split(_BATCH):
        optimizer.zero_grad(set_to_none=True)
        loss = model.loss(data[batch])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), _CLIP)
        optimizer.step()
        total += float(loss.detach()) * len(batch)
    return total / len(data)


def _is_due(epoch: int, epochs: int) -> bool:
    """Whether collisions are counted: `_EVALUATIONS` times, evenly over the second half, and at the end."""
    every = max(1, epochs // (2 * _EVALUATIONS))
    return epoch == epochs or (2 * epoch > epochs and (epochs - epoch) % every == 0)


class _Model(nn.Module):
    """Encoder, codes (L, K, d) and decoder."""

    def __init__(self, dimension: int, size: int, config: Quantizer, generator: torch.Generator) -> None:
        super().__init__()
        sizes = widths(dimension, config.code_size)
        self.encoder = _layers(sizes, generator)
        self.decoder = _layers(sizes[::-1], generator)
        self.codes = nn.Parameter(torch.zeros(config.levels, size, config.code_size))

    @torch.no_grad()
    def start_codes(self, vectors: torch.Tensor, seed: int) -> None:
        """Set the codes of each level to k-means centroids of the residuals of vectors (N, D)."""
        residual = self.encoder(vectors).numpy()
        for level, codes in enumerate(self.codes):
            centroids = kmeans.train(residual, len(codes), _KMEANS_ITERATIONS, seed + level)
            codes.copy_(torch.from_numpy(centroids))
            residual = residual - centroids[kmeans.nearest(residual, centroids)]

    def loss(self, vectors: torch.Tensor) -> torch.Tensor:
        """Reconstruction plus quantization loss of a batch (B, D)."""
        latent = self.encoder(vectors)
        quantized = torch.zeros_like(latent)
        losses = []
        for codes in self.codes:
            residual = latent - quantized.detach()
            chosen = functional.embedding(_nearest(residual.detach(), codes.detach()), codes)
            losses.append(
                functional.mse_loss(chosen, residual.detach()) + _BETA * functional.mse_loss(residual, chosen.detach())
            )
            quantized = quantized + chosen
        through = latent + (quantized - latent).detach()
        return functional.mse_loss(self.decoder(through), vectors) + torch.stack(losses).mean()

    @torch.no_grad()
    def collisions(self, vectors: torch.Tensor) -> int:
        """Items less distinct SIDs, over vectors (N, D)."""
        codes = []
        for batch in vectors.split(_BATCH):
            residual = self.encoder(batch)
            levels = []
            for centroids in self.codes:
                levels.append(_nearest(residual, centroids))
                residual = residual - centroids[levels[-1]]
            codes.append(torch.stack(levels, dim=1))
        return len(vectors) - len(np.unique(torch.cat(codes).numpy(), axis=0))


def _weights(side: nn.Sequential) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """Weight (out, in) and bias (out,) of each linear layer."""
    linear = (module for module in side if isinstance(module, nn.Linear))
    return tuple((m.weight.detach().numpy().copy(), m.bias.detach().numpy().copy()) for m in linear)


def _layers(sizes: list[int], generator: torch.Generator) -> nn.Sequential:
    modules: list[nn.Module] = []
    for width, following in pairwise(sizes):
        # skip_init: the global generator stays untouched
        linear: nn.Linear = nn.utils.skip_init(nn.Linear, width, following)  # type: ignore[assignment]
        nn.init.xavier_normal_(linear.weight, generator=generator)
        nn.init.zeros_(linear.bias)
        modules += [linear, nn.ReLU()]
    return nn.Sequential(*modules[:-1])


def _nearest(residual: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """(B,) the nearest of codes (K, d) by squared distance, less the residual's own length."""
    return ((codes**2).sum(dim=1) - 2 * residual @ codes.T).argmin(dim=1)
