"""A corpus into files of vectors, over a supervised worker: what `embed-worker embed` does."""
