"""Rotary positions (RoPE), in a graph and in numpy. B, T and W are batch, tokens and the width of a head.

A pair is a component of a head and the one W / 2 further on; a position turns each pair by an angle of its own.

Reference: Su et al., RoFormer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embed_worker.encoders.checkpoint import Floats
from embed_worker.encoders.onnx_writer import GraphWriter


def inv_freq(theta: float, head_dim: int) -> Floats:
    """Return the angles by which the pairs of a head turn from one position to the next: (W / 2,) float32.

    Computed in float32 as transformers does.
    """
    exponents = np.arange(0, head_dim, 2).astype(np.float32) / np.float32(head_dim)
    angles: Floats = np.float32(1) / np.float32(theta) ** exponents
    return angles


def rope_of(tokens: int, frequencies: Floats) -> NDArray[np.complex128]:
    """Return the rotations of the positions from 0 as unit numbers: (T, W / 2)."""
    angles = np.arange(tokens)[:, None] * frequencies.astype(np.float64)
    rotations: NDArray[np.complex128] = np.cos(angles) + 1j * np.sin(angles)
    return rotations


def apply_rope(heads: Floats, rope: NDArray[np.complex128]) -> Floats:
    """Rotate the pairs of (heads, T, W) by (T, W / 2) unit numbers."""
    first, second = np.split(heads, 2, axis=2)
    rotated = (first + 1j * second) * rope
    return np.concatenate([rotated.real, rotated.imag], axis=2)


def write_positions(graph: GraphWriter) -> str:
    """Count the tokens of each text by the mask, from 0: (B, 1, T, 1) float32. Padding before a text gets 0."""
    mask = graph.cast("attention_mask.float32", "attention_mask")
    counts = graph.node("counts", "CumSum", mask, graph.constant("one", np.array(1, np.int64)))
    positions = graph.node("positions", "Relu", graph.node("counts.from_0", "Sub", counts, graph.scalar(1)))
    axes = graph.constant("positions.axes", np.array([1, 3], np.int64))
    return graph.node("positions.column", "Unsqueeze", positions, axes)


@dataclass(frozen=True, slots=True)
class WrittenRope:
    """The names of cosines and sines in a graph, (B, 1, T, W / 2) each."""

    cosines: str
    sines: str

    @classmethod
    def write(cls, graph: GraphWriter, positions: str, frequencies: Floats, scope: str = "") -> WrittenRope:
        """Compute them from positions, (B, 1, T, 1)."""
        # The names in a graph are part of its bytes, and so of a model's fingerprint: they stay.
        stored = graph.constant(f"{scope}rotation_speeds", frequencies)
        angles = graph.node(f"{scope}angles", "Mul", positions, stored)
        return cls(graph.node(f"{scope}cosines", "Cos", angles), graph.node(f"{scope}sines", "Sin", angles))

    def write_applied(self, graph: GraphWriter, name: str, heads: str, head_dim: int) -> str:
        """Rotate the pairs of (B, heads, T, W)."""
        first, second = graph.halves(f"{name}_pairs", heads, head_dim)
        name = f"{name}_turned"

        def product(part: str, half: str, factor: str) -> str:
            return graph.node(f"{name}.{part}", "Mul", half, factor)

        left = product("cos_first", first, self.cosines), product("sin_second", second, self.sines)
        right = product("cos_second", second, self.cosines), product("sin_first", first, self.sines)
        rotated = graph.node(f"{name}.first", "Sub", *left), graph.node(f"{name}.second", "Add", *right)
        return graph.node(name, "Concat", *rotated, axis=-1)
