"""An adapter for hosts that speak JSON-RPC 2.0 over pipes, one object a line.

    {"jsonrpc": "2.0", "method": "embed", "params": {"texts": ["a river"]}, "id": 1}
    {"jsonrpc": "2.0", "id": 1, "result": {"embeddings": [[…]], "model": "…", "fingerprint": "…"}}

An error is `error` with `code` and `message`; `data` has the worker's own code, and whether to try again. Requests
without an id are notifications, and get no answer. Batches are not supported.

    python examples/lockstep/json_rpc.py MODEL
"""

from __future__ import annotations

import sys
from typing import Any

import orjson

from bridge_client import BridgeError, EmbedClient, RequestError

PARSE_ERROR, INVALID_REQUEST, METHOD_NOT_FOUND, INVALID_PARAMS, SERVER_ERROR = -32700, -32600, -32601, -32602, -32000
PARAMETERS = {"texts", "dimensions", "normalize", "prompt_name", "input_type"}


class RpcError(Exception):
    """A request that is wrong in itself."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def is_request(request: Any) -> bool:
    """Return whether a line is a request at all; one that is none is answered, whether it has an id or not."""
    return isinstance(request, dict) and request.get("jsonrpc") == "2.0" and isinstance(request.get("method"), str)


def result_of(client: EmbedClient, request: Any) -> dict[str, Any]:
    """Do what a request asks for."""
    if not is_request(request):
        raise RpcError(INVALID_REQUEST, "the request must be an object with `jsonrpc` 2.0 and a `method`")
    match request["method"], request.get("params", {}):
        case "ping", _:
            return {"state": client.ping()["state"]}
        case "embed", dict(params) if params.get("texts") is not None and set(params) <= PARAMETERS:
            found = client.embed_detailed(params.pop("texts"), **params)
            return {"embeddings": found.vectors, "model": found.model, "fingerprint": found.fingerprint}
        case "embed", _:
            raise RpcError(INVALID_PARAMS, f"`params` must have `texts`, and may have {', '.join(sorted(PARAMETERS))}")
        case method, _:
            raise RpcError(METHOD_NOT_FOUND, f"there is no method {method[:40]!a}")


def error_of(error: Exception) -> dict[str, Any]:
    """Return the member `error` that tells of an exception."""
    match error:
        case RpcError():
            return {"code": error.code, "message": str(error)}
        case RequestError():
            code = SERVER_ERROR if error.retryable else INVALID_PARAMS
            return {"code": code, "message": str(error), "data": {"code": error.code, "retryable": error.retryable}}
        case TypeError() | ValueError():
            return {"code": INVALID_PARAMS, "message": str(error)}
        case _:
            return {
                "code": SERVER_ERROR,
                "message": str(error),
                "data": {"code": type(error).__name__, "retryable": True},
            }


def answer(client: EmbedClient, line: bytes) -> dict[str, Any] | None:
    """Return the answer to a line; None for a notification."""
    request: Any = None
    try:
        request = orjson.loads(line)
        told: dict[str, Any] = {"result": result_of(client, request)}
    except orjson.JSONDecodeError as error:
        told = {"error": {"code": PARSE_ERROR, "message": f"the line is not JSON at byte {error.pos}"}}
    except (RpcError, BridgeError, TypeError, ValueError) as error:
        told = {"error": error_of(error)}
    if is_request(request) and "id" not in request:
        return None
    return {"jsonrpc": "2.0", "id": request.get("id") if isinstance(request, dict) else None, **told}


def main() -> None:
    with EmbedClient(*sys.argv[1:2]) as client:
        for line in sys.stdin.buffer:
            if line.strip() and (answered := answer(client, line)) is not None:
                sys.stdout.buffer.write(orjson.dumps(answered, option=orjson.OPT_SERIALIZE_NUMPY) + b"\n")
                sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
