"""From texts to vectors: token ids, the graph, pooling, normalisation."""
