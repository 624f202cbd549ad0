"""Adapters and engines, each where its library is; `make integrations` runs them all."""
