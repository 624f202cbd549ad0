"""Log lines on standard error, as text or as JSON: ids, counts and lengths, never texts or vectors.

A message of ours is a template, `model loaded name=%s ms=%.0f`: for people it is filled in, and for programs the words
are the event, and what has a name is a field.
"""

from __future__ import annotations

import io
import logging
import re
import select
import sys
import time
from collections.abc import Iterator

import orjson

from embed_worker.config import LogFormat
from embed_worker.errors import CONTROL, printable

_OURS = ("embed_worker", "bridge_client")
_DETAIL = "detail"  # what a template has without a name
_PATIENCE_S = 0.5  # with a pipe that is full; what is seen to every 0.25 s must not wait for longer

_PLACEHOLDER = r"%[-#0 +]*\d*(?:\.\d+)?[a-zA-Z]"
_FIELD = re.compile(rf"(?:\b(?P<name>\w+)=)?(?P<value>{_PLACEHOLDER})|\b(?P<fixed>\w+)=(?P<constant>[\w.-]+)")


class JsonFormatter(logging.Formatter):
    """One JSON object a line: `time` (UTC), `level`, `logger`, `message`, the fields, `traceback` where there is one.

    `message` is the event alone, the same text whatever the fields are; records of other packages are filled in there.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Write one record."""
        members: dict[str, object] = {
            "time": f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{record.msecs:03.0f}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        members |= dict(_event(record))
        if record.exc_info:
            members["traceback"] = self.formatException(record.exc_info)
        # A path that is not text in the system's encoding is a string that no JSON can hold.
        line = orjson.dumps({name: _well_formed(value) for name, value in members.items()}).decode()
        # JSON leaves some of them as they are, and a log is also looked at in terminals.
        return CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", line)


class TextFormatter(logging.Formatter):
    """One line a record: what a folder or an id is called cannot forge another, nor move a terminal's cursor."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Write all but a traceback."""
        return printable(super().formatMessage(record))

    def formatException(self, ei: object) -> str:
        """Write a traceback, indented: no line of what an error says begins as a record does."""
        lines = super().formatException(ei).split("\n")  # type: ignore[arg-type]
        return "\n".join(f"  {printable(line)}" for line in lines)


def _event(record: logging.LogRecord) -> Iterator[tuple[str, object]]:
    """Yield the event as `message`, and the fields that its template names."""
    template, values = record.msg, record.args
    is_ours = str(record.name).partition(".")[0] in _OURS and isinstance(values, tuple | None)
    found = list(_FIELD.finditer(template)) if is_ours and isinstance(template, str) else []
    places = [match for match in found if match["value"] is not None]
    if not any(match["name"] or match["fixed"] for match in found) or len(places) != len(values or ()):
        yield "message", record.getMessage()
        return
    words = " ".join(_FIELD.sub("", template).split())
    filled = iter(values or ())
    fields = [
        (match["fixed"], match["constant"])
        if match["value"] is None
        else (match["name"] or _DETAIL, _value(match["value"], next(filled)))
        for match in found
    ]
    event = re.sub(r" ?[:;,]*$| (?=[;,])", "", words)
    if not event:  # a sentence about a model, for instance
        event = str(dict(fields).get(_DETAIL) or record.getMessage())
        fields = [(name, value) for name, value in fields if name != _DETAIL]
    yield "message", event
    yield from fields


def _value(placeholder: str, value: object) -> object:
    """Return a number as the template writes it, and anything else as text."""
    if isinstance(value, bool) or not isinstance(value, int | float) or placeholder.endswith("s"):
        return value if isinstance(value, bool | int | float) else str(value)
    written = placeholder % value
    return int(written) if written.strip().lstrip("+-").isdigit() else float(written)


def _well_formed(value: object) -> object:
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


class PatientHandler(logging.StreamHandler[io.TextIOWrapper]):
    """Writes records for as long as somebody reads them: whoever logs must not wait for ever for a pipe that is full.

    What does not fit within half a second is lost, and from then on whatever does not fit at once.
    """

    def __init__(self, stream: io.TextIOWrapper) -> None:
        super().__init__(stream)
        self._poll = select.poll()
        self._poll.register(stream.fileno(), select.POLLOUT)
        self._patience_s = _PATIENCE_S

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record, or as much of it as there is room for."""
        try:
            line = (self.format(record) + "\n").encode(self.stream.encoding, self.stream.errors or "strict")
            for start in range(0, len(line), select.PIPE_BUF):  # so much a pipe takes without a wait once it takes any
                if not self._poll.poll(self._patience_s * 1e3):
                    self._patience_s = 0.0
                    return
                self.stream.buffer.write(line[start : start + select.PIPE_BUF])
                self.stream.buffer.flush()
            self._patience_s = _PATIENCE_S
        except Exception:  # noqa: BLE001 - as of every handler: a log that fails must not fail what is logged
            self.handleError(record)


def set_up_logging(level: str, log_format: LogFormat) -> None:
    """Send the records of the whole process to standard error, in JSON as UTF-8, whatever the system's encoding is."""
    handler: logging.Handler = logging.StreamHandler(sys.stderr)
    if isinstance(sys.stderr, io.TextIOWrapper):
        is_json = log_format is LogFormat.JSON
        sys.stderr.reconfigure(encoding="utf-8" if is_json else None, errors="backslashreplace", newline="\n")
        if sys.platform != "win32":  # select() knows only sockets there
            handler = PatientHandler(sys.stderr)
    text = TextFormatter("%(asctime)s %(levelname)s %(name)s %(message)s")
    handler.setFormatter(JsonFormatter() if log_format is LogFormat.JSON else text)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.raiseExceptions = False  # a closed standard error must not turn into tracebacks
