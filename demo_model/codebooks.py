"""Training of audiocraft's residual vector quantizer without GPU synchronization.

The codebooks follow the encoder by exponential moving averages (van den Oord et al. 2017, appendix A.1), and a code to
which no vector is assigned any more is replaced by a vector of the batch. audiocraft 1.3.0's own update has two bugs,
which affect only training. After k-means `embed_avg` lacks the factor `cluster_size`, so the first update shrinks every
code. The replacement of a code is undone by the average in the same step. It also reads values back to the host, which
isn't possible in a CUDA graph. The buffers updated here are those of audiocraft's modules, which encode and decode.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

DECAY = 0.99
COMMITMENT = 0.5
SMALLEST_CLUSTER = 0.2  # vectors per step; a code with fewer is replaced
KMEANS_ITERATIONS = 20


def quantize(codebooks: list[Any], latents: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize and update the codebooks.

    Args:
        codebooks: audiocraft's `EuclideanCodebook`s.
        latents: [B, D, frames].

    Returns:
        quantized [B, D, frames], with straight-through gradients to the latents, and the commitment loss.
    """
    vectors = latents.detach().transpose(1, 2).flatten(0, 1)  # [N, D]
    residual = vectors
    for codebook in codebooks:
        residual = residual - _assign_and_update(codebook, residual)
    quantized = (vectors - residual).unflatten(0, (len(latents), -1)).transpose(1, 2)
    return latents + (quantized - latents).detach(), COMMITMENT * F.mse_loss(latents, quantized)


@torch.no_grad()
def initialize(codebooks: list[Any], latents: Tensor) -> None:
    """Set the codes by k-means over latents, [N, D]; each codebook takes the residual of the previous ones."""
    residual = latents
    for codebook in codebooks:
        codes = residual[torch.randperm(len(residual), device=residual.device)[: codebook.codebook_size]].clone()
        for _ in range(KMEANS_ITERATIONS):
            sums, sizes = _clusters(torch.cdist(residual, codes).argmin(1), residual, len(codes))
            codes = torch.where(sizes[:, None] > 0, sums / sizes[:, None].clamp(min=1), codes)
        nearest = torch.cdist(residual, codes).argmin(1)
        sizes = _clusters(nearest, residual, len(codes))[1].clamp(min=1)
        codebook.inited.fill_(1)
        codebook.embed.copy_(codes)
        codebook.cluster_size.copy_(sizes)
        codebook.embed_avg.copy_(codes * sizes[:, None])
        residual = residual - codes[nearest]


@torch.no_grad()
def _assign_and_update(codebook: Any, vectors: Tensor) -> Tensor:
    """Return the nearest code of each vector, [N, D], as it was before the update."""
    index = codebook.quantize(vectors)
    nearest = codebook.embed[index]
    sums, sizes = _clusters(index, vectors, len(codebook.embed))
    codebook.cluster_size.lerp_(sizes, 1 - DECAY)
    codebook.embed_avg.lerp_(sums, 1 - DECAY)
    dead = codebook.cluster_size < SMALLEST_CLUSTER
    drawn = vectors[torch.randint(len(vectors), (len(dead),), device=vectors.device)]
    codebook.cluster_size.copy_(torch.where(dead, 1.0, codebook.cluster_size))
    codebook.embed_avg.copy_(torch.where(dead[:, None], drawn, codebook.embed_avg))
    codebook.embed.copy_(codebook.embed_avg / codebook.cluster_size[:, None])
    return nearest


def _clusters(index: Tensor, vectors: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the sum of the vectors of each cluster, [count, D], and their number, [count]."""
    sums = vectors.new_zeros(count, vectors.shape[1]).index_add_(0, index, vectors)
    sizes = vectors.new_zeros(count).index_add_(0, index, torch.ones_like(vectors[:, 0]))
    return sums, sizes
