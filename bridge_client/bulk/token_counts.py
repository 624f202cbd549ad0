"""What the worker says of the tokens of texts, as chunks need it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from bridge_client.bulk.chunks import Tokens
from bridge_client.client import EmbedClient
from bridge_client.errors import PoisonedInputError, RequestError


class WorkerTokens:
    """The tokens of texts; None for a text that the worker refuses.

    Attributes:
        fixed: How many tokens every text has beside its own: those of the prompt, and the special ones.
    """

    def __init__(
        self, client: EmbedClient, *, input_type: Literal["query", "document"] | None, prompt_name: str | None
    ) -> None:
        """Ask for the tokens of nothing.

        Raises:
            BridgeError: There is no such prompt, or no worker.
        """
        self._client = client
        self._input_type = input_type
        self._prompt_name = prompt_name
        self.fixed = self._ask([""])[0].count

    def __call__(self, texts: Sequence[str]) -> list[Tokens | None]:
        """Count the tokens of texts and find them.

        Raises:
            BridgeError: There is no worker that could.
        """
        found: list[Tokens | None] = [None] * len(texts)
        rows = list(range(len(texts)))
        while rows:
            try:
                answers = self._ask([texts[row] for row in rows])
            except RequestError as error:
                if error.index is None or error.retryable:
                    raise
                del rows[error.index]
            except PoisonedInputError as error:
                rows = [row for place, row in enumerate(rows) if place not in error.indexes]
            else:
                for row, tokens in zip(rows, answers, strict=True):
                    found[row] = Tokens(tokens.count - self.fixed, tokens.offsets)
                break
        return found

    def _ask(self, texts: Sequence[str]) -> list[Tokens]:
        answer = self._client.tokenize(
            texts, offsets=True, truncate=False, input_type=self._input_type, prompt_name=self._prompt_name
        )
        assert answer.offsets is not None
        return [Tokens(count, offsets) for count, offsets in zip(answer.tokens, answer.offsets, strict=True)]
