"""SparseGPT (Frantar and Alistarh 2023): prune a matrix and let its other weights make up for it.

Works on one layer: its weight and the Gram matrix of its inputs.
"""

import torch
from torch import Tensor

from turnmill.compression.prune.masks import Pattern, prune_lowest, prune_pattern

#: Columns pruned together: the mask of a block is chosen when all columns before it are final.
BLOCK = 128
#: Added to the diagonal, as a share of its mean, so that the Gram matrix can be inverted.
DAMPING = 0.01


@torch.no_grad()  # type: ignore[untyped-decorator]
def sparsegpt(
    weight: Tensor, gram: Tensor, sparsity: float, pattern: Pattern | None = None
) -> Tensor:
    """Return the pruned weight whose outputs are closest to the original's, column by column.

    Args:
        weight: `[out, in]`.
        gram: XᵀX of the layer's inputs X `[tokens, in]`, summed or averaged: float `[in, in]`.
        sparsity: the share of zeros; of each block of columns if a pattern is not given.
        pattern: N:M in place of a free choice within the block.
    """
    result = weight.float().clone()
    dead = gram.diagonal() == 0
    upper = _inverse_factor(gram).float()
    rows, columns = weight.shape
    width = pattern.of if pattern else BLOCK
    for start in range(0, columns, width):
        end = min(start + width, columns)
        block, factor = result[:, start:end], upper[start:end, start:end]
        # The error that pruning w leaves after the others made up for it: w² / [H⁻¹]ⱼⱼ.
        scores = block.square() / factor.diagonal().square()
        scores[:, dead[start:end]] = -1.0  # Nobody hears them: they go first.
        if pattern:
            mask = prune_pattern(scores, pattern)
        else:
            # Rounded over all blocks so far: the whole matrix is exactly as sparse as asked.
            count = round(sparsity * (rows * end)) - round(sparsity * (rows * start))
            mask = prune_lowest(scores.flatten(), count).reshape(scores.shape)
        result[:, end:] -= _prune_block(block, factor, mask) @ upper[start:end, end:]
    return result.to(weight.dtype)


def _inverse_factor(gram: Tensor) -> Tensor:
    """Return the upper Cholesky factor of the inverse of the damped Gram matrix, in float64.

    Some features of a language model are thousands of times louder than others: in float32 the
    inverse may lose its positive diagonal. Row j holds what column j passes on to the columns
    after it once those before it are final.
    """
    gram = gram.double()
    diagonal = gram.diagonal()
    dead = diagonal == 0
    damped = gram + torch.diag(torch.where(dead, 1.0, 0.0) + DAMPING * diagonal.mean())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return torch.linalg.cholesky(inverse, upper=True)


def _prune_block(block: Tensor, factor: Tensor, mask: Tensor) -> Tensor:
    """Zero what the mask drops, in place; return the scaled errors that later columns take up."""
    errors = torch.zeros_like(block)
    for j in range(block.shape[1]):
        pruned = torch.where(mask[:, j], block[:, j], 0.0)
        errors[:, j] = (block[:, j] - pruned) / factor[j, j]
        block[:, j:] -= errors[:, j, None] * factor[j, None, j:]
        block[:, j] = pruned
    return errors
