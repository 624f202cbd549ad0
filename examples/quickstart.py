"""The smallest useful program: embed a few texts, then a stream of them.

Run it with `python examples/quickstart.py`.
"""

from bridge_client import EmbedClient

with EmbedClient(model="all-MiniLM-L6-v2") as client:
    vectors = client.embed(["A cat sits on the mat.", "A kitten rests on the rug.", "Interest rates were raised."])
    print(vectors.shape, vectors.dtype)  # (3, 384) float32, one row for each text, of unit length
    print("cat and kitten:", round(float(vectors[0] @ vectors[1]), 2))
    print("cat and rates: ", round(float(vectors[0] @ vectors[2]), 2))

    lines = (f"line {number} of a file that need not fit into memory" for number in range(1000))
    rows = 0
    for block in client.embed_iter(lines):  # in order, pipelined
        rows += len(block)
    print("embedded", rows, "lines;", client)
