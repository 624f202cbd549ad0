"""The exceptions that the worker raises on purpose. Each knows the error code of its answer or its exit status."""

from __future__ import annotations

import errno
import os
import re
from typing import TypeVar

from embed_worker.protocol import ErrorCode

_Error = TypeVar("_Error", bound=BaseException)


class RequestFailed(Exception):
    """One request cannot be answered with vectors; the worker goes on.

    Attributes:
        code: What the answer's `code` will be.
        index: The input that is to blame, where one is.
    """

    def __init__(self, code: ErrorCode, message: str, *, index: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.index = index


class InvalidInput(RequestFailed):
    """A text that the model cannot take; `index` is its place among those that were given together."""

    def __init__(self, message: str, *, index: int) -> None:
        super().__init__(ErrorCode.INVALID_REQUEST, message, index=index)


class NothingLeft(RequestFailed):
    """A prompt that the model leaves out of its vectors, and that leaves nothing of any text."""

    def __init__(self, message: str) -> None:
        super().__init__(ErrorCode.NON_FINITE_EMBEDDING, message, index=0)


class ModelError(Exception):
    """A model folder was found and cannot be used; the message is one sentence that says why and what to do."""


class ModelNotFoundError(ModelError):
    """No models folder holds a model of this name."""


class ConfigError(Exception):
    """An option or a setting cannot be used; the message is one sentence."""


class OutOfMemoryError(Exception):
    """The runtime could not allocate memory. Its state is unknown, so the worker answers what is live and exits."""


def is_shortage(error: BaseException) -> bool:
    """Whether the machine lacked memory or threads for a moment: the same may succeed later.

    Python raises plain RuntimeErrors and ImportErrors for what the system refuses.
    """
    if isinstance(error, MemoryError | OutOfMemoryError):
        return True
    if isinstance(error, OSError) and error.errno in (errno.ENOMEM, errno.EAGAIN):
        return True
    signs = ("can't start new thread", "failed to map segment", "cannot allocate memory")
    return any(sign in str(error).lower() for sign in signs)


def brief(error: BaseException) -> str:
    """Shorten what a library says to one line, without onnxruntime's codes and without the path of a file."""
    line = re.sub(r"\[ONNXRuntimeError\] : \d+ : \w+ : ", "", " ".join(str(error).split()))
    # Which line of its source has noticed it is for its makers.
    line = re.sub(r"\S*/onnxruntime/core/\S+:\d+ ", "", line)
    line = re.sub(
        r"Non-zero status code returned while running (\w+) node\. Name:'(.*?)' Status Message: ", r"\1 \2: ", line
    )
    return re.sub(r"^(Load model from|Failed to load model from) .*? failed: ?", "", line)[:300]


def reason_of(error: BaseException) -> str:
    """Return why something failed that nobody foresaw: the system's own reason and the file's name, else the type."""
    if not isinstance(error, OSError) or not error.strerror:
        return type(error).__name__
    name = os.path.basename(os.fsdecode(error.filename))[:80] if isinstance(error.filename, str | bytes) else ""
    return f"{error.strerror}: {name!a}" if name else error.strerror


def without_frames(error: _Error) -> _Error:
    """Take from an error that is kept the frames that it went through, its causes' included; return it.

    They hold what was read until then: memory, and mapped files, which nobody may remove on Windows.
    """
    error.__traceback__ = error.__cause__ = error.__context__ = None
    return error


def printable(text: str) -> str:
    """Return a text as one line that no terminal and no reader of logs takes for more than text."""
    return CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


# Of ISO 646 and 8859, and what Unicode calls the ends of lines and of paragraphs; overrides of writing direction.
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
