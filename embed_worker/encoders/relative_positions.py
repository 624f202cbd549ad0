"""The relative positions of MPNet: every head adds to a score a number that depends on how far apart two tokens are.

Near distances have a number each, farther ones share a bucket. P is the longest sequence, T the length of this one.
"""

from __future__ import annotations

import math

import numpy as np

from embed_worker.encoders.checkpoint import Floats, Int64
from embed_worker.encoders.onnx_writer import GraphWriter

_MAX_DISTANCE = 128


def bucket_of(distances: Int64, buckets: int) -> Int64:
    """Return the row of the table for each distance, key minus query: the same shape, below `buckets`.

    Half of the buckets are for keys before the query, half for those behind it; half of each is for single distances,
    the rest grows with the logarithm and ends at 128.

    Reference: transformers, `MPNetEncoder.relative_position_bucket`; Raffel et al., T5. The logarithm is float32's as
    there: it decides on which side of a limit a distance lies.
    """
    side = buckets // 2
    single = side // 2
    far = np.abs(distances)
    ratio = np.log(np.maximum(far, 1).astype(np.float32) / np.float32(single))
    grown = single + (ratio / np.float32(math.log(_MAX_DISTANCE / single)) * np.float32(side - single)).astype(np.int64)
    rows: Int64 = np.where(far < single, far, np.minimum(grown, side - 1)) + (distances > 0) * side
    return rows


def write_relative_bias(graph: GraphWriter, table: Floats, max_tokens: int) -> str:
    """Add what the distances add to the scores, (heads, T, T), to a graph; a text beyond P fails in the lookup.

    Args:
        graph: Where to.
        table: (buckets, heads).
        max_tokens: P.
    """
    every = np.arange(-max_tokens + 1, max_tokens)
    by_distance = table[bucket_of(every, len(table))].T.astype(np.float32)
    zero, one = (graph.constant(name, np.array(value, np.int64)) for name, value in (("zero", 0), ("one", 1)))
    length = graph.node("places.length", "Gather", graph.node("places.shape", "Shape", "input_ids"), one)
    places = graph.node("places", "Range", zero, length, one)
    first = graph.constant("distances.first", np.array(max_tokens - 1, np.int64))
    queries = graph.node("places.column", "Unsqueeze", places, graph.constant("places.axis", np.array([1], np.int64)))
    distances = graph.node("distances", "Sub", graph.node("distances.raised", "Add", places, first), queries)
    return graph.node("relative_bias", "Gather", graph.constant("by_distance", by_distance), distances, axis=1)
