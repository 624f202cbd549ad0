"""The embeddings endpoint of OpenAI's HTTP interface, on this machine, for programs that speak nothing else.

    pip install starlette uvicorn prometheus-client
    python examples/openai_server.py --model all-MiniLM-L6-v2 --port 8000

    client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none")
    client.embeddings.create(model="all-MiniLM-L6-v2", input="hello")

It listens on the loopback interface alone and knows no keys. Every answer names the vector space in its member
`fingerprint`: keep it beside the vectors. `input_type` ("query" or "document") chooses the model's prompt.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from http import HTTPStatus
from typing import Any

import orjson

try:
    import prometheus_client
    import uvicorn
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route
except ModuleNotFoundError as error:
    raise SystemExit(f"this needs {error.name}: pip install starlette uvicorn prometheus-client") from None

from bridge_client import (
    AsyncEmbedClient,
    BridgeError,
    Embeddings,
    PoisonedInputError,
    QueueFullError,
    RequestError,
    RequestTimeoutError,
)

LOOPBACK = "127.0.0.1"
MAX_BODY_BYTES = 32 * 2**20
MEMBERS = {"input", "model", "encoding_format", "dimensions", "user", "input_type"}


class Refused(Exception):
    """A request that is wrong in itself."""

    def __init__(
        self, message: str, *, param: str | None = None, code: str | None = None, status: int = HTTPStatus.BAD_REQUEST
    ) -> None:
        super().__init__(message)
        self.param, self.code, self.status = param, code, status


class Figures:
    """What Prometheus is told."""

    def __init__(self, client: AsyncEmbedClient) -> None:
        self.registry = prometheus_client.CollectorRegistry()
        make: dict[str, Any] = {"registry": self.registry}
        self.requests = prometheus_client.Counter("embed_requests", "Requests by HTTP status", ["status"], **make)
        self.texts = prometheus_client.Counter("embed_texts", "Texts that were embedded", **make)
        self.tokens = prometheus_client.Counter("embed_tokens", "Their tokens", **make)
        self.seconds = prometheus_client.Histogram("embed_request_seconds", "From the body to the answer", **make)
        gauges: dict[str, tuple[str, Callable[[], float]]] = {
            "embed_worker_restarts": ("Workers started after the first", lambda: client.stats().restarts),
            "embed_in_flight": ("Requests with the worker", lambda: client.stats().in_flight),
            "embed_queued": ("Calls that wait to be sent", lambda: client.stats().queued),
        }
        for name, (what, value) in gauges.items():
            prometheus_client.Gauge(name, what, **make).set_function(value)


class Service:
    """The endpoints over one client."""

    def __init__(self, client: AsyncEmbedClient) -> None:
        self.client = client
        self.figures = Figures(client)

    def app(self) -> Any:
        """Return the application; it starts the worker, and closes it at its end."""
        routes = [
            Route("/v1/embeddings", self.embeddings, methods=["POST"]),
            Route("/v1/models", self.models),
            Route("/v1/models/{model:path}", self.model),
            Route("/health", self.health),
            Route("/metrics", self.metrics),
        ]
        # A page of the internet may have a name that leads here; its own name is in the request, and is refused.
        only_local = Middleware(TrustedHostMiddleware, allowed_hosts=[LOOPBACK, "localhost"])
        return Starlette(routes=routes, middleware=[only_local], lifespan=self.lifespan)

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Any) -> AsyncIterator[None]:
        async with self.client:
            yield

    async def embeddings(self, request: Request) -> Response:
        with self.figures.seconds.time():
            try:
                answer, status = await self.embed(await body_of(request)), int(HTTPStatus.OK)
            except Exception as error:  # noqa: BLE001 - every request is answered
                answer, status = refusal(error)
        self.figures.requests.labels(status=str(status)).inc()
        return json_response(answer, status)

    async def embed(self, wanted: dict[str, Any]) -> dict[str, Any]:
        if unknown := sorted(set(wanted) - MEMBERS):
            raise Refused(f"unknown parameter {unknown[0]!a}", param=unknown[0], code="unknown_parameter")
        encoding = wanted.get("encoding_format") or "float"
        if encoding not in ("float", "base64"):
            raise Refused("`encoding_format` must be 'float' or 'base64'", param="encoding_format")
        texts = texts_of(wanted.get("input"))
        await self.check_model(wanted.get("model"))
        found = await self.client.embed_detailed(
            texts, dimensions=wanted.get("dimensions"), input_type=wanted.get("input_type")
        )
        self.figures.texts.inc(len(texts))
        self.figures.tokens.inc(sum(found.tokens))
        return answer_of(found, encoding)

    async def check_model(self, name: Any) -> dict[str, Any]:
        info = await self.client.info()
        if not isinstance(name, str):
            raise Refused("`model` must be a string", param="model")
        if name.rpartition("/")[2] != info["model"]:
            message = f"the model {name[:80]!a} is not served here: {info['model']!r} is"
            raise Refused(message, param="model", code="model_not_found", status=HTTPStatus.NOT_FOUND)
        return info

    async def models(self, request: Request) -> Response:
        return await answered(self.listed())

    async def listed(self) -> dict[str, Any]:
        return {"object": "list", "data": [described(await self.client.info())]}

    async def model(self, request: Request) -> Response:
        return await answered(self.one(request.path_params["model"]))

    async def one(self, name: str) -> dict[str, Any]:
        return described(await self.check_model(name))

    async def health(self, request: Request) -> Response:
        return await answered(self.alive())

    async def alive(self) -> dict[str, Any]:
        pong = await self.client.ping(timeout_s=10.0)
        stats = self.client.stats()
        return {"status": "ok", "state": pong["state"], "pid": stats.pid, "restarts": stats.restarts}

    async def metrics(self, request: Request) -> Response:
        text = prometheus_client.generate_latest(self.figures.registry)
        return Response(text, media_type=prometheus_client.CONTENT_TYPE_LATEST)


async def body_of(request: Request) -> dict[str, Any]:
    """Read a request's JSON, within a bound."""
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_BODY_BYTES:
            message = f"the request has more than {MAX_BODY_BYTES} bytes"
            raise Refused(message, status=HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
    try:
        wanted = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Refused(f"the request is not JSON at byte {error.pos}") from error
    if not isinstance(wanted, dict):
        raise Refused("the request must be a JSON object")
    return wanted


def texts_of(given: Any) -> list[str]:
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts:
        raise Refused("`input` must be a text or a list of texts, not empty", param="input")
    if not all(isinstance(text, str) for text in texts):
        raise Refused("`input` must be texts: tokens of another tokenizer mean nothing to this model", param="input")
    return texts


def answer_of(found: Embeddings, encoding: str) -> dict[str, Any]:
    vectors = found.vectors.astype("<f4", copy=False)
    rows = [base64.b64encode(row.tobytes()).decode() for row in vectors] if encoding == "base64" else vectors
    tokens = sum(found.tokens)
    return {
        "object": "list",
        "model": found.model,
        "fingerprint": found.fingerprint,
        "data": [{"object": "embedding", "index": index, "embedding": row} for index, row in enumerate(rows)],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def described(info: dict[str, Any]) -> dict[str, Any]:
    named = {"id": info["model"], "object": "model", "created": 0, "owned_by": "embed-bridge"}
    return named | {member: info[member] for member in ("fingerprint", "dimension", "max_tokens")}


async def answered(call: Any) -> Response:
    try:
        return json_response(await call, HTTPStatus.OK)
    except Exception as error:  # noqa: BLE001 - every request is answered
        return json_response(*refusal(error))


def refusal(error: Exception) -> tuple[dict[str, Any], int]:
    """Return what tells of an error, and its status: from 500 on the same request may succeed later."""
    param, code, status = None, None, HTTPStatus.SERVICE_UNAVAILABLE
    match error:
        case Refused():
            param, code, status = error.param, error.code, HTTPStatus(error.status)
        case RequestError(retryable=False) | PoisonedInputError():
            param, status = ("input" if error.index is not None else None), HTTPStatus.BAD_REQUEST
            code = getattr(error, "code", "poisoned_input")
        case TypeError() | ValueError():
            status = HTTPStatus.BAD_REQUEST
        case QueueFullError():
            status = HTTPStatus.TOO_MANY_REQUESTS
        case RequestTimeoutError():
            status = HTTPStatus.GATEWAY_TIMEOUT
        case BridgeError():
            pass
        case _:
            status = HTTPStatus.INTERNAL_SERVER_ERROR
    kind = "invalid_request_error" if status < HTTPStatus.INTERNAL_SERVER_ERROR else "server_error"
    return {"error": {"message": str(error), "type": kind, "param": param, "code": code}}, int(status)


def json_response(answer: dict[str, Any], status: int) -> Response:
    content = orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(content, status_code=int(status), media_type="application/json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="all-MiniLM-L6-v2", help="a model's name or folder")
    parser.add_argument("--port", type=int, default=8000, help="0 takes any that is free")
    options = parser.parse_args()
    try:
        # On POSIX this takes a port again whose last server has just ended, while the system keeps its connections.
        listening = socket.create_server((LOOPBACK, options.port), backlog=2048)
    except (OSError, OverflowError) as error:
        raise SystemExit(f"port {options.port} of {LOOPBACK} cannot be taken: {error}") from None
    with listening:
        print(f"http://{LOOPBACK}:{listening.getsockname()[1]}/v1", flush=True)
        service = Service(AsyncEmbedClient(options.model))
        uvicorn.Server(uvicorn.Config(service.app(), log_level="warning")).run(sockets=[listening])


if __name__ == "__main__":
    main()
