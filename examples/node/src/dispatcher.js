/** @import { Embeddings, Precision, Tokenization, WorkerInfo } from "../index.js" */
/** @import { Sentence } from "./ends.js" */
/** @import { EmbedBridgeError } from "./errors.js" */
/** @import { Parameters, Settings } from "./options.js" */
/** @import { Piece } from "./job.js" */
/** @import { Members } from "./wire.js" */
/** @import { Worker } from "./worker.js" */
import { Call } from "./call.js";
import { hung } from "./ends.js";
import { closedError, requestError } from "./errors.js";
import { EmbedJob, TokenizeJob } from "./job.js";
import { Queue } from "./queue.js";
import { decodeError, decodeInfo, encodeLine, isCount } from "./wire.js";

export const LONGEST_DRAIN_MS = 15_000; // a supervised worker allows itself 10

export const now = () => performance.now();

/** @typedef {{ signal?: AbortSignal, timeoutMs?: number }} Waiting How a call may end early. */

/**
 * What a call's way needs of the lives of the workers.
 * @typedef {object} Lives
 * @property {() => void} begin start the first worker, or throw what calls are refused with
 * @property {(worker: Worker, sentence: Sentence) => void} kill
 * @property {(worker: Worker, graceMs: number, detail: string) => void} doom
 * @property {(worker: Worker) => void} checkHealth
 */

/** A call's way to the worker and back, and how it ends. */
export class Dispatcher {
  /** @type {Worker | undefined} */ worker; // none before the first call, between two processes, and at the end
  #options;
  #lives;
  #queue = new Queue();
  /** @type {Set<Call<any>>} */ #calls = new Set(); // not over
  /** @type {Map<Call<any>, (worker: Worker, info: WorkerInfo) => void>} */ #waiting = new Map(); // for a ready worker
  /** @type {Map<string, string>} */ #fingerprints = new Map(); // by model: the vector spaces that were served
  #isInvestigated = false; // the deaths of the suspects have cost the budget once
  #isClosing = false;
  #lastId = 0; // ids are never used again
  /** @type {NodeJS.Timeout | undefined} */ #keepAlive; // keeps the process alive while something is expected

  /**
   * @param {Settings} options
   * @param {Lives} lives
   */
  constructor(options, lives) {
    this.#options = options;
    this.#lives = lives;
  }

  /**
   * @param {readonly string[]} inputs checked
   * @param {{ precision: Precision, parameters: Parameters }} wanted
   * @param {Waiting} waiting
   * @returns {Promise<Embeddings<any>>}
   */
  embed(inputs, wanted, waiting) {
    return this.#begin(waiting, (call) => this.#enqueue(new EmbedJob(call, inputs, wanted, this.#fingerprints)));
  }

  /**
   * @param {readonly string[]} inputs checked
   * @param {Parameters} parameters
   * @param {Waiting} waiting
   * @returns {Promise<Tokenization>}
   */
  tokenize(inputs, parameters, waiting) {
    return this.#begin(waiting, (call) =>
      this.#enqueue(new TokenizeJob(call, inputs, parameters, this.#fingerprints)),
    );
  }

  /** @param {EmbedJob | TokenizeJob} job */
  #enqueue(job) {
    for (const piece of job.pieces()) this.#queue.push(piece);
    this.dispatch();
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

  /** How many requests wait to be sent. */
  get queued() {
    return this.#queue.length;
  }

  /**
   * @template T
   * @param {Waiting} waiting
   * @param {(call: Call<T>) => void} start
   * @returns {Promise<T>}
   */
  #begin(waiting, start) {
    waiting.signal?.throwIfAborted();
    this.#lives.begin();
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
    const worker = this.worker;
    if (!worker) return;
    for (const [id, piece] of worker.pieces) {
      if (piece.job.call === call) this.control(worker, { method: "cancel", target: id });
    }
  }

  /** Keep the process alive exactly while somebody waits for something: all handles and timers are unreferenced. */
  #stayAlive() {
    const isNeeded = this.#calls.size > 0 || this.#isClosing;
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
    if (this.worker?.info && this.worker.accepts) use(this.worker, this.worker.info);
    else this.#waiting.set(call, use);
  }

  // Sending

  /** Send what may be sent. */
  dispatch() {
    const worker = this.worker;
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
    const request = { id, method: job.method, inputs: piece.inputs, ...job.parameters };
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
    if (!job.call.hasTimeout) piece.stopTimer ??= job.call.limit(this.#options.requestTimeoutMs);
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
    const askAgain = () => this.#whenReady(call, (next) => this.#ask(next, question, call, decode));
    worker.questions.set(this.control(worker, question), { call, take, askAgain });
  }

  /**
   * Send a request that waits in no queue; return its id.
   * @param {Worker} worker
   * @param {object} request
   */
  control(worker, request) {
    const id = ++this.#lastId;
    this.#write(worker, encodeLine({ id, ...request }));
    return id;
  }

  /**
   * @param {Worker} worker
   * @param {Buffer} line
   */
  #write(worker, line) {
    if (!worker.send(line)) this.#lives.kill(worker, hung("it stopped reading"));
  }

  // Answers

  /**
   * @param {Worker} worker
   * @param {Members} members
   */
  onAnswer(worker, members) {
    const id = /** @type {number} */ (members.id); // of another type it is nobody's
    worker.health?.received(now());
    const piece = worker.pieces.get(id);
    if (piece) {
      this.#onAnswered(worker, id, piece, members);
    } else if (worker.questions.has(id)) {
      this.#onTold(worker, id, members);
    } // else: an answer to a cancel, a duplicate, or nobody's
  }

  /**
   * @param {Worker} worker
   * @param {number} id
   * @param {Piece} piece
   * @param {Members} members
   */
  #onAnswered(worker, id, piece, members) {
    const { isOver, job } = piece;
    const refused = members.status === "error" && !isOver ? decodeError(members, piece.count) : undefined;
    const take = refused || isOver ? undefined : job.checked(piece, members, worker.info);
    worker.unload(id, piece);
    worker.health?.embedded(now());
    if (refused?.code === "shutting_down") {
      // No answer about the request: it was not begun, and the worker is about to leave.
      this.#lives.doom(worker, LONGEST_DRAIN_MS, "it said that it would end, and did not");
      piece.attempts--;
      this.#queue.pushFront([piece]);
      return;
    }
    piece.stopTimer?.();
    if (take) {
      worker.usefulSince ??= now();
      take();
    } else if (refused) {
      const { code, message, retryable, index } = refused;
      job.call.end(requestError(code, message, retryable, index === undefined ? undefined : piece.start + index));
    }
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
      this.#lives.checkHealth(worker);
    }
  }

  // What the lives of the workers tell

  /**
   * Send what waits to a worker that has become ready.
   * @param {Worker} worker
   * @param {WorkerInfo} info
   */
  ready(worker, info) {
    this.#fingerprints.set(info.model, info.fingerprint);
    const waiting = [...this.#waiting.values()];
    this.#waiting.clear();
    for (const use of waiting) use(worker, info);
  }

  /**
   * Fail what waits.
   * @param {EmbedBridgeError} error
   */
  refuse(error) {
    for (const call of [...this.#queue.drain(), ...this.#waiting.keys()]) call.end(error);
  }

  /** Keep the process alive until `closed`. */
  closing() {
    this.#isClosing = true;
    this.#stayAlive();
    this.refuse(closedError());
  }

  closed() {
    this.#isClosing = false;
    this.#stayAlive();
  }

  /**
   * End what was asked of a worker that is gone for good.
   * @param {Worker} worker
   * @param {EmbedBridgeError} error
   */
  failAll(worker, error) {
    for (const question of worker.questions.values()) question?.call.end(error);
    for (const { job } of worker.pieces.values()) job.call.end(error);
  }

  /**
   * Put what was in flight in front of the queue, or fail what was sent often enough. The next worker is asked what this
   * one has not answered.
   * @param {Worker} worker
   * @param {EmbedBridgeError} error
   * @param {boolean} isRecycle
   */
  takeBack(worker, error, isRecycle) {
    for (const question of worker.questions.values()) if (!question?.call.isOver) question?.askAgain();
    for (const piece of worker.pieces.values()) {
      if (isRecycle) piece.attempts--;
      else if (piece.attempts >= this.#options.maxAttempts) piece.job.call.end(error);
      else piece.isSuspect = true;
    }
    this.#queue.pushFront([...worker.pieces.values()].filter((piece) => !piece.isOver));
  }

  /**
   * Return whether a worker died with a suspect alone whose fault it may be, and whether that costs the budget.
   * @param {Worker} worker
   * @param {EmbedBridgeError} error
   */
  investigate({ pieces }, { blamesInput }) {
    const [alone] = pieces.values();
    const isLooking = pieces.size === 1 && this.#options.maxAttempts > 1;
    const isInvestigation = isLooking && blamesInput === true && alone?.isOver === false;
    const isCharged = !(isInvestigation && this.#isInvestigated);
    if (isInvestigation) this.#isInvestigated = true;
    return { isInvestigation, isCharged };
  }
}
