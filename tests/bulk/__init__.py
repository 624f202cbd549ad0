"""Tests of `embed-worker embed`."""
