"""Search by meaning: embed a corpus once, then each query, and compare with one matrix product.

Run it with `python examples/semantic_search.py "how do I get my money back?"`.
"""

import sys

import numpy as np

from bridge_client import EmbedClient, PoisonedInputError, WorkerDiedError

CORPUS = [
    "Our refund policy: return the item within 30 days and the price is repaid in full.",
    "Parcels leave our warehouse on the day of the order.",
    "The battery lasts about ten hours on a single charge.",
    "To reset the password, follow the link on the sign-in page.",
    "The guarantee covers defects of material for two years.",
    "Keep the device away from water: it is not waterproof.",
    "Our support answers e-mails on working days between nine and five.",
    "Spare parts can be ordered for seven years after the last sale.",
]


def search(client: EmbedClient, query: str, vectors: np.ndarray, most: int = 3) -> list[tuple[float, str]]:
    """Return the closest texts with their cosine similarities, the closest first."""
    similarities = vectors @ client.embed([query])[0]  # all vectors have unit length
    return [(float(similarities[index]), CORPUS[index]) for index in np.argsort(-similarities)[:most]]


def main(query: str) -> None:
    """Index the corpus and answer one query."""
    with EmbedClient() as client:
        try:
            vectors = client.embed(CORPUS)
        except PoisonedInputError as error:  # one text kills the worker; the others have their vectors all the same
            raise SystemExit(f"text {error.index} cannot be embedded") from error
        except WorkerDiedError as error:
            raise SystemExit(f"no vectors: {error}") from error
        print("fingerprint of the index:", client.info()["fingerprint"])  # keep it with the vectors: never mix two
        for similarity, text in search(client, query, vectors):
            print(f"{similarity:.2f}  {text}")


if __name__ == "__main__":
    main(" ".join(sys.argv[1:]) or "how do I get my money back?")
