"""Write embed_worker/model_files/tokenizer_classes.json: which class transformers takes for a tokenizer, and which
builds it. For the environment of `make reference`: `python -m tests.reference.tokenizer_classes`.
"""

from __future__ import annotations

import json
import os
import re
from collections import defaultdict
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import transformers
from transformers.models.auto.tokenization_auto import (
    MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS,
    TOKENIZER_MAPPING_NAMES,
    tokenizer_class_from_name,
)
from transformers.tokenization_utils_tokenizers import TokenizersBackend

OUT = Path(__file__).parents[2] / "embed_worker/model_files/tokenizer_classes.json"
FROM_THE_JSON = "TokenizersBackend"
IN_PYTHON = "PythonBackend"
# Names that folders say and `dir` does not list: transformers finds them when it is asked.
OLD_NAMES = ["Bart", "Bloom", "ConvBert", "DPRContextEncoder", "DPRReader", "DistilBert", "Electra", "FNet", "LED"]
OLD_NAMES += ["LayoutLM", "Longformer", "Lxmert", "MT5", "MobileBert", "Mvp", "RetriBert", "SqueezeBert"]


def builder(name: str) -> str | None:
    """Return the class whose constructor builds a tokenizer of this name; None where transformers has no such class."""
    found = tokenizer_class_from_name(name)
    if not isinstance(found, type):
        return None
    if found.__name__ == IN_PYTHON:  # `PreTrainedTokenizerFast` without its end: the general class of either kind
        return FROM_THE_JSON
    if not issubclass(found, TokenizersBackend):
        return IN_PYTHON
    # A class without a constructor of its own takes tokenizer.json as it is, also below one that has one.
    return str(found.__name__) if "__init__" in found.__dict__ else FROM_THE_JSON


def main() -> None:
    """Write the file."""
    names = {name for name in dir(transformers) if re.fullmatch(r"\w+Tokenizer(Fast)?", name)}
    names |= {name for name in TOKENIZER_MAPPING_NAMES.values() if name}
    names |= {f"{name}Tokenizer" for name in OLD_NAMES}
    builders, registered = defaultdict(list), defaultdict(list)
    for name in sorted({name.removesuffix("Fast") for name in names}):
        if (found := builder(name)) is not None:
            builders[found].append(name)
    for model_type, name in TOKENIZER_MAPPING_NAMES.items():
        registered[(name or IN_PYTHON).removesuffix("Fast")].append(model_type)
    document = {
        "transformers": transformers.__version__,
        "builders": builders,
        "registered": registered,
        "mislabelled": sorted(MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS),
    }
    OUT.write_text(json.dumps(document, sort_keys=True, separators=(",", ":")).replace("],", "],\n") + "\n", "utf-8")


if __name__ == "__main__":
    main()
