"""Runs a short session in a shell and draws it as docs/images/session.svg: `python examples/shell/record.py`.

It needs `embed-worker` beside the running interpreter or on the PATH.
A test runs the session again and compares all but the numbers.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.sax.saxutils import escape

COMMANDS = [
    """echo '{"inputs": ["hello world"]}' | embed-worker""",
    """echo '{"inputs": "hello", "dimension": 4}' | embed-worker""",
    """echo '{"method": "info"}' | embed-worker""",
    "printf 'a cat\\na dog\\na house\\n' > texts.txt",
    "embed-worker embed texts.txt -o vectors.jsonl -q",
    "head -c 60 vectors.jsonl",
    "embed-worker chekc",
]
COLUMNS = 100
MOST_ROWS = 2  # of one line; what is longer ends with an ellipsis
PICTURE = Path(__file__).resolve().parents[2] / "docs" / "images" / "session.svg"


def session() -> list[str]:
    """Run the commands; return the rows that a terminal of COLUMNS shows, long lines cut after MOST_ROWS."""
    shown = []
    environment = dict(os.environ, PATH=str(Path(sys.executable).parent) + os.pathsep + os.environ["PATH"])
    with tempfile.TemporaryDirectory() as folder:
        for command in COMMANDS:
            ended = subprocess.run(
                ["bash", "-c", command],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                encoding="utf-8",
                timeout=120,
                check=False,
            )
            shown += [f"$ {command}", *ended.stdout.splitlines()]
    return [row for line in shown for row in rows_of(line)]


def rows_of(line: str) -> list[str]:
    most = COLUMNS * MOST_ROWS
    line = line if len(line) <= most else line[: most - 1] + "…"
    return [line[start : start + COLUMNS] for start in range(0, max(len(line), 1), COLUMNS)]


def draw(lines: list[str]) -> str:
    """Return an SVG of the lines, readable on a light and on a dark page, with no font or file from elsewhere."""
    width, height = COLUMNS * 8 + 32, len(lines) * 18 + 52
    rows = "\n".join(
        f'<text x="16" y="{number * 18 + 48}" fill="{"#7ee787" if line.startswith("$ ") else "#d0d7de"}" '
        f'xml:space="preserve">{escape(line)}</text>'
        for number, line in enumerate(lines)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="ui-monospace, SFMono-Regular, Menlo, Consolas, monospace" font-size="13">\n'
        "<title>a terminal session with embed-worker</title>\n"
        f'<rect width="{width}" height="{height}" rx="8" fill="#0d1117"/>\n'
        '<circle cx="20" cy="16" r="5" fill="#ff5f56"/><circle cx="38" cy="16" r="5" fill="#ffbd2e"/>'
        '<circle cx="56" cy="16" r="5" fill="#27c93f"/>\n'
        f"{rows}\n</svg>\n"
    )


if __name__ == "__main__":
    PICTURE.write_text(draw(session()), "utf-8")
