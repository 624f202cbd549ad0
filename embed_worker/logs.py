"""Log lines on standard error, as text or as JSON: ids, counts and lengths, never texts or vectors."""

from __future__ import annotations

import io
import logging
import sys
import time

import orjson

from embed_worker.config import LogFormat
from embed_worker.errors import printable


class JsonFormatter(logging.Formatter):
    """One JSON object a line: `time` (UTC), `level`, `logger`, `message`, and `traceback` where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """Write one record."""
        members = {
            "time": f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{record.msecs:03.0f}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            members["traceback"] = self.formatException(record.exc_info)
        # A path that is not text in the system's encoding is a string that no JSON can hold.
        return orjson.dumps({name: _well_formed(str(value)) for name, value in members.items()}).decode()


class TextFormatter(logging.Formatter):
    """One line a record: what a folder or an id is called cannot forge another, nor move a terminal's cursor."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Write all but a traceback."""
        return printable(super().formatMessage(record))


def _well_formed(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def set_up_logging(level: str, log_format: LogFormat) -> None:
    """Send the records of the whole process to standard error, in JSON as UTF-8, whatever the system's encoding is."""
    if isinstance(sys.stderr, io.TextIOWrapper):
        is_json = log_format is LogFormat.JSON
        sys.stderr.reconfigure(encoding="utf-8" if is_json else None, errors="backslashreplace", newline="\n")
    handler = logging.StreamHandler(sys.stderr)
    text = TextFormatter("%(asctime)s %(levelname)s %(name)s %(message)s")
    handler.setFormatter(JsonFormatter() if log_format is LogFormat.JSON else text)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.raiseExceptions = False  # a closed standard error must not turn into tracebacks
