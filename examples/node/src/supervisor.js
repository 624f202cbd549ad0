/** @import { WorkerInfo } from "../index.js" */
/** @import { Sentence } from "./ends.js" */
/** @import { Settings } from "./options.js" */
/** @import { Members } from "./wire.js" */
import { existsSync } from "node:fs";

import { later } from "./call.js";
import { Dispatcher, now } from "./dispatcher.js";
import { brokeProtocol, hung, modelChanged, notStarted } from "./ends.js";
import { circuitOpenError, closedError, EmbedBridgeError } from "./errors.js";
import { Health } from "./health.js";
import { Restarts } from "./restarts.js";
import { decodeError, decodeInfo, decodeLine } from "./wire.js";
import { Worker } from "./worker.js";

export const NONSENSE_BEFORE_READY = 20; // lines of a chatty library or wrapper script
export const PIPE_LOST_MS = 1_000;
const IMMORTAL_AFTER_MS = 5_000; // of SIGKILL, beyond terminateMs

/** The lives of the workers: keeps one alive. `EmbedBridge` is its face, and `dispatcher` has the calls. */
export class Supervisor {
  dispatcher;
  #options;
  #restarts;
  /** @type {EmbedBridgeError | undefined} */ #failure; // what calls are refused with, while they are
  /** @type {WorkerInfo | undefined} */ #expected; // what every worker must serve, since the first was ready
  #spawned = 0;
  #callOffStart = () => {};
  /** @type {Promise<void> | undefined} */ #closing;
  /** @type {((error?: Error) => void) | undefined} */ #onClosed; // what settles it, until it is

  /** @param {Settings} options */
  constructor(options) {
    this.#options = options;
    this.#restarts = new Restarts(options);
    this.dispatcher = new Dispatcher(options, {
      begin: () => this.#begin(),
      kill: (worker, sentence) => this.#kill(worker, sentence),
      doom: (worker, graceMs, detail) => this.#doom(worker, graceMs, detail),
      checkHealth: (worker) => this.#checkHealth(worker),
    });
  }

  #begin() {
    if (this.#spawned === 0 && !this.#failure) this.#spawn();
    if (this.#failure) throw this.#failure;
  }

  stats() {
    const { worker, queued } = this.dispatcher;
    return {
      pid: worker?.pid,
      isReady: worker?.accepts ?? false,
      restarts: Math.max(0, this.#spawned - 1),
      inFlight: worker?.pieces.size ?? 0,
      queued,
    };
  }

  close() {
    this.#closing ??= new Promise((resolve, reject) => {
      this.#onClosed = (error) => (error ? reject(error) : resolve());
      this.#failure = closedError();
      this.dispatcher.closing();
      this.#callOffStart();
      if (this.dispatcher.worker) this.#climbLadder(this.dispatcher.worker);
      else this.#closed();
    });
    return this.#closing;
  }

  // Answers

  /**
   * @param {Worker} worker
   * @param {Buffer} line
   */
  #onLine(worker, line) {
    if (this.dispatcher.worker !== worker || worker.killedFor) return; // nothing that it still says counts
    try {
      const members = decodeLine(line);
      if (worker.infoIds.has(/** @type {number} */ (members.id)) && !worker.info) this.#onInfo(worker, members);
      else this.dispatcher.onAnswer(worker, members);
    } catch (error) {
      this.#onStrangeLine(worker, line, error instanceof Error ? error.message : String(error));
    }
    this.dispatcher.dispatch();
  }

  /**
   * Decide about a line that is no answer: before the worker is ready a library or a wrapper script may print.
   * @param {Worker} worker
   * @param {Buffer} line
   * @param {string} why
   */
  #onStrangeLine(worker, line, why) {
    if (worker.info || ++worker.nonsense > NONSENSE_BEFORE_READY) {
      this.#kill(worker, brokeProtocol(why));
    } else {
      worker.notePrinted(line);
      this.#askInfo(worker); // a banner without a newline has swallowed the answer, perhaps
    }
  }

  /** @param {Worker} worker */
  #askInfo(worker) {
    worker.infoIds.add(this.dispatcher.control(worker, { method: "info" }));
  }

  /**
   * Compare what a new worker is with what it has to be.
   * @param {Worker} worker
   * @param {Members} members
   */
  #onInfo(worker, members) {
    if (members.status === "error") {
      const { code, message, retryable } = decodeError(members, 0);
      this.#kill(worker, { ...notStarted(`${code}: ${message}`), isPermanent: !retryable });
      return;
    }
    let info;
    try {
      info = decodeInfo(members);
    } catch (error) {
      const detail = /** @type {Error} */ (error).message;
      this.#kill(worker, { kind: "protocol_mismatch", detail, isPermanent: true });
      return;
    }
    this.#expected ??= info;
    if (identityOf(info) !== identityOf(this.#expected)) {
      this.#kill(worker, modelChanged(`${identityOf(info)} instead of ${identityOf(this.#expected)}`));
      return;
    }
    worker.info = info;
    worker.readySince = now();
    worker.health = new Health(now(), this.#options);
    this.#watch(worker, worker.health);
    this.dispatcher.ready(worker, info);
  }

  // Workers

  #spawn() {
    this.#failure = undefined;
    this.#spawned++;
    let worker;
    try {
      worker = new Worker(this.#options, {
        onLine: (from, line) => this.#onLine(from, line),
        onEndOfOutput: (from, why) => this.#doom(from, PIPE_LOST_MS, why),
        onGone: (from, spawnError) => this.#onGone(from, spawnError),
      });
    } catch (error) {
      this.#refuseAll(new EmbedBridgeError("start", /** @type {Error} */ (error).message, { cause: error }));
      return;
    }
    this.dispatcher.worker = worker;
    worker.callOff = later(this.#options.startTimeoutMs, () => this.#onNotReady(worker));
    this.#askInfo(worker);
  }

  /** @param {Worker} worker */
  #onNotReady(worker) {
    const { printed } = worker;
    const quoted = printed && `; its standard output holds something else than answers: ${JSON.stringify(printed)}`;
    this.#kill(worker, notStarted(`not ready after ${this.#options.startTimeoutMs} ms${quoted}`));
  }

  /**
   * Ping a ready worker when it is silent, and kill it when it hangs.
   * @param {Worker} worker
   * @param {Health} health
   */
  #watch(worker, health) {
    worker.callOff();
    const waitMs = health.nextCheck(worker.pieces.size > 0) - now();
    worker.callOff = later(Math.max(1, waitMs), () => {
      this.#checkHealth(worker);
      if (!worker.isDoomed) this.#watch(worker, health); // else its end is on the way, and has a time limit of its own
    });
  }

  /** @param {Worker} worker */
  #checkHealth(worker) {
    if (worker.isDoomed) return;
    const due = worker.health?.check(now(), worker.pieces.size > 0);
    if (due === "ping") worker.questions.set(this.dispatcher.control(worker, { method: "ping" }), undefined);
    if (due === "silent") this.#kill(worker, hung("it gave no sign of life"));
    if (due === "stuck") this.#kill(worker, hung("it made no progress with what it had"));
  }

  /**
   * Send nothing more to a worker that is about to end, and kill it if it does not.
   * @param {Worker} worker
   * @param {number} graceMs
   * @param {string} detail
   */
  #doom(worker, graceMs, detail) {
    worker.isDoomed = true;
    later(graceMs, () => this.#kill(worker, { kind: "worker_died", detail }));
  }

  /**
   * End a worker; #onGone will follow, for a process that does not die, too. The first cause counts.
   * @param {Worker} worker
   * @param {Sentence} sentence
   */
  #kill(worker, sentence) {
    worker.isDoomed = true;
    if (worker.isGone || worker.killedFor) return;
    worker.killedFor = sentence;
    worker.signal("SIGKILL");
    later(this.#options.terminateMs + IMMORTAL_AFTER_MS, () => worker.abandon());
  }

  /**
   * @param {Worker} worker
   * @param {NodeJS.ErrnoException} [spawnError]
   */
  #onGone(worker, spawnError) {
    this.dispatcher.worker = undefined;
    if (spawnError) {
      // What cannot be executed never will be; a system without memory or processes may recover.
      const isPermanent = ["ENOENT", "EACCES", "ENOTDIR"].includes(spawnError.code ?? "");
      // The system's error names the program, also where its working directory is not there.
      const { cwd } = this.#options;
      const isAstray = cwd !== undefined && !existsSync(cwd);
      worker.killedFor = { ...notStarted(isAstray ? `there is no folder ${cwd}` : spawnError.message), isPermanent };
    }
    const { error, isPermanent, isRecycle } = worker.describe();
    if (this.#closing) {
      this.dispatcher.failAll(worker, closedError());
      this.#closed(error.exitCode === null && !error.signal ? new Error(`worker ${worker.pid} does not die`) : undefined);
      return;
    }
    const { readySince, usefulSince } = worker;
    const life = { readySince, usefulSince, isRecycle, ...this.dispatcher.investigate(worker, error) };
    this.dispatcher.takeBack(worker, error, isRecycle);
    if (isPermanent) this.#refuseAll(error);
    else this.#restartLater(life, error);
  }

  /**
   * @param {import("./restarts.js").Life} life
   * @param {EmbedBridgeError} error
   */
  #restartLater(life, error) {
    const { waitMs, isOpen } = this.#restarts.after(life, now(), 2 * Math.random() - 1);
    if (isOpen) this.#refuseAll(circuitOpenError(waitMs, error));
    this.#callOffStart = later(waitMs, () => this.#spawn());
  }

  /**
   * Fail what waits, and every call until the next start.
   * @param {EmbedBridgeError} error
   */
  #refuseAll(error) {
    this.#failure = error;
    this.dispatcher.refuse(error);
  }

  /**
   * End a worker: the end of its input, SIGTERM, SIGKILL.
   * @param {Worker} worker
   */
  #climbLadder(worker) {
    const { drainMs, terminateMs } = this.#options;
    worker.isDoomed = true;
    worker.endInput();
    const detail = "it did not leave when it was asked to";
    later(drainMs, () => worker.signal("SIGTERM"));
    later(drainMs + terminateMs, () => this.#kill(worker, { kind: "worker_died", detail }));
  }

  /** @param {Error} [error] */
  #closed(error) {
    this.#onClosed?.(error);
    this.#onClosed = undefined;
    this.dispatcher.closed();
  }
}

/** @param {WorkerInfo} info */
const identityOf = ({ model, fingerprint, dimension }) =>
  `${JSON.stringify(model)} ${JSON.stringify(fingerprint)} of dimension ${dimension}`;
