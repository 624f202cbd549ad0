"""Who takes part: how each contestant is started, what it needs, and why it is left out where that is not there."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import onnxruntime

from tests.benchmarks.peers.plain import GPU_BATCH_TOKENS

ROOT = Path(__file__).resolve().parents[3]
PEERS = ROOT / "tests" / "benchmarks" / "peers"
_RUST = PEERS / "rust" / "target" / "release" / "rust-contestant"
_MADE_BY = "make bench-environments"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One contestant.

    Attributes:
        key: What `--contestants` calls it.
        name: What the tables call it.
        arrangement: How it is used, in a clause.
        module: The program in Python that plays it; "" for those that are no Python.
        packages: What the program imports, the first decides whether it is there.
        environment: Whose Python: "" for ours, else a folder in the folder of environments.
        variant: What it is told in `Settings.variant`; for our worker, its options.
        file: What the model's folder must have for it.
        made: The format that the model is put into for it, before its start: "openvino" or "gguf".
        is_bfloat16: It makes sense only where the processor multiplies bfloat16.
        is_cuda: It makes sense only where our onnxruntime has CUDA.
    """

    key: str
    name: str
    arrangement: str
    module: str = ""
    packages: Sequence[str] = ()
    environment: str = ""
    variant: str = ""
    file: str = "onnx/model.onnx"
    made: str = ""
    is_bfloat16: bool = False
    is_cuda: bool = False

    @property
    def is_ours(self) -> bool:
        return self.key.startswith("embed-worker")

    def python(self, environments: Path) -> Path:
        return Path(sys.executable) if not self.environment else environments / self.environment / "bin" / "python"

    def command(self, environments: Path) -> list[str]:
        """What starts it, without its settings."""
        if self.key == "fastembed-rs":
            return [str(_RUST)]
        if self.key == "transformers.js":
            return ["node", str(PEERS / "node" / "contestant.mjs")]
        return [str(self.python(environments)), "-m", f"tests.benchmarks.peers.{self.module}"]

    def why_not(self, environments: Path, model: Path, flags: frozenset[str]) -> str | None:
        """Why it cannot take part here, or None.

        Args:
            environments: Folder of the environments.
            model: Folder of the model.
            flags: What the processor can do, as Linux calls it.
        """
        if not (model / self.file).is_file():
            return f"the model's folder has no {self.file}"
        if self.is_bfloat16 and not flags & {"avx512_bf16", "amx_bf16", "bf16"}:
            return "the processor does not multiply bfloat16"
        if self.is_cuda and "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            return "this onnxruntime has no CUDA: pip install onnxruntime-gpu on a machine with a GPU"
        if self.key == "fastembed-rs":
            return None if _RUST.is_file() else f"it is not built ({_MADE_BY}, with cargo)"
        if self.key == "transformers.js":
            if shutil.which("node") is None:
                return "there is no node"
            there = (PEERS / "node" / "node_modules" / "@huggingface" / "transformers").exists()
            return None if there else f"it is not installed ({_MADE_BY}, with npm)"
        return self._why_no_python(environments)

    def _why_no_python(self, environments: Path) -> str | None:
        made_by = _MADE_BY if self.environment else "make bench"
        python = self.python(environments)
        if not python.exists():
            return f"it is not installed ({made_by})"
        for package in self.packages:
            if not self.environment:
                found = find_spec(package) is not None
            else:
                code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({package!r}) is None)"
                found = subprocess.run([python, "-c", code], check=False, timeout=60).returncode == 0
            if not found:
                return f"it is not installed: no {package} ({made_by})"
        return None


def runtime_library() -> str:
    """The shared library of onnxruntime's Python package, which the contestant in Rust loads."""
    spec = find_spec("onnxruntime")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "capi"
    return str(next(file for file in sorted(folder.iterdir()) if file.name.startswith("libonnxruntime.so")))


_ST = "with_sentence_transformers"
_ST_PACKAGES = ("sentence_transformers", "torch")
_BATCHES = "batches of 32"

ROSTER: tuple[Entry, ...] = (
    Entry(key="embed-worker", name="embed-worker", arrangement="through its pipe, 64 texts a request"),
    Entry(
        key="embed-worker-openvino",
        name="embed-worker, OpenVINO",
        arrangement="--provider openvino, through its pipe",
        packages=("openvino",),
        variant="--provider openvino",
    ),
    Entry(
        key="embed-worker-cuda",
        name="embed-worker, CUDA",
        arrangement="--provider cuda, through its pipe",
        variant="--provider cuda",
        is_cuda=True,
    ),
    Entry(
        key="onnxruntime-cuda",
        name="onnxruntime on CUDA, called directly",
        arrangement=f"sorted, cut by {GPU_BATCH_TOKENS} tokens, one lane",
        module="with_onnxruntime",
        packages=("onnxruntime",),
        variant="cuda",
        is_cuda=True,
    ),
    Entry(
        key="onnxruntime",
        name="onnxruntime, called directly",
        arrangement="sorted, cut by tokens, a lane a core",
        module="with_onnxruntime",
        packages=("onnxruntime",),
    ),
    Entry(
        key="openvino",
        name="OpenVINO, called directly",
        arrangement="sorted, cut by tokens, a compiled model a core",
        module="with_openvino",
        packages=("openvino",),
    ),
    Entry(
        key="fastembed",
        name="fastembed",
        arrangement=_BATCHES,
        module="with_fastembed",
        packages=("fastembed",),
        variant="32",
    ),
    Entry(
        key="fastembed-256",
        name="fastembed, its default batch",
        arrangement="batches of 256",
        module="with_fastembed",
        packages=("fastembed",),
        variant="256",
    ),
    Entry(key="fastembed-rs", name="fastembed-rs", arrangement=f"Rust, {_BATCHES}", variant="32"),
    Entry(
        key="sentence-transformers",
        name="sentence-transformers, torch",
        arrangement=f"float32, {_BATCHES}",
        module=_ST,
        packages=_ST_PACKAGES,
        environment="torch",
        variant="float32",
        file="model.safetensors",
    ),
    Entry(
        key="sentence-transformers-bf16",
        name="sentence-transformers, torch, bfloat16",
        arrangement=_BATCHES,
        module=_ST,
        packages=_ST_PACKAGES,
        environment="torch",
        variant="bfloat16",
        file="model.safetensors",
        is_bfloat16=True,
    ),
    Entry(
        key="sentence-transformers-onnx",
        name="sentence-transformers, onnx",
        arrangement=_BATCHES,
        module=_ST,
        packages=(*_ST_PACKAGES, "optimum.onnxruntime"),
        environment="torch",
        variant="onnx",
    ),
    Entry(
        key="sentence-transformers-openvino",
        name="sentence-transformers, openvino",
        arrangement=_BATCHES,
        module=_ST,
        packages=(*_ST_PACKAGES, "optimum.intel"),
        environment="torch",
        variant="openvino",
        made="openvino",
    ),
    Entry(
        key="llama.cpp",
        name="llama.cpp",
        arrangement="float16, flash attention, by llama-cpp-python",
        module="with_llamacpp",
        packages=("llama_cpp", "gguf", "safetensors"),
        environment="llamacpp",
        file="model.safetensors",
        made="gguf",
    ),
    Entry(key="transformers.js", name="transformers.js", arrangement=f"Node, {_BATCHES}", variant="32"),
    Entry(
        key="infinity",
        name="infinity",
        arrangement=f"its engine on torch, {_BATCHES}",
        module="with_infinity",
        packages=("infinity_emb", "torch"),
        environment="infinity",
        file="model.safetensors",
    ),
)
