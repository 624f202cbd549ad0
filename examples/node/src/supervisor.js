/** @import { Embeddings, WorkerInfo } from "../index.js" */
/** @import { Sentence } from "./ends.js" */
/** @import { Parameters, Settings } from "./options.js" */
/** @import { Piece } from "./job.js" */
/** @import { Members } from "./wire.js" */
import { Call, later } from "./call.js";
import { brokeProtocol, hung, modelChanged, notStarted } from "./ends.js";
import { circuitOpenError, closedError, EmbedBridgeError, requestError, timeoutError } from "./errors.js";
import { Health } from "./health.js";
import { Job } from "./job.js";
import { Queue } from "./queue.js";
import { Restarts } from "./restarts.js";
import { decodeEmbeddings, decodeError, decodeInfo, decodeLine, encodeLine, isCount } from "./wire.js";
import { Worker } from "./worker.js";

export const NONSENSE_BEFORE_READY = 20; // lines of a chatty library or wrapper script
export const LONGEST_DRAIN_MS = 15_000; // a supervised worker allows itself 10
export const PIPE_LOST_MS = 1_000;
const QUICK_DEATH_MS = 250; // of a process that was killed

const now = () => performance.now();

/** @typedef {{ signal?: AbortSignal, timeoutMs?: number }} Waiting How a call may end early. */

/** Keeps one worker alive, and every promise. `EmbedBridge` is its face. */
export class Supervisor {
  #options;
  #restarts;
  #queue = new Queue();
  /** @type {Set<Call<any>>} */ #calls = new Set(); // not over
  /** @type {Map<Call<any>, (worker: Worker, info: WorkerInfo) => void>} */ #waiting = new Map(); // for a ready worker
  /** @type {Worker | undefined} */ #worker; // none before the first call, between two processes, and at the end
  /** @type {EmbedBridgeError | undefined} */ #failure; // what calls are refused with, while they are
  /** @type {WorkerInfo | undefined} */ #expected; // what every worker must serve, since the first was ready
  /** @type {Map<string, string>} */ #fingerprints = new Map(); // by model: the vector spaces that were served
  #spawned = 0;
  #isInvestigated = false; // the deaths of the suspects have cost the budget once
  #lastId = 0; // ids are never used again
  #callOffStart = () => {};
  /** @type {NodeJS.Timeout | undefined} */ #keepAlive; // keeps the process alive while something is expected
  /** @type {Promise<void> | undefined} */ #closing;
  /** @type {((error?: Error) => void) | undefined} */ #onClosed; // what settles it, until it is

  /** @param {Settings} options */
  constructor(options) {
    this.#options = options;
    this.#restarts = new Restarts(options);
  }

  // Calls

  /**
   * @param {readonly string[]} inputs checked
   * @param {Parameters} parameters
   * @param {Waiting} waiting
   * @returns {Promise<Embeddings>}
   */
  embed(inputs, parameters, waiting) {
    return this.#begin(waiting, (call) => {
      for (const piece of new Job(call, inputs, parameters).pieces()) this.#queue.push(piece);
      this.#dispatch();
    });
  }

  /**
   * @param {string | undefined} model the worker's own without
   * @param {Waiting} waiting
   * @returns {Promise<WorkerInfo>}
   */
  info(model, waiting) {
    return this.#begin(waiting, (call) => {
      this.#whenReady(call, (worker, info) => {
        if (model === undefined || model === info.model) call.end(undefined, structuredClone(info));
        else this.#ask(worker, { method: "info", model }, call, decodeInfo);
      });
    });
  }

  /**
   * @param {Waiting} waiting
   * @returns {Promise<void>}
   */
  ping({ signal, timeoutMs = this.#options.requestTimeoutMs }) {
    return this.#begin({ signal, timeoutMs }, (call) => {
      this.#whenReady(call, (worker) => this.#ask(worker, { method: "ping" }, call, () => {}));
    });
  }

  stats() {
    const worker = this.#worker;
    return {
      pid: worker?.pid,
      isReady: worker?.accepts ?? false,
      restarts: Math.max(0, this.#spawned - 1),
      inFlight: worker?.pieces.size ?? 0,
      queued: this.#queue.length,
    };
  }

  close() {
    this.#closing ??= new Promise((resolve, reject) => {
      this.#onClosed = (error) => (error ? reject(error) : resolve());
      this.#stayAlive();
      this.#refuseAll(closedError());
      this.#callOffStart();
      if (this.#worker) this.#climbLadder(this.#worker);
      else this.#closed();
    });
    return this.#closing;
  }

  /**
   * @template T
   * @param {Waiting} waiting
   * @param {(call: Call<T>) => void} start
   * @returns {Promise<T>}
   */
  #begin(waiting, start) {
    waiting.signal?.throwIfAborted();
    if (this.#spawned === 0 && !this.#failure) this.#spawn();
    if (this.#failure) throw this.#failure;
    /** @type {Call<T>} */
    const call = new Call(waiting, (ended, error) => this.#onEnd(ended, error));
    this.#calls.add(call);
    this.#stayAlive();
    start(call);
    return call.promise;
  }

  /**
   * Forget a call; where it ended too early, the worker is told to drop what it has of it.
   * @param {Call<any>} call
   * @param {unknown} error
   */
  #onEnd(call, error) {
    this.#calls.delete(call);
    this.#stayAlive();
    if (error === undefined) return;
    this.#waiting.delete(call);
    this.#queue.withdraw();
    const worker = this.#worker;
    if (!worker) return;
    for (const [id, piece] of worker.pieces) {
      if (piece.job.call === call) this.#control(worker, { method: "cancel", target: id });
    }
  }

  /** Keep the process alive exactly while somebody waits for something: all handles and timers are unreferenced. */
  #stayAlive() {
    const isNeeded = this.#calls.size > 0 || this.#onClosed !== undefined;
    if (isNeeded) {
      this.#keepAlive ??= setInterval(() => {}, 2 ** 30);
    } else {
      clearInterval(this.#keepAlive);
      this.#keepAlive = undefined;
    }
  }

  /**
   * @param {Call<any>} call
   * @param {(worker: Worker, info: WorkerInfo) => void} use
   */
  #whenReady(call, use) {
    if (this.#worker?.info && this.#worker.accepts) use(this.#worker, this.#worker.info);
    else this.#waiting.set(call, use);
  }

  // Sending

  #dispatch() {
    const worker = this.#worker;
    while (worker?.info && worker.accepts) {
      const piece = this.#queue.next(worker);
      if (piece) this.#send(worker, worker.info, piece);
      else return this.#closeInvestigation(worker);
    }
  }

  /** @param {Worker} worker */
  #closeInvestigation(worker) {
    if (!worker.trial && !this.#queue.hasSuspects) this.#isInvestigated = false;
  }

  /**
   * @param {Worker} worker
   * @param {WorkerInfo} info
   * @param {Piece} piece
   */
  #send(worker, { limits }, piece) {
    const { job } = piece;
    const id = ++this.#lastId;
    const request = { id, method: "embed", inputs: piece.inputs, encoding_format: "base64", ...job.parameters };
    const line = piece.count > limits.maxInputs ? undefined : encodeLine(request);
    const isLong = line === undefined || line.length - 1 > limits.maxLineBytes;
    if (isLong && piece.count > 1) {
      this.#queue.pushFront(piece.halves());
      return;
    }
    if (isLong) {
      const message = `input ${piece.start} makes a line of ${line?.length} bytes, the limit is ${limits.maxLineBytes}`;
      job.call.end(requestError("input_too_long", message, false, piece.start));
      return;
    }
    piece.attempts++;
    const { requestTimeoutMs } = this.#options;
    if (!job.call.hasTimeout) {
      piece.stopTimer ??= later(requestTimeoutMs, () => job.call.end(timeoutError(requestTimeoutMs)));
    }
    if (worker.pieces.size === 0) worker.health?.workBegan(now());
    worker.load(id, piece);
    this.#write(worker, line);
  }

  /**
   * Put a question of a host that the worker answers at once.
   * @template T
   * @param {Worker} worker
   * @param {object} question
   * @param {Call<T>} call
   * @param {(members: Members) => T} decode
   */
  #ask(worker, question, call, decode) {
    const take = (/** @type {Members} */ members) => call.end(undefined, decode(members));
    worker.questions.set(this.#control(worker, question), { call, take });
  }

  /**
   * Send a request that waits in no queue; return its id.
   * @param {Worker} worker
   * @param {object} request
   */
  #control(worker, request) {
    const id = ++this.#lastId;
    this.#write(worker, encodeLine({ id, ...request }));
    return id;
  }

  /**
   * @param {Worker} worker
   * @param {Buffer} line
   */
  #write(worker, line) {
    if (!worker.send(line)) this.#kill(worker, hung("it stopped reading"));
  }

  // Answers

  /**
   * @param {Worker} worker
   * @param {Buffer} line
   */
  #onLine(worker, line) {
    if (this.#worker !== worker || worker.killedFor) return; // nothing that it still says counts
    try {
      this.#onAnswer(worker, decodeLine(line));
    } catch (error) {
      this.#onStrangeLine(worker, line, error instanceof Error ? error.message : String(error));
    }
    this.#dispatch();
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

  /**
   * @param {Worker} worker
   * @param {Members} members
   */
  #onAnswer(worker, members) {
    const id = /** @type {number} */ (members.id); // of another type it is nobody's
    worker.health?.received(now());
    const piece = worker.pieces.get(id);
    if (piece) {
      this.#onEmbedded(worker, id, piece, members);
    } else if (worker.questions.has(id)) {
      this.#onTold(worker, id, members);
    } else if (worker.infoIds.has(id) && !worker.info) {
      this.#onInfo(worker, members);
    } // else: an answer to a cancel, a duplicate, or nobody's
  }

  /**
   * @param {Worker} worker
   * @param {number} id
   * @param {Piece} piece
   * @param {Members} members
   */
  #onEmbedded(worker, id, piece, members) {
    const { isOver, job } = piece;
    const refused = members.status === "error" && !isOver ? decodeError(members, piece.count) : undefined;
    const answer = refused || isOver ? undefined : this.#checked(worker, piece, members);
    worker.unload(id, piece);
    worker.health?.embedded(now());
    if (refused?.code === "shutting_down") {
      // No answer about the request: it was not begun, and the worker is about to leave.
      this.#doom(worker, LONGEST_DRAIN_MS, "it said that it would end, and did not");
      piece.attempts--;
      this.#queue.pushFront([piece]);
      return;
    }
    piece.stopTimer?.();
    if (answer) {
      worker.usefulSince ??= now();
      job.take(piece, answer);
    } else if (refused) {
      const { code, message, retryable, index } = refused;
      job.call.end(requestError(code, message, retryable, index === undefined ? undefined : piece.start + index));
    }
  }

  /**
   * Compare an answer with what was asked for, and with what was promised.
   * @param {Worker} worker
   * @param {Piece} piece
   * @param {Members} members
   */
  #checked({ info }, { job, count }, members) {
    const { model: asked, dimensions } = job.parameters;
    const isDefault = asked === undefined || asked === info?.model;
    const answer = decodeEmbeddings(members, count, dimensions ?? (isDefault ? info?.dimension : job.space?.dimension));
    if (asked === undefined && answer.model !== info?.model) throw new Error("an answer of another model");
    const known = job.space?.fingerprint ?? this.#fingerprints.get(answer.model) ?? answer.fingerprint;
    if (answer.fingerprint !== known) throw new Error("the fingerprint of another vector space");
    this.#fingerprints.set(answer.model, known);
    return answer;
  }

  /**
   * Pass an answer on to the caller who asked, and note what a pong tells of progress.
   * @param {Worker} worker
   * @param {number} id
   * @param {Members} members
   */
  #onTold(worker, id, members) {
    const refused = members.status === "error" ? decodeError(members, 0) : undefined;
    const question = worker.questions.get(id);
    if (!refused) question?.take(members);
    worker.questions.delete(id);
    if (refused) question?.call.end(requestError(refused.code, refused.message, refused.retryable));
    if (isCount(members.micro_batches)) {
      worker.health?.ponged(now(), members.micro_batches, worker.pieces.size > 0);
      this.#checkHealth(worker);
    }
  }

  /** @param {Worker} worker */
  #askInfo(worker) {
    worker.infoIds.add(this.#control(worker, { method: "info" }));
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
    this.#fingerprints.set(info.model, info.fingerprint);
    worker.info = info;
    worker.readySince = now();
    worker.health = new Health(now(), this.#options);
    this.#watch(worker, worker.health);
    const waiting = [...this.#waiting.values()];
    this.#waiting.clear();
    for (const use of waiting) use(worker, info);
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
    this.#worker = worker;
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
    if (due === "ping") worker.questions.set(this.#control(worker, { method: "ping" }), undefined);
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
    later(this.#options.terminateMs + QUICK_DEATH_MS, () => worker.abandon());
  }

  /**
   * @param {Worker} worker
   * @param {NodeJS.ErrnoException} [spawnError]
   */
  #onGone(worker, spawnError) {
    this.#worker = undefined;
    if (spawnError) {
      // What cannot be executed never will be; a system without memory or processes may recover.
      const isPermanent = ["ENOENT", "EACCES", "ENOTDIR"].includes(spawnError.code ?? "");
      worker.killedFor = { ...notStarted(spawnError.message), isPermanent };
    }
    const { error, isPermanent, isRecycle } = worker.describe();
    for (const question of worker.questions.values()) question?.call.end(this.#closing ? closedError() : error);
    if (this.#closing) {
      for (const { job } of worker.pieces.values()) job.call.end(closedError());
      this.#closed(error.exitCode === null && !error.signal ? new Error(`worker ${worker.pid} does not die`) : undefined);
      return;
    }
    const life = { ...this.#lifeOf(worker, error), isRecycle };
    this.#takeBack(worker, error, isRecycle);
    if (isPermanent) this.#refuseAll(error);
    else this.#restartLater(life, error);
  }

  /**
   * @param {Worker} worker
   * @param {EmbedBridgeError} error
   */
  #lifeOf({ readySince, usefulSince, pieces }, { blamesInput }) {
    const [alone] = pieces.values();
    const isLooking = pieces.size === 1 && this.#options.maxAttempts > 1;
    const isInvestigation = isLooking && blamesInput === true && alone?.isOver === false;
    const isCharged = !(isInvestigation && this.#isInvestigated);
    if (isInvestigation) this.#isInvestigated = true;
    return { readySince, usefulSince, isInvestigation, isCharged };
  }

  /**
   * Put what was in flight in front of the queue, or fail what was sent often enough.
   * @param {Worker} worker
   * @param {EmbedBridgeError} error
   * @param {boolean} isRecycle
   */
  #takeBack(worker, error, isRecycle) {
    for (const piece of worker.pieces.values()) {
      if (isRecycle) piece.attempts--;
      else if (piece.attempts >= this.#options.maxAttempts) piece.job.call.end(error);
      else piece.isSuspect = true;
    }
    this.#queue.pushFront([...worker.pieces.values()].filter((piece) => !piece.isOver));
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
    for (const call of [...this.#queue.drain(), ...this.#waiting.keys()]) call.end(error);
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
    this.#stayAlive();
  }
}

/** @param {WorkerInfo} info */
const identityOf = ({ model, fingerprint, dimension }) =>
  `${JSON.stringify(model)} ${JSON.stringify(fingerprint)} of dimension ${dimension}`;
