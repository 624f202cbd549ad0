"""Many texts as one piece of UTF-8: a Python string of one letter takes fifty bytes."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from typing import TypeAlias


class PackedTexts:
    """A list of texts, each decoded when it is asked for."""

    __slots__ = ("_ends", "_utf8")

    def __init__(self, texts: Sequence[str]) -> None:
        encoded = [text.encode() for text in texts]
        end, self._ends = 0, array("I")
        for each in encoded:
            end += len(each)
            self._ends.append(end)
        self._utf8 = b"".join(encoded)

    def __len__(self) -> int:
        """Return how many texts there are."""
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        """Return one text, by its index from the front."""
        return self._utf8[self._ends[index - 1] if index else 0 : self._ends[index]].decode()

    def __iter__(self) -> Iterator[str]:
        """Decode one after the other."""
        return (self[index] for index in range(len(self)))

    @property
    def size_bytes(self) -> int:
        """What they hold of memory."""
        return len(self._utf8) + len(self._ends) * self._ends.itemsize


Texts: TypeAlias = list[str] | PackedTexts
