"""The shapes that CoreML compiles a graph for: numbers of texts and of tokens. All of it is pure."""

from __future__ import annotations

from dataclasses import dataclass

# Beyond 8 texts attention has come out wrong on the GPU (apple/coremltools#2650), and every shape takes time and disk.
BATCHES = (1, 8)
LENGTHS = (32, 64, 128, 256, 512)

# What CoreML may take of the CPU's time to be worth it.
MAX_SPEED_RATIO = 0.9


@dataclass(frozen=True, slots=True)
class Shape:
    """A number of texts and a number of tokens."""

    batch: int
    length: int

    def __str__(self) -> str:
        return f"{self.batch}x{self.length}"


SHAPES = tuple(Shape(batch, length) for batch in BATCHES for length in LENGTHS)


def shape_for(rows: int, tokens: int) -> Shape | None:
    """Find the smallest shape that takes a batch; None where none does."""
    return next((shape for shape in SHAPES if shape.batch >= rows and shape.length >= tokens), None)


def buckets_of(max_tokens: int) -> list[Shape]:
    """Return the shapes that texts of so many tokens can need, the shortest first."""
    longest = next((length for length in LENGTHS if length >= max_tokens), LENGTHS[-1])
    return sorted((shape for shape in SHAPES if shape.length <= longest), key=lambda shape: (shape.length, shape.batch))


def is_worth(speed_ratio: float, rows: int, tokens: int, shape: Shape) -> bool:
    """Whether a batch is faster on CoreML, which pays for the padding, than on the CPU, which does not.

    Args:
        speed_ratio: CoreML's time over the CPU's for a full batch of the shape.
        rows: Of the batch.
        tokens: Of its rows.
        shape: What it would be padded to.
    """
    return speed_ratio <= MAX_SPEED_RATIO * (rows * tokens) / (shape.batch * shape.length)
