"""The command line: every option changes the setting it should, and what cannot be meant exits with 2."""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import re
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from embed_worker.__main__ import main
from embed_worker.arguments.serve import make_config, make_parser
from embed_worker.arguments.usage import COMMANDS
from embed_worker.config import DEFAULT_MODEL, LogFormat, ModelOptions, RuntimeOptions, Verify, WorkerConfig
from embed_worker.protocol import METHODS, ExitCode, Limits
from tests.worker.harness import ROOT, TINY_MODEL, WAIT_S

HOSTILE = "red\x1b[31m\n2030-01-01 00:00:00,000 ERROR forged\r\x07\x9b2J\u202eend"


@pytest.fixture(autouse=True)
def _no_models_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EMBED_WORKER_MODELS", raising=False)


def config_of(*arguments: str) -> WorkerConfig:
    return make_config(make_parser().parse_args(arguments))


def test_without_options_everything_has_its_default() -> None:
    assert config_of() == WorkerConfig()
    assert config_of().models == (ModelOptions(name_or_path=DEFAULT_MODEL),)
    options = make_parser().parse_args([])
    assert (options.log_level, LogFormat(options.log_format)) == ("warning", LogFormat.TEXT)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--provider", "cuda"], RuntimeOptions(provider="cuda", batch_tokens=8192)),
        (["--provider", "Auto"], RuntimeOptions(provider="auto")),
        (["--provider", "CoreMLExecutionProvider"], RuntimeOptions(provider="coreml")),
        (["--threads", "3"], RuntimeOptions(threads=3)),
        (["--batch-tokens", "99"], RuntimeOptions(batch_tokens=99)),
        (["--batch-invariant"], RuntimeOptions(batch_invariant=True)),
        (["--verify", "always"], RuntimeOptions(verify=Verify.ALWAYS)),
        (["--verify", "never"], RuntimeOptions(verify=Verify.NEVER)),
    ],
)
def test_an_option_of_the_runtime_changes_its_setting_only(arguments: list[str], expected: RuntimeOptions) -> None:
    assert config_of(*arguments) == WorkerConfig(runtime=expected)


@pytest.mark.parametrize("name", Limits.__dataclass_fields__)
def test_a_limit_changes_its_setting_only(name: str) -> None:
    changes: dict[str, Any] = {name: 7}
    assert config_of(f"--{name.replace('_', '-')}", "7") == WorkerConfig(limits=Limits(**changes))


def test_a_supervised_worker_drains_for_ten_seconds_at_most() -> None:
    assert config_of("--supervised") == WorkerConfig(is_supervised=True, drain_timeout_s=10.0)


def test_logs_have_a_level_and_a_format() -> None:
    options = make_parser().parse_args(["--log-level", "debug", "--log-format", "json"])
    assert (options.log_level, options.log_format) == ("debug", "json")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--onnx-file", "f"], ModelOptions(onnx_file="f")),
        (["--variant", "int8"], ModelOptions(variant="int8")),
        (["--pooling", "cls,max"], ModelOptions(pooling="cls,max")),
        (["--pooling", "cls, max"], ModelOptions(pooling="cls,max")),
        (["--normalize"], ModelOptions(normalize=True)),
        (["--no-normalize"], ModelOptions(normalize=False)),
        (["--max-tokens", "9"], ModelOptions(max_tokens=9)),
        (["--model", "m"], ModelOptions(name_or_path="m")),
        (["--model", "m", "--normalize", "--no-normalize"], ModelOptions(name_or_path="m", normalize=False)),
    ],
)
def test_an_option_of_a_model_settles_the_only_model(arguments: list[str], expected: ModelOptions) -> None:
    assert config_of(*arguments) == WorkerConfig(models=(expected,))


def test_options_settle_the_model_before_them() -> None:
    arguments = "--model a --pooling cls --threads 2 --no-normalize --model b --model c --max-tokens 5 --pooling max"
    assert config_of(*arguments.split()).models == (
        ModelOptions(name_or_path="a", pooling="cls", normalize=False),
        ModelOptions(name_or_path="b"),
        ModelOptions(name_or_path="c", max_tokens=5, pooling="max"),
    )


def test_parsing_twice_starts_afresh(tmp_path: Path) -> None:
    parser = make_parser()
    first = parser.parse_args(["--model", "a", "--models-dir", str(ROOT)])
    second = parser.parse_args(["--model", "b", "--models-dir", str(tmp_path)])
    assert [len(options.models) for options in (first, second)] == [1, 1]
    assert second.models_dirs == [tmp_path]


def test_models_folders_of_the_command_line_come_before_those_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in "ab":  # those of the environment need not be there: it is set for many programs
        (tmp_path / name).mkdir()
    monkeypatch.setenv("EMBED_WORKER_MODELS", os.pathsep.join(["c", "", "d"]))
    assert config_of("--models-dir", "a", "--models-dir", "b").models_dirs == tuple(map(Path, "abcd"))


@pytest.mark.parametrize(
    "arguments",
    [
        ["--nonsense"],
        ["stray"],
        ["--threads", "0"],
        ["--threads", "-1"],
        ["--threads", "many"],
        ["--threads", "1.5"],
        ["--batch-tokens", "0"],
        ["--max-tokens", "0"],
        ["--max-inputs", "none"],
        ["--verify", "sometimes"],
        ["--log-level", "loud"],
        ["--log-format", "xml"],
        ["--model"],
        ["--mod", "m"],
        ["--supervised=yes"],
    ],
)
def test_what_cannot_be_meant_is_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        config_of(*arguments)
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("embed-worker: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["--modle", "m"], "`--model`"),
        (["--provider", "cudda"], "`cuda`"),
        (["--pooling", "men"], "`mean`"),
        (["--log-levle", "info"], "`--log-level`"),
        (["--log-level", "debg"], "`debug`"),
        (["--verify", "alway"], "`always`"),
        (["--coreml-units", "all"], "`ALL`"),
    ],
)
def test_a_typing_error_gets_one_line_with_what_was_meant(
    arguments: list[str], meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        config_of(*arguments)
    assert ended.value.code == ExitCode.USAGE
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert err.rstrip().endswith(f"did you mean {meant}?")


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("chekc", "`check`"),
        ("inspec", "`inspect`"),
        ("help", "`--help`"),
        ("quantise", "`quantize`"),
        ("list", "`models`"),
        ("nomic-embed-text", "`--model nomic-embed-text-v1.5`"),
        ("all-minilm-l6-v2", "`--model all-MiniLM-L6-v2`"),
    ],
)
def test_a_command_that_there_is_not_gets_one_suggestion(
    word: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([word])
    assert ended.value.code == ExitCode.USAGE
    assert capsys.readouterr().err == f"embed-worker: there is no command {word!r}; did you mean {meant}?\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        # Half an option would be taken for `--models-dir`, and another model be checked than was meant.
        (["check", "--quick", "--model", "mine"],
         "unrecognized arguments: --model; the model stands by itself: `embed-worker check NAME-OR-FOLDER`"),
        (["check", "--quic"], "unrecognized arguments: --quic; did you mean `--quick`?"),
        (["inspect", "--max-tokens", "x"], "argument --max-tokens: 'x' is no whole number of 1 or more"),
        (["inspect", "--models-dir", "nowhere"], "argument --models-dir: there is no folder 'nowhere'"),
        (["export", "nowhere"], "argument DIR: there is no folder 'nowhere'"),
        (["export", "--for", "cormel", "."], "did you mean `coreml`?"),
        (["export", "--opset", "x", "."], "argument --opset is written N, and not 'x'"),
        (["pull", "--variant", "int8", "--onnx-file", "a.onnx", "org/name"],
         "argument --onnx-file: not allowed with argument --variant"),
        (["embed", "--chunk", "x", "text"], "argument --chunk is written N[,OVERLAP], and not 'x'"),
        (["embed", "--dtype", "flaot16", "text"], "did you mean `float16`?"),
    ],
)  # fmt: skip
def test_a_tool_says_in_one_line_what_is_written_wrongly(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == ExitCode.USAGE
    err = capsys.readouterr().err
    assert err.startswith(f"embed-worker {arguments[0]}: ")
    assert said in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["--modle\n2030 ERROR forged\x1b[31m"],
        ["--log-level", HOSTILE],
        ["--models-dir", f"{HOSTILE}/nowhere"],
        [HOSTILE],
        ["inspect", HOSTILE],
        ["check", "--references", HOSTILE],
        ["check", "--variant", HOSTILE],
        ["pull", f"org/{HOSTILE}"],
        ["export", HOSTILE],
        ["export", f"{HOSTILE}/there"],
        ["quantize", HOSTILE],
        ["embed", "--model", f"{HOSTILE}/there", "text"],
        ["embed", f"{HOSTILE}/texts.txt", "-o", "vectors.npy"],
        ["embed", "texts.txt", "-o", f"{HOSTILE}.npy", "--format", "txt"],
    ],
    ids=ascii,
)
def test_nothing_that_is_called_anything_forges_a_line_of_what_is_said(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with contextlib.suppress(OSError):  # Windows knows no such names
        (tmp_path / HOSTILE / "there").mkdir(parents=True)
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code in (ExitCode.USAGE, ExitCode.UNUSABLE_MODEL)
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.removesuffix("\n").isprintable()


@pytest.mark.parametrize("word", ["info", "ping", "metrics"])
def test_a_request_as_a_command_is_shown_as_a_request(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([word])
    assert f"""echo '{{"method": "{word}"}}' | embed-worker""" in capsys.readouterr().err


def test_embed_says_in_one_line_which_model_there_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["embed", "--model", "all-minilm-l6", "text"])  # other than by case, which some systems do not tell
    assert ended.value.code == ExitCode.UNUSABLE_MODEL
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert err.endswith("did you mean `all-MiniLM-L6-v2`?\n")


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("texts.txt", "for a file, say `embed-worker embed 'texts.txt' -o vectors.npy`"),
        ("tests", "for a file, say `embed-worker embed 'tests' -o vectors.npy`"),
        ("hello", 'for the vector of a text, say `embed-worker embed "some text"`'),
        ("A sentence. And more", 'for the vector of a text, say `embed-worker embed "some text"`'),
    ],
)
def test_a_file_or_a_text_as_a_command_is_told_of_embed(
    word: str, hint: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as ended:
        main([word])
    assert ended.value.code == ExitCode.USAGE
    error = capsys.readouterr().err
    assert hint in error
    assert error.count("\n") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
def test_a_worker_at_a_terminal_says_what_it_waits_for_and_how_to_leave() -> None:
    import pty

    ours, terminal = pty.openpty()
    command = [sys.executable, "-m", "embed_worker", "--model", str(TINY_MODEL)]
    with subprocess.Popen(command, stdin=terminal, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT) as process:
        os.close(terminal)
        assert process.stderr is not None
        said = process.stderr.readline().decode()
        os.write(ours, b"\x04")
        rest = process.communicate(timeout=WAIT_S)
    os.close(ours)
    assert said == 'embed-worker: waiting for lines such as {"inputs": "some text"}; Ctrl-D ends, --help tells more\n'
    assert rest == (b"", b"")
    assert process.returncode == 0


def test_every_command_is_a_tool_with_a_line_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        make_parser().parse_args(["--help"])
    text = capsys.readouterr().out
    for name, what in COMMANDS.items():
        assert f"  {name:9} {what}" in text
        assert name == "serve" or find_spec(f"embed_worker.tools.{name}") is not None


@pytest.mark.skipif(sys.platform == "win32", reason="a shell's pipe")
@pytest.mark.parametrize(
    "arguments",
    [
        ["inspect", str(TINY_MODEL)],
        ["models"],
        ["models", "--json"],
        ["check", "--quick", str(TINY_MODEL)],
        ["embed", "--model", str(TINY_MODEL), "text"],
        ["--help"],
        ["--version"],
        ["embed", "--help"],
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_a_tool_whose_reader_has_seen_enough_ends_without_a_traceback(arguments: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "embed_worker", *arguments]
    # Buffered as for most people: what is left is written at the very end.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        command, env=environment, stdout=writing, stderr=subprocess.PIPE, cwd=ROOT, timeout=WAIT_S, check=False
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (ExitCode.PIPE_FAILED, b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_tool_whose_output_takes_no_more_says_so_in_one_line() -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "embed_worker", "models"],
            stdout=full, stderr=subprocess.PIPE, cwd=ROOT, timeout=WAIT_S, check=False,
        )  # fmt: skip
    assert done.returncode == ExitCode.PIPE_FAILED
    assert done.stderr.decode().splitlines() == [f"embed-worker models: {os.strerror(errno.ENOSPC)}"]


_WRITES_FOR_LONG = """
import sys, time
from pathlib import Path
from embed_worker.__main__ import run_tool
from embed_worker.atomic import written_aside
from embed_worker.tools import quantize

def run(arguments):
    with written_aside(Path("model.onnx")):
        print("it writes", flush=True)
        time.sleep(600)

quantize.run = run
sys.exit(run_tool("quantize", ["."]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows ends a process without a signal")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_tool_that_is_told_to_end_leaves_nothing_half_written(number: signal.Signals, tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _WRITES_FOR_LONG],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "it writes\n"
        assert len(list(tmp_path.iterdir())) == 1
        process.send_signal(number)
        _, problem = process.communicate(timeout=WAIT_S)
    assert (process.returncode, problem) == (ExitCode.INTERRUPTED, "embed-worker quantize: interrupted\n")
    assert not list(tmp_path.iterdir())


CTRL_C_AMONG_THE_IMPORTS = """
import os, runpy, signal, sys
class CtrlC:
    def find_spec(self, name, path=None, target=None):
        if name == "embed_worker.protocol":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, CtrlC())
sys.argv[1:] = ["models"]
runpy.run_module("embed_worker", run_name="__main__", alter_sys=True)
"""


@pytest.mark.skipif(os.name == "nt", reason="signals are sent as on POSIX")
def test_ctrl_c_before_a_command_has_begun_is_quiet() -> None:
    command = [sys.executable, "-c", CTRL_C_AMONG_THE_IMPORTS]
    done = subprocess.run(command, capture_output=True, cwd=ROOT, timeout=WAIT_S, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (ExitCode.INTERRUPTED, b"", b"")


def test_a_tool_that_is_interrupted_says_so_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(arguments: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib.import_module("embed_worker.tools.check"), "run", interrupted)
    with pytest.raises(SystemExit) as ended:
        main(["check"])
    assert (ended.value.code, capsys.readouterr().err) == (ExitCode.INTERRUPTED, "embed-worker check: interrupted\n")


def test_a_tool_reads_nothing_and_writes_to_nobody_where_its_streams_are_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(SystemExit) as ended:
        main(["models"])
    assert ended.value.code == ExitCode.OK
    assert sys.stdin.buffer.read() == b""
    for stream in (sys.stdin, sys.stdout):
        stream.close()


@pytest.mark.skipif(os.name == "nt", reason="a shell of POSIX closes a descriptor")
@pytest.mark.parametrize(
    ("command", "status"),
    [
        ("embed nothing -o x.npy", ExitCode.USAGE),
        ("inspect nothing", ExitCode.UNUSABLE_MODEL),
        ("pull nobody/nothing", ExitCode.UNUSABLE_MODEL),
    ],
)
def test_a_tool_without_standard_error_has_its_own_exit_status_and_says_nothing_elsewhere(
    command: str, status: int, tmp_path: Path
) -> None:
    done = subprocess.run(
        f'exec "{sys.executable}" -m embed_worker {command} 2>&-',
        shell=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "XDG_DATA_HOME": str(tmp_path)},
        stdout=subprocess.PIPE,
        timeout=WAIT_S,
    )
    assert (done.returncode, done.stdout) == (status, b"")


def test_help_is_shown_where_not_all_its_characters_can_be() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}
    for command in ("--help", "embed --help"):
        done = subprocess.run(
            [sys.executable, "-m", "embed_worker", *command.split()],
            env=environment, capture_output=True, timeout=WAIT_S,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (ExitCode.OK, b"")
        assert b"cls, lasttoken" in done.stdout


def test_help_names_every_option_and_every_request(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        make_parser().parse_args(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for word in ("--model ", "--pooling", "--supervised", "--max-in-flight-bytes", "exit status"):
        assert word in text
    assert set(METHODS) - {"embed_batch"} <= set(
        re.findall(r"\w+", text.partition("requests,")[2].partition("commands,")[0])
    )


@pytest.mark.parametrize(
    ("error", "status"),
    [
        ('RuntimeError("can\'t start new thread")', ExitCode.TRY_AGAIN),
        ("MemoryError()", ExitCode.TRY_AGAIN),
        ("OSError(errno.EAGAIN, 'no')", ExitCode.TRY_AGAIN),
        ("KeyError('a bug')", ExitCode.INTERNAL),
    ],
)
def test_what_the_machine_lacked_for_a_moment_ends_the_worker_with_75(error: str, status: int) -> None:
    program = (
        "import errno, sys; from embed_worker.__main__ import serve; from embed_worker.config import WorkerConfig\n"
        "from embed_worker.serving import server\n"
        f"def run(self): raise {error}\n"
        "server.Server.run = run; sys.exit(serve(WorkerConfig()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=WAIT_S,
        check=False,
    )
    assert done.returncode == status, done.stderr
