"""Muon's orthogonal steps for matrices that are cut up: each is a function of the whole matrix, which no rank holds.

The ranks share the work. Of the matrices of one shape each rank gets some whole from the others, orthogonalises them,
and sends everyone their rows back: twice the bytes of one rank's rows, and no matrix is orthogonalised twice. (Liu et
al. 2025, "Muon is Scalable for LLM Training", gather each matrix on every rank that has a piece of it.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard

Orthogonalise = Callable[[Tensor], Tensor]
"""[count, rows, columns] to the same shape."""


def orthogonal_pieces(matrices: Sequence[DTensor], orthogonalise: Orthogonalise) -> list[Tensor]:
    """This rank's pieces of the orthogonalised matrices, which are of one shape and cut up alike."""
    mesh, placements = matrices[0].device_mesh, matrices[0].placements
    cut = [at for at, placement in enumerate(placements) if not isinstance(placement, Replicate) and mesh.size(at) > 1]
    if not cut:
        return list(orthogonalise(torch.stack([matrix.to_local() for matrix in matrices])))
    if len(cut) == 1 and placements[cut[0]] == Shard(0):
        return _by_rows(
            [matrix.to_local() for matrix in matrices], len(matrices[0]), mesh.get_group(cut[0]), orthogonalise
        )
    return [_gathered(matrix, orthogonalise) for matrix in matrices]


def _by_rows(
    pieces: Sequence[Tensor], rows: int, group: dist.ProcessGroup, orthogonalise: Orthogonalise
) -> list[Tensor]:
    """For matrices cut by rows over the group, as `torch.chunk` cuts."""
    ranks, columns = group.size(), pieces[0].shape[1]
    most_rows, share = -(-rows // ranks), -(-len(pieces) // ranks)
    mine = pieces[0].new_zeros(ranks * share, most_rows, columns)
    for padded, piece in zip(mine, pieces, strict=False):
        padded[: len(piece)] = piece
    dealt = torch.empty_like(mine)
    dist.all_to_all_single(dealt, mine, group=group)
    # From [ranks, share, rows of each, columns] to whole matrices, and back.
    whole = dealt.view(ranks, share, most_rows, columns).transpose(0, 1).reshape(share, ranks * most_rows, columns)
    whole[:, :rows] = orthogonalise(whole[:, :rows])
    dealt = whole.view(share, ranks, most_rows, columns).transpose(0, 1).contiguous()
    dist.all_to_all_single(mine, dealt, group=group)
    return [padded[: len(piece)] for padded, piece in zip(mine, pieces, strict=False)]


def _gathered(matrix: DTensor, orthogonalise: Orthogonalise) -> Tensor:
    """For a matrix cut in two ways: every rank gathers it and keeps its piece of the result."""
    whole = orthogonalise(matrix.full_tensor()[None])[0]
    everywhere = [Replicate()] * matrix.device_mesh.ndim
    copied = DTensor.from_local(whole, matrix.device_mesh, everywhere, run_check=False)
    return copied.redistribute(placements=matrix.placements).to_local()
