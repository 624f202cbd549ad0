"""The conformance suite: `python -m bridge_client.testing.conformance worker -- embed-worker`.

It plays transcripts to any worker, or, as the worker, to any client behind an adapter, and says which rules of
`docs/protocol.md` are kept. `docs/hosts.md` tells how to use it for a worker or a client of one's own.
"""
