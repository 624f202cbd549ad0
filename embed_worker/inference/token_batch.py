"""Token ids of some texts, padded to one matrix, and where in it their tokens are. B and T are texts and tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from embed_worker.inference.pooling import Int64, token_counts

_ONES = np.ones((1, 512), np.int64)  # the masks of most texts that run alone are cut from it
_ONES.flags.writeable = False


@dataclass(frozen=True, slots=True, eq=False)
class TokenBatch:
    """Padded token ids of some texts.

    Attributes:
        ids: (B, T) int64.
        mask: (B, T) int64, 1 for a token and 0 for padding.
        skipped: (B,) int64, the leading tokens of each text that pooling leaves out; None where there are none.
    """

    ids: Int64
    mask: Int64
    skipped: Int64 | None = None

    @classmethod
    def of_rows(cls, rows: Sequence[Int64], *, pad_id: int, pad_left: bool, skipped: Sequence[int] = ()) -> TokenBatch:
        """Pad rows to the longest.

        Args:
            rows: At least one, (tokens,) each.
            pad_id: What stands in the padding.
            pad_left: Whether padding goes before a text.
            skipped: See `TokenBatch`, for each row; empty where there are none.
        """
        if len(rows) == 1:  # nothing to pad
            (row,) = rows
            mask = _ONES[:, : len(row)] if len(row) <= _ONES.size else np.ones((1, len(row)), np.int64)
            return cls(row[None], mask, np.array(skipped, np.int64) if any(skipped) else None)
        longest = max(len(row) for row in rows)
        ids = np.full((len(rows), longest), pad_id, np.int64)
        mask = np.zeros_like(ids)
        for place, row in enumerate(rows):
            here = slice(longest - len(row), None) if pad_left else slice(len(row))
            ids[place, here] = row
            mask[place, here] = 1
        return cls(ids, mask, np.array(skipped, np.int64) if any(skipped) else None)

    def only(self, rows: Int64 | slice) -> TokenBatch:
        """Take some of the texts, as wide as all are."""
        return TokenBatch(self.ids[rows], self.mask[rows], None if self.skipped is None else self.skipped[rows])

    def padded(self, rows: int, tokens: int, *, pad_id: int, pad_left: bool) -> TokenBatch:
        """Pad to a larger shape: texts with masked tokens, and the batch with copies of the first text.

        A text that is all padding would be none: some graphs give NaN for it.
        """
        count, width = self.ids.shape
        here = slice(tokens - width, None) if pad_left else slice(width)

        def pad(values: Int64, value: int) -> Int64:
            padded = np.empty((rows, tokens), np.int64)
            padded.fill(value)
            padded[:count, here] = values
            if count < rows:
                padded[count:] = padded[0]
            return padded

        skipped = self.skipped
        if skipped is not None:
            skipped = np.concatenate((skipped, np.repeat(skipped[:1], rows - count)))
        return TokenBatch(pad(self.ids, pad_id), pad(self.mask, 0), skipped)


def position_ids(ids: Int64, mask: Int64, padding_position: int | None) -> Int64:
    """Return the rows of a table of positions, wherever the padding is: (B, T) int64.

    Args:
        ids: (B, T).
        mask: (B, T), 1 for a token and 0 for padding.
        padding_position: Tokens with other ids than this one are counted, and the first gets the row behind it; the
            others get this row itself, also where a text spells out the padding token. None: all tokens are counted
            from 0, and padding gets 0.

    Reference: transformers, `create_position_ids_from_input_ids`.
    """
    if padding_position is None:
        return np.maximum(token_counts(mask) - 1, 0)
    positions: Int64 = token_counts(mask * (ids != padding_position)) + padding_position
    return positions
