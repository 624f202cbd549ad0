/** @import { WorkerInfo } from "../index.js" */
/** @import { Call } from "./call.js" */
/** @import { Sentence } from "./ends.js" */
/** @import { Health } from "./health.js" */
/** @import { Piece } from "./job.js" */
/** @import { Settings } from "./options.js" */
/** @import { Members } from "./wire.js" */
import { spawn } from "node:child_process";
import process from "node:process";

import { later } from "./call.js";
import { causeOf, meaningOf } from "./ends.js";
import { environment } from "./environment.js";
import { EmbedBridgeError } from "./errors.js";
import { PIECE_TOKENS } from "./job.js";

export const MAX_ANSWER_BYTES = 256 * 2 ** 20;
export const STDERR_TAIL_BYTES = 8 * 1024;
export const PIPE_GRACE_MS = 250; // a grandchild may hold the pipes of a dead worker open
export const WINDOW_PIECES = 256; // more would not make better batches, only more suspects
export const WINDOW_TOKENS = 4 * PIECE_TOKENS; // of bulk work, so that time-outs measure work and not the queue
export const WINDOW_BYTES = 16 * 2 ** 20;
const OUTBOX_LINES = 1024; // more than a full window, and a cancel for each of it
const QUOTED_BYTES = 200;
const NEWLINE = 10;

const MESSAGES = {
  start: "the worker did not start",
  worker_died: "the worker died",
  worker_hung: "the worker hung and was killed",
  protocol_mismatch: "the worker cannot be used",
  model_changed: "the worker came back with another model",
};

/** Cuts a stream into lines in time linear in its length. Only a newline completes a line. */
export class LineBuffer {
  /** @type {Buffer[]} */
  #parts = [];
  partialBytes = 0;

  /**
   * Take the next chunk of the stream; return the lines that it completes, blank ones left out.
   * @param {Buffer} chunk
   */
  feed(chunk) {
    const lines = [];
    let start = 0;
    for (let end; (end = chunk.indexOf(NEWLINE, start)) !== -1; start = end + 1) {
      this.#parts.push(chunk.subarray(start, end));
      const line = this.#parts.length === 1 ? chunk.subarray(start, end) : Buffer.concat(this.#parts);
      if (!isBlank(line)) lines.push(line);
      this.#parts = [];
      this.partialBytes = 0;
    }
    if (start < chunk.length) this.#parts.push(chunk.subarray(start));
    this.partialBytes += chunk.length - start;
    return lines;
  }

  /** What a line that has no end yet begins with. */
  get partial() {
    return Buffer.concat(this.#parts.slice(0, 1)).subarray(0, QUOTED_BYTES);
  }
}

/** @param {Buffer} line */
function isBlank(line) {
  for (const byte of line) if (byte > 32) return false;
  return true;
}

/**
 * The workers of this process. One that ends without close() takes them along; if it is killed, they see that.
 * @type {Set<Worker>}
 */
const running = new Set();
const killRunning = () => running.forEach((worker) => worker.signal("SIGKILL"));

/**
 * What a host asks, and waits for.
 * @typedef {object} Question
 * @property {Call<any>} call
 * @property {(members: Members) => void} take
 * @property {() => void} askAgain of the next worker
 */

/**
 * Who hears what happens to a worker: every line of its standard output, that there can be no more of them, and, last of
 * all and once, that it is reaped or could not be started.
 * @typedef {object} Owner
 * @property {(worker: Worker, line: Buffer) => void} onLine
 * @property {(worker: Worker, why: string) => void} onEndOfOutput
 * @property {(worker: Worker, spawnError?: NodeJS.ErrnoException) => void} onGone
 */

/**
 * One process and its pipes: dropped whole when it dies, so that nothing late of it counts. The fields from `info` on
 * belong to the client.
 */
export class Worker {
  /** @type {WorkerInfo | undefined} */ info; // once it is ready
  /** @type {Set<number>} */ infoIds = new Set(); // under which it was asked
  /** @type {Health | undefined} */ health;
  /** @type {Map<number, Piece>} */ pieces = new Map(); // in flight, by id
  /** @type {Map<number, Question | undefined>} */ questions = new Map(); // by id; undefined: a ping of the client's own
  /** @type {Piece | undefined} */ trial; // a suspect, alone in flight
  nonsense = 0; // lines before it was ready
  /** @type {Sentence | undefined} */ killedFor;
  isDoomed = false; // gets nothing new
  isGone = false;
  /** @type {number | undefined} */ readySince;
  /** @type {number | undefined} */ usefulSince;
  callOff = () => {}; // the timer of its start, then of its health
  #bytes = 0; // in flight
  #bulkTokens = 0;

  #child;
  #owner;
  #lines = new LineBuffer();
  #isReaped = false;
  /** @type {Buffer[]} */ #outbox = [];
  #inputEnded = false;
  /** @type {Buffer} */ #stderrTail = Buffer.alloc(0);
  #printed = ""; // that was no answer

  /**
   * Start a process.
   * @param {Settings} options
   * @param {Owner} owner
   * @throws what `spawn` throws, for arguments that no process can have
   */
  constructor(options, owner) {
    const [file = "", ...args] = options.command;
    this.#owner = owner;
    this.#child = spawn(file, args, {
      cwd: options.cwd,
      env: environment(options.env),
      stdio: "pipe",
      detached: process.platform !== "win32", // a group of its own, where the terminal's Ctrl-C does not reach it
      windowsHide: true,
    });
    this.#child.unref(); // like the pipes: pending calls keep the host alive, and nothing else
    this.#child.on("error", (error) => {
      if (this.pid === undefined) this.#finish(error);
    });
    this.#child.on("exit", () => this.#onExit());
    if (this.#child.stdin) this.#attach(options); // a host without descriptors has no pipes
    if (running.size === 0) process.on("exit", killRunning);
    running.add(this);
  }

  /** @param {Settings} options */
  #attach({ onStderr }) {
    const { stdin, stdout, stderr } = this.#child;
    for (const pipe of [stdin, stdout, stderr]) {
      /** @type {import("node:net").Socket} */ (/** @type {unknown} */ (pipe)).unref();
      pipe.on("error", () => {}); // the worker's end, or its silence, will tell
    }
    stdin.on("drain", () => this.#flush());
    stderr.on("data", (/** @type {Buffer} */ chunk) => {
      this.#stderrTail = Buffer.concat([this.#stderrTail, chunk]).subarray(-STDERR_TAIL_BYTES);
      onStderr?.(chunk);
    });
    stdout.on("data", (/** @type {Buffer} */ chunk) => {
      for (const line of this.#lines.feed(chunk)) this.#owner.onLine(this, line);
      if (this.#lines.partialBytes > MAX_ANSWER_BYTES) {
        stdout.destroy();
        this.#owner.onEndOfOutput(this, `it wrote a line of more than ${MAX_ANSWER_BYTES} bytes`);
      }
    });
    stdout.on("end", () => this.#owner.onEndOfOutput(this, "it closed its standard output but lived on"));
  }

  get pid() {
    return this.#child.pid;
  }

  /** What its standard output holds beside answers: of the last such line, and of what has no end yet. */
  get printed() {
    return `${this.#printed}${this.#lines.partial}`.slice(-QUOTED_BYTES);
  }

  /** @param {Buffer} line */
  notePrinted(line) {
    this.#printed = `${line.subarray(0, QUOTED_BYTES)}\n`;
  }

  #onExit() {
    this.#isReaped = true;
    // Its children, if it left any. Its number is the group's as long as they live; but if they do not, it is free, and
    // somebody else's group by now where a process has it.
    if (!isTaken(this.pid)) this.#signalGroup("SIGKILL");
    const callOff = later(PIPE_GRACE_MS, () => this.#finish());
    this.#child.on("close", () => {
      callOff();
      this.#finish();
    });
  }

  /** @param {NodeJS.ErrnoException} [spawnError] */
  #finish(spawnError) {
    if (this.isGone) return;
    this.isGone = true;
    this.callOff();
    running.delete(this);
    if (running.size === 0) process.off("exit", killRunning);
    for (const pipe of this.#child.stdio ?? []) pipe?.destroy();
    this.#owner.onGone(this, spawnError);
  }

  /** Take it for gone although it does not die. */
  abandon() {
    this.#isReaped = true;
    this.#finish();
  }

  /**
   * Queue a line; false if the worker has not read for so long that there is no room. Never blocks.
   * @param {Buffer} line
   */
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

  /**
   * Reach the worker and its children, unless the number may be somebody else's by now.
   * @param {NodeJS.Signals} name
   */
  signal(name) {
    if (!this.#isReaped) this.#signalGroup(name);
  }

  /** @param {NodeJS.Signals} name */
  #signalGroup(name) {
    if (this.pid === undefined) return;
    try {
      if (process.platform === "win32") this.#child.kill(name);
      else process.kill(-this.pid, name);
    } catch {
      // It is gone already.
    }
  }

  /** Whether it may be sent something. */
  get accepts() {
    return this.info !== undefined && !this.isDoomed;
  }

  /**
   * Whether a piece fits into the window of what is in flight.
   * @param {Piece} piece
   */
  hasRoom(piece) {
    if (!this.info) return false;
    const { maxInFlight, maxInFlightBytes } = this.info.limits;
    if (this.pieces.size === 0) return true;
    if (this.pieces.size >= Math.min(WINDOW_PIECES, maxInFlight)) return false;
    if (this.#bytes + piece.bytes > Math.min(WINDOW_BYTES, maxInFlightBytes / 2)) return false;
    // Only bulk work counts against bulk work.
    return piece.isShort || this.#bulkTokens === 0 || this.#bulkTokens + piece.tokens <= WINDOW_TOKENS;
  }

  /**
   * @param {number} id
   * @param {Piece} piece
   */
  load(id, piece) {
    this.pieces.set(id, piece);
    this.#count(piece, 1);
    if (piece.isSuspect) this.trial = piece;
  }

  /**
   * @param {number} id
   * @param {Piece} piece
   */
  unload(id, piece) {
    this.pieces.delete(id);
    this.#count(piece, -1);
    if (this.trial === piece) this.trial = undefined;
  }

  /**
   * @param {Piece} piece
   * @param {1 | -1} sign
   */
  #count(piece, sign) {
    this.#bytes += sign * piece.bytes;
    if (!piece.isShort) this.#bulkTokens += sign * piece.tokens;
  }

  /** Return the error that tells of its end, and what the end means. */
  describe() {
    const { signalCode } = this.#child;
    const exitCode = this.pid === undefined ? null : this.#child.exitCode; // else a system error's number
    const cause = causeOf(exitCode, signalCode);
    const { kind, detail, isPermanent = false, blamesInput = false } = meaningOf(cause, this.killedFor, !!this.info);
    const stderrTail = this.#stderrTail.toString().replace(/\r\n?/g, "\n").trim(); // of Windows, or of a progress bar
    const parts = [
      MESSAGES[/** @type {keyof MESSAGES} */ (kind)],
      detail,
      signalCode ?? (exitCode !== null ? `exit status ${exitCode}` : undefined),
      stderrTail && `the end of its standard error: ${JSON.stringify(stderrTail)}`,
    ];
    const facts = { exitCode, signal: signalCode, stderrTail, blamesInput };
    const error = new EmbedBridgeError(kind, parts.filter(Boolean).join("; "), facts);
    return { error, isPermanent, isRecycle: cause === "recycled" };
  }
}

/**
 * Whether a process has that number.
 * @param {number | undefined} pid
 */
function isTaken(pid) {
  if (pid === undefined || process.platform === "win32") return true; // there are no groups
  try {
    return process.kill(pid, 0);
  } catch (error) {
    return /** @type {NodeJS.ErrnoException} */ (error).code !== "ESRCH";
  }
}
