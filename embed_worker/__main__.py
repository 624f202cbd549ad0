"""The command `embed-worker`: arguments, then claim the descriptors, load, serve, exit."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import io
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TextIO

try:
    from embed_worker import machine
    from embed_worker.arguments.serve import make_config, make_parser
    from embed_worker.arguments.usage import COMMANDS, CommandParser, unknown_command
    from embed_worker.config import LogFormat, ModelOptions, WorkerConfig
    from embed_worker.errors import is_shortage
    from embed_worker.model_files.search import models_folders
    from embed_worker.protocol import ExitCode
except KeyboardInterrupt:  # Ctrl-C, when nothing has begun
    sys.exit(130)

if TYPE_CHECKING:
    from embed_worker.inference.engine import LoadedModel

_MAX_LANES = 32  # beyond, the interpreter lock is what lanes wait for


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command and end the process."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    if arguments and not arguments[0].startswith("-"):
        if arguments[0] not in COMMANDS:
            _say(unknown_command(arguments[0]))
            sys.exit(ExitCode.USAGE)
        if arguments[0] != "serve":
            sys.exit(run_tool(arguments[0], arguments[1:]))
    with _ending_in_a_line("embed-worker"):
        _make_printable(sys.stdout)  # noqa: TID251 - of --help; the wire is claimed later
        options = make_parser().parse_args(arguments[1:] if arguments[:1] == ["serve"] else arguments)
    status = serve(make_config(options), log_level=options.log_level, log_format=LogFormat(options.log_format))
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.flush()
    # Quickly: threads may be blocked in a read of standard input or deep in a library.
    os._exit(status)


def run_tool(name: str, arguments: Sequence[str]) -> int:
    """Run a command beside the worker; return its exit status."""
    program = f"embed-worker {name}"
    _open_what_is_closed()
    with _ending_in_a_line(program), _sigterm_interrupts():
        tool = importlib.import_module(f"embed_worker.tools.{name}")
        parser = CommandParser(prog=program, description=tool.__doc__)
        tool.add_arguments(parser)
        _make_printable(sys.stdout)  # noqa: TID251 - a tool's own, not the wire
        _make_printable(sys.stderr)
        return int(tool.run(parser.parse_args(arguments)))


def _open_what_is_closed() -> None:
    """Let a tool read nothing from a closed standard input, and write to a closed output or error as to nobody.

    In this order, each gets the number that it has lost, and no file that is opened later does.
    """
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115 - to the end of the process
    if sys.stdout is None:  # noqa: TID251 - a tool's own, not the wire
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, TID251
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


@contextlib.contextmanager
def _ending_in_a_line(program: str) -> Iterator[None]:
    """End with one line where Python would show where it was: after Ctrl-C, and where standard output takes no more.

    Nothing is said where whoever reads has seen enough, as in `inspect | head` and `--help | less`.
    """
    try:
        try:
            yield
        finally:
            if sys.stdout is not None:  # noqa: TID251 - a tool's own, not the wire
                sys.stdout.flush()  # noqa: TID251
    except KeyboardInterrupt:
        _say(f"{program}: interrupted")
        sys.exit(ExitCode.INTERRUPTED)
    except OSError as error:
        if error.filename is not None:  # not a stream
            raise
        if not isinstance(error, BrokenPipeError):
            _say(f"{program}: {error.strerror or error}")
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the interpreter flushes once more
        sys.exit(ExitCode.PIPE_FAILED)


@contextlib.contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """Let SIGTERM end a tool as Ctrl-C does, so that nothing half written is left."""
    before = signal.getsignal(signal.SIGTERM)
    if before is not signal.SIG_DFL or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _make_printable(stream: TextIO | None) -> None:
    """Let a tool print any name: UTF-8 into the pipes and files of Windows, and `?` for what a console cannot show."""
    if isinstance(stream, io.TextIOWrapper):
        is_pipe = sys.platform == "win32" and not stream.isatty() and "PYTHONIOENCODING" not in os.environ
        stream.reconfigure(encoding="utf-8" if is_pipe else None, errors="replace")


def serve(config: WorkerConfig, *, log_level: str = "warning", log_format: LogFormat = LogFormat.TEXT) -> int:
    """Be the worker: claim standard input and output, serve until there is a reason to stop; return the exit status."""
    from embed_worker.serving import stdio

    _exit_quietly_on_signals(is_supervised=config.is_supervised)
    machine.share_heaps()
    try:
        is_parent_alive = machine.watch_parent()
    except ValueError as error:
        _say(f"embed-worker: {error}")
        return ExitCode.USAGE
    if not config.is_supervised:
        _greet_a_terminal()
    try:
        wire = stdio.claim()
    except (stdio.WireError, OSError) as error:
        _say(f"embed-worker: {error}")
        return ExitCode.PIPE_FAILED

    from embed_worker import logs
    from embed_worker.serving import model_store, server
    from embed_worker.serving.lifecycle import On

    logs.set_up_logging(log_level, log_format)
    threads = machine.choose_threads(config.runtime.threads, os.environ)
    logging.getLogger(__name__).info("threads value=%d reason=%s", threads.value, threads.reason)
    os.environ.setdefault("OPENBLAS_NUM_THREADS", str(threads.value))  # numpy's own, made when it is imported

    def load(folder: Path, options: ModelOptions, note: Callable[[str], None]) -> LoadedModel:
        from embed_worker import loading  # on the loader's thread: it takes most of the time until the model is there

        options = dataclasses.replace(options, allow_links=config.allow_links)
        return loading.load_model(folder, options, config.runtime, threads.value, note)

    store = model_store.ModelStore(load, models_folders(config.models_dirs))
    worker = server.Server(
        config,
        store,
        server.Environment(
            lines=stdio.LineReader(wire.reading, config.limits.max_line_bytes),
            writer_descriptor=wire.writing,
            is_parent_alive=is_parent_alive,
            threads=threads,
        ),
        lanes=min(threads.value, _MAX_LANES),
    )
    _stop_on_signals(lambda: worker.happens(On.TERMINATED), lambda: worker.happens(On.INTERRUPTED))
    try:
        return worker.run()
    except Exception as error:
        logging.getLogger(__name__).exception("internal error")
        return ExitCode.TRY_AGAIN if is_shortage(error) else ExitCode.INTERNAL
    finally:
        store.close()  # the quick exit would leave temporary files and children behind


def _greet_a_terminal() -> None:
    """Where a person sits at standard input, say what is waited for and how to leave: nothing else would be seen."""
    if sys.stdin is not None and sys.stdin.isatty():
        end = "Ctrl-Z and Enter" if sys.platform == "win32" else "Ctrl-D"
        _say(f'embed-worker: waiting for lines such as {{"inputs": "some text"}}; {end} ends, --help tells more')


def _say(message: str) -> None:
    """Write one line for people to standard error, where there is one."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stderr.write(f"{message}\n")
        sys.stderr.flush()


# Signals ----------------------------------------------------------------------------------------------------------


def _exit_quietly_on_signals(*, is_supervised: bool) -> None:
    """Until the server is there, nothing has been accepted: a stop signal ends the process at once."""
    _stop_on_signals(lambda: os._exit(ExitCode.OK), lambda: os._exit(ExitCode.INTERRUPTED))
    if is_supervised:
        # Ctrl-C in a terminal reaches the whole group; whether the worker ends is its supervisor's decision.
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _stop_on_signals(terminate: Callable[[], None], interrupt: Callable[[], None]) -> None:
    if hasattr(signal, "pthread_sigmask"):  # a host's mask is inherited, and who blocks a signal there means itself
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGINT))
    signal.signal(signal.SIGTERM, lambda number, frame: terminate())
    if hasattr(signal, "SIGBREAK"):  # Windows has no SIGTERM from outside, but Ctrl-Break
        signal.signal(signal.SIGBREAK, lambda number, frame: terminate())
    # A shell starts background jobs with SIGINT ignored, and a supervised worker ignores it: both stay so.
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, lambda number, frame: interrupt())


if __name__ == "__main__":
    main()
