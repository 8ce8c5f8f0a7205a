from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from demo_model.codebooks import COMMITMENT, initialize, quantize
from musicgen_core.audiocraft_compat import import_audiocraft


@pytest.fixture
def quantizer() -> Any:
    """audiocraft's residual vector quantizer with two codebooks of four codes in two dimensions."""
    torch.manual_seed(1)  # k-means starts with a vector of each corner
    module = import_audiocraft("audiocraft.quantization.core_vq")
    return module.ResidualVectorQuantization(num_quantizers=2, dim=2, codebook_size=4, kmeans_init=True)


def codebooks(quantizer: Any) -> list[Any]:
    return [layer._codebook for layer in quantizer.layers]


def corners(count: int) -> Tensor:
    """Vectors near the corners of a square, [count, 2]."""
    generator = torch.Generator().manual_seed(1)
    signs = torch.randint(2, (count, 2), generator=generator) * 2.0 - 1
    return signs + 0.05 * torch.randn(count, 2, generator=generator)


def test_kmeans_finds_clusters_and_then_residuals(quantizer: Any) -> None:
    vectors = corners(400)
    initialize(codebooks(quantizer), vectors)
    first, second = codebooks(quantizer)
    assert torch.allclose(first.embed.abs(), torch.ones(4, 2), atol=0.05)
    assert second.embed.abs().max() < 0.2
    assert torch.allclose(first.embed_avg / first.cluster_size[:, None], first.embed)


def test_quantized_latents_are_what_audiocraft_decodes(quantizer: Any) -> None:
    latents = corners(60).T.reshape(2, 3, 20).transpose(0, 1).contiguous()  # [3, 2, 20]
    initialize(codebooks(quantizer), corners(400))
    quantizer.eval()
    expected = quantizer.decode(quantizer.encode(latents))
    quantized, commitment = quantize(codebooks(quantizer), latents)
    assert torch.allclose(quantized, expected, atol=1e-6)
    assert commitment.item() == pytest.approx(COMMITMENT * (latents - expected).square().mean().item(), rel=1e-4)


def test_gradients_pass_the_quantizer_unchanged(quantizer: Any) -> None:
    initialize(codebooks(quantizer), corners(400))
    latents = torch.randn(1, 2, 8, requires_grad=True)
    weights = torch.randn(1, 2, 8)
    quantized, _ = quantize(codebooks(quantizer), latents)
    (quantized * weights).sum().backward()
    assert latents.grad is not None and torch.equal(latents.grad, weights)


def test_codes_follow_latents_that_move(quantizer: Any) -> None:
    initialize(codebooks(quantizer), corners(400))
    moved = (corners(400) + 0.3).T[None]
    for _ in range(300):
        quantize(codebooks(quantizer), moved)
    expected = torch.tensor([[-0.7, -0.7], [-0.7, 1.3], [1.3, -0.7], [1.3, 1.3]])
    found = codebooks(quantizer)[0].embed
    assert torch.cdist(expected, found).min(1).values.max() < 0.1


def test_a_code_without_vectors_is_replaced_by_one_of_the_batch(quantizer: Any) -> None:
    initialize(codebooks(quantizer), corners(400))
    first = codebooks(quantizer)[0]
    first.embed[0], first.embed_avg[0], first.cluster_size[0] = 50.0, 5.0, 0.1
    quantize(codebooks(quantizer), corners(400).T[None])
    assert first.embed[0].abs().max() < 2
