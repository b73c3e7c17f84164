"""What the contestants have in common: a model shape, a batch, and the bytes they read."""

import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from bytemtp.common.settings import ModelConfig, Topology


@dataclass(frozen=True)
class Shape:
    """A model and a batch.  The default is the one that peers are compared at."""

    dim: int = 256
    """width"""
    layers: int = 8
    """transformer layers in all"""
    heads: int = 4
    """attention heads"""
    kv_heads: int = 0
    """key/value heads; 0 means as many as heads"""
    ffn: int = 704
    """inner width of the feed-forward layer"""
    seq: int = 1024
    """bytes a sequence"""
    batch: int = 4
    """sequences a step"""

    def config(self, n_future: int, topology: Topology) -> ModelConfig:
        """Of ours.  UserError for a shape that no model has."""
        return ModelConfig(self.dim, self.layers, self.heads, self.kv_heads, self.ffn, n_future, topology)

    def check(self, counts: Iterable[int], topologies: Iterable[Topology]) -> None:
        """UserError unless there are models of all numbers of heads and topologies."""
        for topology in topologies:
            for n in counts:
                self.config(n, topology)

    def source_files(self) -> list[Path]:
        """Real text that every machine has: the top level of its Python library."""
        return sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))

    def matrix_flops(self) -> int:
        """Operations of a training step's matrix products, one head: 6 a weight and byte (forward 2, backward 4)."""
        heads_and_kv = 2 + 2 * (self.kv_heads or self.heads) / self.heads
        layer = self.dim * (heads_and_kv * self.dim + 3 * self.ffn)
        return int(6 * self.batch * self.seq * (self.layers * layer + self.dim * 264))

    def attention_flops(self) -> int:
        """Operations of causal attention: 2 products forward, 5 backward, over half of the s x s square."""
        return 7 * self.batch * self.layers * self.dim * self.seq**2
