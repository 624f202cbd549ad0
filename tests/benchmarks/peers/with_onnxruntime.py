"""onnxruntime called directly: one session of one thread for all lanes, another on all cores for a text alone.

On CUDA there is one session for everything, in float32 without TF32, as in our worker.
"""

from __future__ import annotations

import onnxruntime

from tests.benchmarks.peers.plain import GPU_BATCH_TOKENS, Arrangement, Float32, Int64, Run, feeds, plain_tokenizer
from tests.benchmarks.peers.serve import Embed, Settings, serve


def load(settings: Settings) -> Embed:
    if settings.variant == "cuda":
        gpu = _runner(settings, threads=settings.threads, provider=("CUDAExecutionProvider", {"use_tf32": "0"}))
        tokenizer = plain_tokenizer(settings.model)
        return Arrangement(tokenizer, settings.pooling, lanes=[gpu], alone=gpu, batch_tokens=GPU_BATCH_TOKENS).embed
    lane = _runner(settings, threads=1)
    arrangement = Arrangement(
        plain_tokenizer(settings.model),
        settings.pooling,
        lanes=[lane] * settings.threads,
        alone=_runner(settings, threads=settings.threads),
    )
    return arrangement.embed


def _runner(
    settings: Settings, *, threads: int, provider: str | tuple[str, dict[str, str]] = "CPUExecutionProvider"
) -> Run:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Spinning that goes on after a run would disturb whoever is measured next.
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if threads > 1 else "0")
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(str(settings.graph), options, providers=[provider])
    names = [node.name for node in session.get_inputs()]
    outputs = [session.get_outputs()[0].name]

    def run(ids: Int64, mask: Int64) -> Float32:
        hidden: Float32 = session.run(outputs, feeds(names, ids, mask))[0]
        return hidden

    return run


if __name__ == "__main__":
    serve(load, "onnxruntime", "tokenizers")
