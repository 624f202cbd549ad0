import { spawn } from "node:child_process";

import { EmbedBridgeError } from "./errors.js";
import { later } from "./call.js";
import { PIECE_TOKENS } from "./job.js";
import { environment } from "./options.js";

const MAX_LINE_BYTES = 256 * 2 ** 20; // of an answer
const STDERR_KEPT_BYTES = 8 * 1024;
const PIPE_GRACE_MS = 250; // a grandchild may hold the pipes of a dead worker open
const OUTBOX_LINES = 1024; // more than a full window, and a cancel for each of it
const WINDOW_PIECES = 256; // more would not make better batches, only more suspects
const WINDOW_TOKENS = 4 * PIECE_TOKENS; // of bulk work, so that time-outs measure work and not the queue
const WINDOW_BYTES = 16 * 2 ** 20;
const NEWLINE = 10;

const MESSAGES = {
  start: "the worker did not start",
  worker_died: "the worker died",
  worker_hung: "the worker hung and was killed",
  protocol_mismatch: "the worker cannot be used",
  model_changed: "the worker came back with another model",
};

/** Exit statuses after which another start cannot help: usage, configuration, and a shell that did not find it. */
const PERMANENT_STATUSES = [2, 78, 126, 127];
const RECYCLED_STATUS = 79;

/** Cuts a stream into lines in time linear in its length. Only a newline completes a line. */
export class LineBuffer {
  #parts = [];
  partialBytes = 0;

  /** Take the next chunk of the stream; return the lines that it completes, blank ones left out. */
  feed(chunk) {
    const lines = [];
    let start = 0;
    for (let end; (end = chunk.indexOf(NEWLINE, start)) !== -1; start = end + 1) {
      this.#parts.push(chunk.subarray(start, end));
      const line = Buffer.concat(this.#parts).toString().trim();
      if (line) lines.push(line);
      this.#parts = [];
      this.partialBytes = 0;
    }
    if (start < chunk.length) this.#parts.push(chunk.subarray(start));
    this.partialBytes += chunk.length - start;
    return lines;
  }
}

/** The workers of this process. One that ends without close() takes them along; if it is killed, they see that. */
const running = new Set();
const killRunning = () => running.forEach((worker) => worker.signal("SIGKILL"));

/**
 * One process and its pipes: dropped whole when it dies, so that nothing late of it counts. The fields from `info` on
 * belong to the client.
 */
export class Worker {
  info; // once it is ready
  infoId;
  health;
  pieces = new Map(); // in flight, by id, in the order of sending
  pings = new Map(); // calls of ping(), by id; undefined for the client's own
  trial; // a suspect, alone in flight
  nonsense = 0; // lines before it was ready
  cause; // why we killed it
  isDoomed = false; // gets nothing new
  isGone = false;
  readySince;
  usefulSince;
  callOff = () => {}; // the timer of its start, then of its health
  #bytes = 0; // in flight
  #bulkTokens = 0;

  #child;
  #isReaped = false;
  #outbox = [];
  #inputEnded = false;
  #stderrTail = Buffer.alloc(0);

  /**
   * Start a process. `owner.onLine` hears every line of its standard output, `onEndOfOutput` that there can be no more
   * of them, and `onGone`, last of all and once, that it is reaped or could not be started.
   * @throws what `spawn` throws, for arguments that no process can have
   */
  constructor(options, owner) {
    const [file, ...args] = options.command;
    this.#child = spawn(file, args, {
      cwd: options.cwd,
      env: environment(options.env),
      stdio: "pipe",
      detached: process.platform !== "win32", // a group of its own, where the terminal's Ctrl-C does not reach it
      windowsHide: true,
    });
    this.#child.unref(); // like the pipes: pending calls keep the host alive, and nothing else
    this.#child.on("error", (error) => {
      if (this.pid === undefined) this.#finish(owner, error);
    });
    this.#child.on("exit", () => this.#onExit(owner));
    if (this.#child.stdin) this.#attach(options, owner); // a host without descriptors has no pipes
    if (running.size === 0) process.on("exit", killRunning);
    running.add(this);
  }

  #attach({ onStderr }, owner) {
    const { stdin, stdout, stderr } = this.#child;
    for (const pipe of [stdin, stdout, stderr]) {
      pipe.unref();
      pipe.on("error", () => {}); // the worker's end, or its silence, will tell
    }
    stdin.on("drain", () => this.#flush());
    stderr.on("data", (chunk) => {
      this.#stderrTail = Buffer.concat([this.#stderrTail, chunk]).subarray(-STDERR_KEPT_BYTES);
      onStderr?.(chunk);
    });
    this.#read(stdout, owner);
  }

  get pid() {
    return this.#child.pid;
  }

  #read(stdout, owner) {
    const lines = new LineBuffer();
    stdout.on("data", (chunk) => {
      for (const line of lines.feed(chunk)) owner.onLine(this, line);
      if (lines.partialBytes > MAX_LINE_BYTES) {
        stdout.destroy();
        owner.onEndOfOutput(this, `it wrote a line of more than ${MAX_LINE_BYTES} bytes`);
      }
    });
    stdout.on("end", () => owner.onEndOfOutput(this, "it closed its standard output but lived on"));
  }

  #onExit(owner) {
    this.signal("SIGKILL"); // its children, if it left any
    this.#isReaped = true;
    const callOff = later(PIPE_GRACE_MS, () => this.#finish(owner));
    this.#child.on("close", () => {
      callOff();
      this.#finish(owner);
    });
  }

  #finish(owner, spawnError) {
    if (this.isGone) return;
    this.isGone = true;
    this.callOff();
    running.delete(this);
    if (running.size === 0) process.off("exit", killRunning);
    for (const pipe of this.#child.stdio ?? []) pipe.destroy();
    owner.onGone(this, spawnError);
  }

  /** Queue a line; false if the worker has not read for so long that there is no room. Never blocks. */
  send(line) {
    if (this.#inputEnded) return true;
    if (this.#outbox.length === OUTBOX_LINES) return false;
    this.#outbox.push(line);
    this.#flush();
    return true;
  }

  #flush() {
    const { stdin } = this.#child;
    if (!stdin) return;
    while (this.#outbox.length > 0 && !stdin.writableNeedDrain) stdin.write(this.#outbox.shift());
    if (this.#inputEnded && this.#outbox.length === 0) stdin.end();
  }

  /** Close standard input behind what is queued: the worker's sign to finish and leave. */
  endInput() {
    this.#inputEnded = true;
    this.#flush();
  }

  /** Reach the worker and its children, unless the number may be somebody else's by now. */
  signal(name) {
    if (this.#isReaped || this.pid === undefined) return;
    try {
      if (process.platform === "win32") this.#child.kill(name);
      else process.kill(-this.pid, name);
    } catch {
      // It is gone already.
    }
  }

  /** Whether a piece fits into the window of what is in flight. */
  hasRoom(piece) {
    const { max_in_flight: maxInFlight, max_in_flight_bytes: maxInFlightBytes } = this.info.limits;
    if (this.pieces.size === 0) return true;
    if (this.pieces.size >= Math.min(WINDOW_PIECES, maxInFlight)) return false;
    if (this.#bytes + piece.bytes > Math.min(WINDOW_BYTES, maxInFlightBytes / 2)) return false;
    // Only bulk work counts against bulk work.
    return piece.isShort || this.#bulkTokens === 0 || this.#bulkTokens + piece.tokens <= WINDOW_TOKENS;
  }

  load(id, piece) {
    this.pieces.set(id, piece);
    this.#count(piece, 1);
  }

  unload(id, piece) {
    this.pieces.delete(id);
    this.#count(piece, -1);
    if (this.trial === piece) this.trial = undefined;
  }

  #count(piece, sign) {
    this.#bytes += sign * piece.bytes;
    if (!piece.isShort) this.#bulkTokens += sign * piece.tokens;
  }

  get isRecycle() {
    return this.cause === undefined && this.#child.exitCode === RECYCLED_STATUS;
  }

  /** Return the error that tells of its end, and whether another start could help. */
  describe() {
    const { kind = this.info ? "worker_died" : "start", detail, isPermanent = false } = this.cause ?? {};
    const { signalCode } = this.#child;
    const exitCode = this.pid === undefined ? null : this.#child.exitCode; // else a system error's number
    const stderrTail = this.#stderrTail.toString().trim();
    const parts = [
      MESSAGES[kind],
      detail,
      signalCode ?? (exitCode !== null ? `exit status ${exitCode}` : undefined),
      stderrTail && `the end of its standard error: ${JSON.stringify(stderrTail)}`,
    ];
    return {
      error: new EmbedBridgeError(kind, parts.filter(Boolean).join("; "), { exitCode, signal: signalCode, stderrTail }),
      isPermanent: isPermanent || PERMANENT_STATUSES.includes(exitCode),
    };
  }
}
