"""Write tests/reference/keys.json: every key of the files of a folder that sentence-transformers reads, by its source.

For the environment of `make reference`: `python -m tests.reference.keys`. test_keys.py holds our table to the list.
"""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path

import sentence_transformers
from sentence_transformers.base import model as base_model
from sentence_transformers.base.modules.dense import Dense
from sentence_transformers.base.modules.normalize import Normalize
from sentence_transformers.base.modules.transformer import Transformer
from sentence_transformers.sentence_transformer import model as sentence_model
from sentence_transformers.sentence_transformer.modules.dropout import Dropout
from sentence_transformers.sentence_transformer.modules.layer_norm import LayerNorm
from sentence_transformers.sentence_transformer.modules.pooling import _LEGACY_POOLING_MODE_KWARGS, Pooling

OUT = Path(__file__).with_name("keys.json")
# What the loader hands to a constructor itself, whatever a file says.
GIVEN = frozenset({"self", "args", "kwargs", "model_name_or_path", "backend"})


def of_class(module: type) -> list[str]:
    """Return the arguments of a module's constructor: its file is passed to it."""
    keys = set(inspect.signature(module).parameters)
    keys |= {*getattr(module, "config_keys", ()), *getattr(module, "config_key_renames", ())}
    return sorted(keys - GIVEN)


def of_source(*names: str) -> list[str]:
    """Return the keys that the loader takes from the dictionaries of these names."""
    source = inspect.getsource(base_model) + inspect.getsource(sentence_model)
    pattern = rf"""\b(?:{"|".join(names)})(?:\.get\(|\[)\s*"(\w+)\""""
    return sorted(set(re.findall(pattern, source)))


def main() -> None:
    """Write the file."""
    old_kwargs = re.findall(r'"(\w+_args)": "\w+_kwargs"', inspect.getsource(Transformer._load_init_kwargs))
    modules = {kind.__name__: of_class(kind) for kind in (Transformer, Pooling, Dense, LayerNorm, Normalize, Dropout)}
    modules["Transformer"] = sorted({*modules["Transformer"], *old_kwargs})
    modules["Pooling"] = sorted({*modules["Pooling"], *_LEGACY_POOLING_MODE_KWARGS})
    document = {
        "sentence_transformers": sentence_transformers.__version__,
        "keys": {
            "config_sentence_transformers.json": sorted({*of_source("model_config"), "model_type"}),
            "modules.json": of_source("module_config"),
            **modules,
        },
    }
    OUT.write_text(json.dumps(document, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
