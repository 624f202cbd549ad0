"""The faults of the fake worker, as its command line names them."""

from __future__ import annotations

import argparse

from embed_worker import protocol
from embed_worker.protocol import Limits


def make_parser(description: str | None = None) -> argparse.ArgumentParser:
    """Return what reads the faults of a command line."""
    parser = argparse.ArgumentParser(prog="fake_worker", description=description, allow_abbrev=False)
    add = parser.add_argument
    add("--supervised", action="store_true", help="accepted for the sake of the real command line")
    add("--model", default="fake-model", help="the name to tell")
    add("--dimension", type=int, default=8, help="of the vectors (8)")
    add("--fingerprint", default="fake000000000001", help="to tell")
    add("--protocol", type=int, default=protocol.PROTOCOL_VERSION, help="to tell")
    add("--max-inputs", type=int, default=Limits().max_inputs, help="to tell and to insist on")
    add("--max-line-bytes", type=int, default=Limits().max_line_bytes, help="to tell")
    add("--max-in-flight", type=int, default=Limits().max_in_flight, help="to tell")
    add("--start-delay", type=float, default=0.0, metavar="S", help="before `info` is answered")
    add("--fail-start", type=int, metavar="STATUS", help="exit so instead of starting")
    add("--latency", type=float, default=0.0, metavar="S", help="of each embed; pings are answered meanwhile")
    add("--exit-after", metavar="N[:STATUS]", help="exit (0) on the request after N")
    add("--kill-after", metavar="N[:SIGNAL]", help="die of a signal (KILL) on the request after N")
    add("--hang-after", type=int, metavar="N", help="read on but answer nothing, not even pings")
    add("--stall-after", type=int, metavar="N", help="answer pings, but no embed")
    add("--stop-after", type=int, metavar="N", help="send SIGSTOP to itself")
    add("--stop-reading-after", type=int, metavar="N", help="read nothing more")
    add("--close-output-after", type=int, metavar="N", help="close standard output and live on")
    add("--garbage-before-ready", type=int, default=0, metavar="LINES", help="lines that are not JSON")
    add("--garbage-after", type=int, metavar="N", help="one such line instead of the answer after N")
    add("--partial-line-after", type=int, metavar="N", help="half an answer, then SIGKILL")
    add("--wrong-count-after", type=int, metavar="N", help="a vector too many")
    add("--wrong-dimension-after", type=int, metavar="N", help="a number too many in each vector")
    add("--truncated-base64-after", type=int, metavar="N", help="fewer bytes than told")
    add("--nan-after", type=int, metavar="N", help="a NaN in the first vector")
    add("--other-fingerprint-after", type=int, metavar="N", help="an answer with another fingerprint")
    add("--duplicate-after", type=int, metavar="N", help="answers twice")
    add("--unknown-ids", action="store_true", help="an answer to nobody before each answer")
    add("--reorder", type=int, metavar="N", help="hold answers back and write N of them in reverse")
    add("--error-after", metavar="N:CODE", help="this error instead of vectors")
    add("--poison", action="append", default=[], metavar="TEXT", help="die on an input that contains this; repeatable")
    add("--poison-signal", default="SEGV", metavar="SIGNAL", help="of which (SEGV)")
    add("--poison-status", type=int, metavar="STATUS", help="or with which exit status")
    add("--poison-hangs", action="store_true", help="or hang on it")
    add("--oom-above", type=int, metavar="INPUTS", help="die of SIGKILL on a request with more inputs")
    add("--exit-75-above", type=int, metavar="INPUTS", help="answer out_of_memory to such a request, then exit 75")
    add("--stderr-flood", type=int, default=0, metavar="BYTES", help="lines to standard error before the first answer")
    add("--stderr-no-newline", action="store_true", help="without newlines")
    add("--say", default="", metavar="TEXT", help="a line to standard error at the start")
    add("--ignore-term", action="store_true", help="ignore SIGTERM")
    add("--ignore-eof", action="store_true", help="live on after the end of input")
    add("--ignore-parent", action="store_true", help="do not watch whether the host is alive")
    add("--grandchild", metavar="PID-FILE", help="leave a child that holds the pipes; its pid is written there")
    add("--change-model", action="store_true", help="another fingerprint in every process: needs --count-file")
    add("--count-file", metavar="PATH", help="counts the processes that share it")
    add("--processes", type=int, metavar="N", help="faults in the first N processes only: needs --count-file")
    add("--slow-write", metavar="BYTES:S", help="write answers in pieces, with pauses")
    return parser
