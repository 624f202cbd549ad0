"""From a line to its answer: reading, dispatching, ordering, scheduling, writing. It knows models by type only."""
