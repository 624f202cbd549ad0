"""What crosses the border of a process: errors, options, clients; and the client that a process shares."""

from __future__ import annotations

import copy
import inspect
import multiprocessing
import os
import pickle
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from bridge_client import (
    AsyncEmbedClient,
    Cause,
    ClientOptions,
    EmbedClient,
    Embeddings,
    ExitReport,
    PoisonedInputError,
    RequestError,
    State,
    errors,
    shared_client,
)
from bridge_client.testing import fake_client, fake_command
from tests.client.test_client import expected

REPORT = ExitReport(cause=Cause.CRASHED, pid=7, status=-11, argv=("worker", "--flag"), stderr_tail="last words")
EMBEDDINGS = Embeddings(
    vectors=np.ones((1, 2), np.float32),
    dimension=2,
    tokens=(3,),
    truncated=(),
    model="m",
    fingerprint="f",
    timing_ms={"total": 1.0},
)
MADE: Mapping[str, errors.BridgeError] = {
    "BridgeError": errors.BridgeError("a sentence"),
    "RequestError": errors.RequestError("input_too_long", "why", retryable=False, index=3),
    "RequestTimeoutError": errors.RequestTimeoutError("no answer within 1 s", timeout_s=1.0),
    "QueueFullError": errors.QueueFullError("full"),
    "ClientClosedError": errors.ClientClosedError("closed"),
    "PoisonedInputError": errors.PoisonedInputError((2, 5), EMBEDDINGS),
    "WorkerError": errors.WorkerError("what", REPORT),
    "WorkerStartError": errors.WorkerStartError(REPORT),
    "WorkerDiedError": errors.WorkerDiedError(REPORT),
    "WorkerHungError": errors.WorkerHungError(REPORT),
    "ProtocolMismatchError": errors.ProtocolMismatchError(REPORT),
    "ModelChangedError": errors.ModelChangedError(REPORT),
    "CircuitOpenError": errors.CircuitOpenError(1.5, errors.WorkerDiedError(REPORT)),
}


def test_every_error_has_an_example_here() -> None:
    defined = {name for name, value in vars(errors).items() if inspect.isclass(value) and name.endswith("Error")}
    assert {name for name in defined if issubclass(getattr(errors, name), errors.BridgeError)} == set(MADE)


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_an_error_survives_pickle_with_all_that_it_says(name: str, protocol: int) -> None:
    error = MADE[name]
    back = pickle.loads(pickle.dumps(error, protocol))
    assert (type(back), str(back), back.args) == (type(error), str(error), error.args)
    assert vars(back).keys() == vars(error).keys()
    for attribute in vars(error).keys() - {"others", "last_cause"}:
        assert getattr(back, attribute) == getattr(error, attribute)
    if isinstance(error, PoisonedInputError):
        assert back.others.vectors.tolist() == [[1.0, 1.0]]
    assert str(back.__cause__) == str(error.__cause__)


def fail_in_a_pool(text: str) -> None:
    with fake_client() as client:
        client.embed([text, "\ud800"])


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_an_error_comes_back_from_a_pool_of_processes() -> None:
    with multiprocessing.get_context("fork").Pool(1) as pool:
        with pytest.raises(RequestError) as caught:
            pool.apply(fail_in_a_pool, ("fine",))
        pool.close()
        pool.join()
    assert (caught.value.code, caught.value.index) == ("invalid_request", 1)


# Options and clients ----------------------------------------------------------------------------------------------


def test_options_are_equal_by_their_values_hashable_and_unchangeable() -> None:
    command, env = list(fake_command()), {"A": "1"}
    options = ClientOptions(worker_command=command, env=env)  # type: ignore[arg-type]
    command.append("--later")
    env["B"] = "2"
    assert options == ClientOptions(worker_command=fake_command(), env={"A": "1"})
    assert {options: 1}[pickle.loads(pickle.dumps(options))] == 1
    assert options != ClientOptions(worker_command=fake_command(), env={"A": "2"})
    assert dict(options.env) == {"A": "1"}
    with pytest.raises(TypeError, match="strings"):
        ClientOptions(env={"A": 1})  # type: ignore[dict-item]


def test_a_client_is_pickled_and_copied_as_a_new_one_of_the_same_options() -> None:
    with fake_client(ClientOptions(env={"A": "1"})) as client:
        client.embed(["a"])
        for another in (pickle.loads(pickle.dumps(client)), copy.copy(client), copy.deepcopy(client)):
            assert another.options == client.options
            assert another.stats().state is State.STOPPED
        with another:
            assert np.array_equal(another.embed(["b"]), expected("b"))
    asynchronous = pickle.loads(pickle.dumps(AsyncEmbedClient(client.options)))
    assert isinstance(asynchronous, AsyncEmbedClient)


def test_a_client_with_a_listener_says_why_it_cannot_be_pickled() -> None:
    for make in (EmbedClient, AsyncEmbedClient):
        client = make(worker_command=fake_command(), on_state_change=lambda worker, state: None)
        for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match="on_state_change"):
                attempt(client)


def test_a_process_shares_one_client_for_equal_options_until_it_is_closed() -> None:
    options = ClientOptions(worker_command=fake_command())
    client = shared_client(options)
    assert client.stats().state is State.STOPPED
    assert shared_client(worker_command=fake_command()) is client
    assert shared_client(worker_command=fake_command(), request_timeout_s=1.0) is not client
    client.embed(["a"])
    client.close()
    assert shared_client(options) is not client


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_shares_a_client_of_its_own() -> None:
    client = shared_client(worker_command=fake_command())
    client.embed(["before"])
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        another = shared_client(worker_command=fake_command())
        os.write(writing, b"%d %d" % (another is not client, len(another.embed(["in the child"]))))
        another.close()
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as told:
        assert told.read() == b"1 1"
    assert os.waitpid(child, 0)[1] == 0
    assert np.array_equal(client.embed(["after"]), expected("after"))
    client.close()


# The first minute ----------------------------------------------------------------------------------------------------


def test_a_model_is_the_first_argument_as_everywhere(tmp_path: Path) -> None:
    assert EmbedClient("bge-small-en-v1.5").options == ClientOptions(model="bge-small-en-v1.5")
    assert EmbedClient(tmp_path, workers=2).options == ClientOptions(model=tmp_path, workers=2)
    assert shared_client("bge-small-en-v1.5") is shared_client(model="bge-small-en-v1.5")
    assert EmbedClient().options.model == "all-MiniLM-L6-v2"


@pytest.mark.parametrize("made", [EmbedClient, AsyncEmbedClient])
def test_help_shows_every_option(made: type) -> None:
    told = inspect.getdoc(made.__init__)  # type: ignore[misc]
    assert told is not None
    for name in ClientOptions.__dataclass_fields__:
        assert f"{name}: " in told


@pytest.mark.parametrize("inputs", [None, 7, b"bytes", bytearray(b"bytes"), {"a": 1}, {"a"}])
def test_what_is_no_texts_is_refused_with_a_sentence(inputs: object) -> None:
    client = EmbedClient(worker_command=fake_command())
    with pytest.raises(TypeError, match=f"must be a text or a sequence of texts, not {type(inputs).__name__}"):
        client.embed(inputs)  # type: ignore[arg-type]


def test_strings_of_numpy_and_whatever_iterates_over_texts_are_texts() -> None:
    class Scalar:
        def as_py(self) -> str:
            return "of Arrow"

    with fake_client() as client:
        assert np.array_equal(client.embed(np.array(["a", "b"])), expected("a", "b"))  # type: ignore[arg-type]
        assert np.array_equal(client.embed(text for text in "ab"), expected("a", "b"))  # type: ignore[arg-type]
        assert np.array_equal(client.embed([Scalar(), "a"]), expected("of Arrow", "a"))  # type: ignore[list-item]


def test_a_result_shows_itself_in_one_line() -> None:
    assert repr(EMBEDDINGS) == "<Embeddings 1 x 2 m fingerprint=f>"


def test_the_package_knows_its_version() -> None:
    import bridge_client
    import embed_worker

    assert bridge_client.__version__ == embed_worker.__version__
