"""Cells of an experiment that train in a second."""

from dataclasses import replace

from experiments.grid import Cell

SHAPE = {
    "model.dim": 16,
    "model.layers": 1,
    "model.attention_heads": 1,
    "model.ffn_dim": 16,
    "train.steps": 2,
    "train.batch_size": 2,
}
SMALL = SHAPE | {"train.seq_len": 32, "train.first_seq_len": 0}


def small(cell: Cell, **options: object) -> Cell:
    """options: in place of those of the cell's preset."""
    return replace(cell, settings=cell.settings | SMALL, options=cell.options | options)
