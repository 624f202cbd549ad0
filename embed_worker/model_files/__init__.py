"""A model folder, read truthfully: what it says, what it leaves unsaid, and whether its files are the ones meant."""
