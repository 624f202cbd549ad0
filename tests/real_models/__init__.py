"""Published weights that lie on package registries, served by a real worker and held against sentence-transformers."""
