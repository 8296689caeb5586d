"""Muon's steps of matrices that are cut up, against those of whole ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from liuyi.train.optim import orthogonalise
from liuyi.train.parallel.orthogonal import orthogonal_pieces
from liuyi.train.world import Layout, World, join
from ranks import run_ranks

SHAPES = [(8, 12), (9, 4), (1, 8)]


def matrices(count: int, rows: int, columns: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(count + rows)
    return [torch.randn(rows, columns, generator=generator) for _ in range(count)]


def orthogonal(whole: Tensor) -> Tensor:
    tall = whole.shape[-2] > whole.shape[-1]
    return orthogonalise(whole.mT).mT if tall else orthogonalise(whole)


def errors(layout: Layout, cut: dict[str, Any], count: int) -> list[tuple[float, int]]:
    world = join(layout)
    return [largest_error(world, cut, count, rows, columns) for rows, columns in SHAPES]


def largest_error(world: World, cut: dict[str, Any], count: int, rows: int, columns: int) -> tuple[float, int]:
    """How far the pieces are from those of the whole matrices, and how many matrices this rank orthogonalised."""
    assert world.mesh is not None
    layout = world.layout
    whole = matrices(count, rows, columns)
    names = [name for name in ("replicate", "shard", "tensor") if getattr(layout, name) > 1]
    placements = [cut.get(name, Replicate()) for name in names]
    parts = [distribute_tensor(matrix, world.mesh[tuple(names)], placements, src_data_rank=None) for matrix in whole]
    done = 0

    def counted(stack: Tensor) -> Tensor:
        nonlocal done
        done += len(stack)
        return orthogonal(stack)

    error = 0.0
    for matrix, piece, part in zip(whole, orthogonal_pieces(parts, counted), parts, strict=True):
        expected = distribute_tensor(orthogonal(matrix[None])[0], part.device_mesh, placements, src_data_rank=None)
        assert isinstance(expected, DTensor)
        assert piece.shape == part.to_local().shape
        error = max(error, (piece - expected.to_local()).abs().max().item() if piece.numel() else 0.0)
    return error, done


@pytest.mark.parametrize(
    ("layout", "cut", "each"),
    [
        (Layout(shard=2), {"shard": Shard(0)}, 3),
        (Layout(replicate=2, shard=2), {"shard": Shard(0)}, 3),
        (Layout(shard=4), {"shard": Shard(0)}, 2),
        (Layout(tensor=2), {"tensor": Shard(1)}, 5),
        (Layout(shard=2, tensor=2), {"shard": Shard(0), "tensor": Shard(1)}, 5),
    ],
)
def test_pieces_are_those_of_whole_matrices(layout: Layout, cut: dict[str, Any], each: int) -> None:
    """Also where ranks do not divide the rows or the matrices, or have no row at all."""
    for found in run_ranks(layout.size, errors, layout, cut, 5):
        for error, done in found:
            assert error < 1e-5
            assert done == each
