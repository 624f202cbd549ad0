"""Write `models/references`: `python -m tests.real_models.make_references [NAME …]`, after `make reference`.

For each published model the arbiter embeds the tools' sample texts by themselves, and some of them with the prompts
`query` and `document` (where that is not empty). Vectors are kept as float16, which costs 1e-7 of cosine.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from embed_worker.model_files.known_models import find_known_model
from embed_worker.tools.texts import SAMPLE_TEXTS, TEXTS_BY_KIND
from tests.real_models.fetch import fetch
from tests.real_models.published import PUBLISHED
from tests.reference.__main__ import PYTHON, ROOT

_PROMPTED = [*TEXTS_BY_KIND["sentence"][:4], TEXTS_BY_KIND["another script"][1], TEXTS_BY_KIND["long"][2]]


def main() -> None:
    """Make the files of the models that are named, or of all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--python", type=Path, default=PYTHON, help="the arbiter's interpreter (%(default)s)")
    args = parser.parse_args()
    for name in args.names or PUBLISHED:
        document = _ask_arbiter(args.python, name)
        file = ROOT / "models/references" / f"{name}.json"
        file.write_text(json.dumps(document, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        print(f"{file}: {file.stat().st_size / 1e3:.0f} kB")


def _ask_arbiter(python: Path, name: str) -> dict[str, Any]:
    model, folder, known = PUBLISHED[name], fetch(name), find_known_model(name)
    prompts = {} if known is None else dict(known.prompts)
    asked: list[dict[str, Any]] = [{"texts": SAMPLE_TEXTS}]
    asked += [
        {"texts": _PROMPTED, "request": {"prompt_name": prompt}}
        for prompt in ("query", "document")
        if prompt == "query" or prompts.get(prompt)  # one that must be empty is enough
    ]
    with tempfile.TemporaryDirectory() as scratch:
        sets, answer = Path(scratch, "sets.json"), Path(scratch, "answer.json")
        sets.write_text(json.dumps(asked), encoding="utf-8")
        arguments = ["-m", "tests.reference.arbiter", str(folder), str(answer), "--sets", str(sets)]
        if prompts:
            arguments += ["--prompts", json.dumps(prompts)]
        subprocess.run([str(python), *arguments], check=True, cwd=ROOT)
        document = json.loads(answer.read_bytes())
    packages = ", ".join(package.name for package in model.packages)
    return {
        "format": 1,
        "name": name,
        "source": f"{model.repository} ({packages}), {document['reference']}",
        "model": document["model"] | {"weights": {file: _sha256(folder / file) for file in model.sha256}},
        "sets": [_packed(members) for members in document["sets"]],
    }


def _packed(members: dict[str, Any]) -> dict[str, Any]:
    rows = np.array(members.pop("embeddings"), "<f2")
    return members | {"embeddings_float16": [base64.b64encode(row.tobytes()).decode() for row in rows]}


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


if __name__ == "__main__":
    main()
