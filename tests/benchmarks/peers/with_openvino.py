"""OpenVINO called directly: a compiled model of one stream and one thread a lane, another on all cores for one text.

One compiled model with several streams has given wrong vectors in float32 (docs/decisions.md), so there is none here.
"""

from __future__ import annotations

from typing import Any

import openvino

from tests.benchmarks.peers.plain import Arrangement, Float32, Int64, Run, feeds, plain_tokenizer
from tests.benchmarks.peers.serve import Embed, Settings, serve

_compiled: list[Any] = []


def load(settings: Settings) -> Embed:
    core = openvino.Core()
    arrangement = Arrangement(
        plain_tokenizer(settings.model),
        settings.pooling,
        lanes=[_runner(core, settings, threads=1) for _ in range(settings.threads)],
        alone=_runner(core, settings, threads=settings.threads),
    )
    return arrangement.embed


def _runner(core: Any, settings: Settings, *, threads: int) -> Run:
    options = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "ENABLE_CPU_PINNING": False}
    compiled = core.compile_model(str(settings.graph), "CPU", options)
    _compiled.append(compiled)
    names = [port.get_any_name() for port in compiled.inputs]
    request = compiled.create_infer_request()

    def run(ids: Int64, mask: Int64) -> Float32:
        request.infer(feeds(names, ids, mask))
        hidden: Float32 = request.get_output_tensor(0).data.astype("f4")
        return hidden

    return run


def precision() -> dict[str, str]:
    """What the products really run in, which OpenVINO chooses by the processor."""
    found = set()
    for node in _compiled[0].get_runtime_model().get_ordered_ops():
        facts = {name: node.get_rt_info()[name].astype(str) for name in ("layerType", "runtimePrecision")}
        if facts["layerType"] in ("FullyConnected", "MatMul"):
            found.add(facts["runtimePrecision"])
    return {"precision": "+".join(sorted(found))}


if __name__ == "__main__":
    serve(load, "openvino", "tokenizers", facts=precision)
