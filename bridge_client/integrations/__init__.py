"""Adapters for frameworks, databases and engines. Each needs its own library, and is imported by who has it.

They hold options and no client, take `shared_client`, and never close it: what is copied to another process works
there. `prometheus` alone is given the client that it watches.
"""
