import { Call, later } from "./call.js";
import { circuitOpenError, closedError, EmbedBridgeError, requestError, timeoutError } from "./errors.js";
import { Health } from "./health.js";
import { Job } from "./job.js";
import { parametersOf, withDefaults } from "./options.js";
import { Queue } from "./queue.js";
import { Restarts } from "./restarts.js";
import { decodeEmbeddings, decodeInfo, decodeLine, encodeLine } from "./wire.js";
import { Worker } from "./worker.js";

const MOST_NONSENSE = 20; // lines of a chatty library or wrapper script before the worker is ready
const LONGEST_DRAIN_MS = 15_000; // a supervised worker allows itself 10
const LOST_PIPE_GRACE_MS = 1_000;

const now = () => performance.now();

/** Keeps one worker alive, and every promise. index.d.ts describes what a host calls. */
export class EmbedBridge {
  #options;
  #restarts;
  #queue = new Queue();
  #calls = new Set(); // not over
  #waiting = new Map(); // calls that wait for a ready worker, and what they do with it
  #worker; // none before the first call, between two processes, and at the end
  #failure; // what calls are refused with, while they are
  #expected; // what every worker must serve, since the first was ready
  #fingerprints = new Map(); // by model: the vector spaces that were served
  #spawned = 0;
  #lastId = 0; // ids are never used again
  #callOffStart = () => {};
  #keepAlive; // an interval that keeps the process alive while something is expected
  #closing; // the promise of close()
  #onClosed; // what settles it, until it is

  constructor(options = {}) {
    this.#options = withDefaults(options);
    this.#restarts = new Restarts(this.#options);
  }

  // Calls

  async embed(texts, { signal, timeoutMs, ...wanted } = {}) {
    if (!Array.isArray(texts)) throw new TypeError("texts must be an array of strings");
    const wrong = texts.findIndex((text) => typeof text !== "string");
    if (wrong !== -1) throw new TypeError(`text ${wrong} must be a string, not ${typeof texts[wrong]}`);
    const parameters = parametersOf(wanted);
    return this.#begin({ signal, timeoutMs }, (call) => {
      for (const piece of new Job(call, [...texts], parameters).pieces()) this.#queue.push(piece);
      this.#dispatch();
    });
  }

  async info(options = {}) {
    return this.#begin(options, (call) => {
      this.#whenReady(call, (worker) => call.end(undefined, structuredClone(worker.info)));
    });
  }

  async ping({ signal, timeoutMs = this.#options.requestTimeoutMs } = {}) {
    return this.#begin({ signal, timeoutMs }, (call) => {
      this.#whenReady(call, (worker) => this.#ping(worker, call));
    });
  }

  stats() {
    const worker = this.#worker;
    return {
      pid: worker?.pid,
      isReady: worker?.info !== undefined && !worker.isDoomed,
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

  async [Symbol.asyncDispose]() {
    await this.close();
  }

  #begin(options, start) {
    options.signal?.throwIfAborted();
    if (this.#spawned === 0 && !this.#failure) this.#spawn();
    if (this.#failure) throw this.#failure;
    const call = new Call(options, (ended, error) => this.#onEnd(ended, error));
    this.#calls.add(call);
    this.#stayAlive();
    start(call);
    return call.promise;
  }

  /** Forget a call; where it ended too early, the worker is told to drop what it has of it. */
  #onEnd(call, error) {
    this.#calls.delete(call);
    this.#stayAlive();
    if (error === undefined) return;
    this.#waiting.delete(call);
    this.#queue.remove(call);
    for (const [id, piece] of this.#worker?.pieces ?? []) {
      if (piece.job.call === call) this.#control(this.#worker, { method: "cancel", target: id });
    }
  }

  /** Keep the process alive exactly while somebody waits for something: all handles and timers are unreferenced. */
  #stayAlive() {
    const isNeeded = this.#calls.size > 0 || this.#onClosed !== undefined;
    if (isNeeded) this.#keepAlive ??= setInterval(() => {}, 2 ** 30);
    else this.#keepAlive = clearInterval(this.#keepAlive);
  }

  #whenReady(call, use) {
    if (this.#worker?.info && !this.#worker.isDoomed) use(this.#worker);
    else this.#waiting.set(call, use);
  }

  // Sending

  #dispatch() {
    const worker = this.#worker;
    while (worker?.info && !worker.isDoomed) {
      const piece = this.#queue.next(worker);
      if (!piece) return;
      this.#send(worker, piece);
    }
  }

  #send(worker, piece) {
    const { job, texts } = piece;
    const id = ++this.#lastId;
    const line = encodeLine({ id, method: "embed", inputs: texts, encoding_format: "base64", ...job.parameters });
    const { max_line_bytes: maxLineBytes, max_inputs: maxInputs } = worker.info.limits;
    const isLong = line.length - 1 > maxLineBytes;
    if (texts.length > 1 && (isLong || texts.length > maxInputs)) {
      this.#queue.pushFront(piece.halves());
      return;
    }
    if (isLong) {
      const message = `text ${piece.start} makes a line of ${line.length} bytes, the limit is ${maxLineBytes}`;
      job.call.end(requestError("input_too_long", message, false, piece.start));
      return;
    }
    piece.attempts++;
    const { requestTimeoutMs } = this.#options;
    if (!job.call.hasTimeout) {
      piece.stopTimer ??= later(requestTimeoutMs, () => job.call.end(timeoutError(requestTimeoutMs)));
    }
    if (worker.pieces.size === 0) worker.health.workBegan(now());
    if (piece.isSuspect) worker.trial = piece;
    worker.load(id, piece);
    this.#write(worker, line);
  }

  #ping(worker, call) {
    worker.pings.set(this.#control(worker, { method: "ping" }), call);
  }

  /** Send a request that waits in no queue; return its id. */
  #control(worker, request) {
    const id = ++this.#lastId;
    this.#write(worker, encodeLine({ id, ...request }));
    return id;
  }

  #write(worker, line) {
    if (!worker.send(line)) this.#kill(worker, { kind: "worker_hung", detail: "it stopped reading" });
  }

  // Answers

  #onLine(worker, line) {
    if (this.#worker !== worker || worker.cause) return; // nothing that it still says counts
    try {
      this.#onAnswer(worker, decodeLine(line));
    } catch (error) {
      if (worker.info || ++worker.nonsense > MOST_NONSENSE) {
        this.#kill(worker, {
          kind: "worker_died",
          detail: `it was killed because it broke the protocol: ${error.message}`,
        });
      }
    }
    this.#dispatch();
  }

  #onAnswer(worker, members) {
    const { id } = members;
    worker.health?.received(now());
    if (worker.pieces.has(id)) {
      this.#onEmbedded(worker, id, members);
    } else if (worker.pings.has(id)) {
      worker.health.ponged(now(), members.micro_batches, worker.pieces.size > 0);
      worker.pings.get(id)?.end();
      worker.pings.delete(id);
      this.#checkHealth(worker);
    } else if (id === worker.infoId && !worker.info) {
      this.#onInfo(worker, members);
    } // else: an answer to a cancel, a duplicate, or nobody's
  }

  #onEmbedded(worker, id, members) {
    const piece = worker.pieces.get(id);
    const { job } = piece;
    const isOver = job.call.isOver;
    const isOk = members.status === "ok";
    const embeddings = isOk && !isOver ? this.#checked(worker, piece, members) : undefined;
    worker.unload(id, piece);
    worker.health.embedded(now());
    if (isOver) return;
    if (members.code === "shutting_down") {
      // No answer about the request: it was not begun, and the worker is about to leave.
      this.#doom(worker, LONGEST_DRAIN_MS, "it said that it would end, and did not");
      piece.attempts--;
      this.#queue.pushFront([piece]);
      return;
    }
    piece.stopTimer?.();
    if (embeddings) {
      worker.usefulSince ??= now();
      job.take(piece, embeddings);
    } else {
      const index = Number.isInteger(members.index) ? piece.start + members.index : undefined;
      job.call.end(requestError(members.code, members.message, members.retryable === true, index));
    }
  }

  /** Compare an answer with what was asked for, and with what was promised. */
  #checked(worker, { job, start, stop }, members) {
    const { model, dimension } = worker.info;
    const isDefault = members.model === model;
    const embeddings = decodeEmbeddings(members, stop - start, job.dimension ?? (isDefault ? dimension : undefined));
    if (job.parameters.model === undefined && !isDefault) throw new Error(`an answer of the model ${members.model}`);
    const known = this.#fingerprints.get(members.model) ?? members.fingerprint;
    if (members.fingerprint !== known) throw new Error(`the fingerprint ${members.fingerprint} instead of ${known}`);
    this.#fingerprints.set(members.model, known);
    return embeddings;
  }

  /** Compare what a new worker is with what it has to be. */
  #onInfo(worker, members) {
    if (members.status === "error") {
      const detail = `${members.code}: ${members.message}`;
      this.#kill(worker, { kind: "start", detail, isPermanent: members.retryable !== true });
      return;
    }
    let info;
    try {
      info = decodeInfo(members);
    } catch (error) {
      this.#kill(worker, { kind: "protocol_mismatch", detail: error.message, isPermanent: true });
      return;
    }
    const identity = ({ model, fingerprint, dimension }) => `${model} ${fingerprint} of dimension ${dimension}`;
    this.#expected ??= info;
    if (identity(info) !== identity(this.#expected)) {
      const detail = `${identity(info)} instead of ${identity(this.#expected)}`;
      this.#kill(worker, { kind: "model_changed", detail, isPermanent: true });
      return;
    }
    this.#fingerprints.set(info.model, info.fingerprint);
    worker.info = info;
    worker.readySince = now();
    worker.health = new Health(now(), this.#options);
    this.#watch(worker);
    const waiting = [...this.#waiting.values()];
    this.#waiting.clear();
    for (const use of waiting) use(worker);
  }

  // Workers

  #spawn() {
    this.#failure = undefined;
    this.#spawned++;
    let worker;
    try {
      worker = new Worker(this.#options, {
        onLine: (from, line) => this.#onLine(from, line),
        onEndOfOutput: (from, why) => this.#doom(from, LOST_PIPE_GRACE_MS, why),
        onGone: (from, spawnError) => this.#onGone(from, spawnError),
      });
    } catch (error) {
      this.#refuseAll(new EmbedBridgeError("start", error.message, { cause: error }));
      return;
    }
    this.#worker = worker;
    const { startTimeoutMs } = this.#options;
    worker.callOff = later(startTimeoutMs, () => {
      this.#kill(worker, { kind: "start", detail: `not ready after ${startTimeoutMs} ms` });
    });
    worker.infoId = this.#control(worker, { method: "info" });
  }

  /** Ping a ready worker when it is silent, and kill it when it hangs. */
  #watch(worker) {
    worker.callOff();
    const waitMs = worker.health.nextCheck(worker.pieces.size > 0) - now();
    worker.callOff = later(Math.max(1, waitMs), () => {
      this.#checkHealth(worker);
      if (!worker.isDoomed) this.#watch(worker); // else its end is on the way, and has a time limit of its own
    });
  }

  #checkHealth(worker) {
    if (worker.isDoomed) return;
    const due = worker.health.check(now(), worker.pieces.size > 0);
    if (due === "ping") this.#ping(worker);
    if (due === "silent") this.#kill(worker, { kind: "worker_hung", detail: "it gave no sign of life" });
    if (due === "stuck") this.#kill(worker, { kind: "worker_hung", detail: "it made no progress with what it had" });
  }

  /** Send nothing more to a worker that is about to end, and kill it if it does not. */
  #doom(worker, graceMs, detail) {
    worker.isDoomed = true;
    later(graceMs, () => this.#kill(worker, { kind: "worker_died", detail }));
  }

  /** End a worker; #onGone will follow. The first cause counts. */
  #kill(worker, cause) {
    if (worker.isGone) return;
    worker.cause ??= cause;
    worker.isDoomed = true;
    worker.signal("SIGKILL");
  }

  #onGone(worker, spawnError) {
    this.#worker = undefined;
    if (spawnError) {
      // What cannot be executed never will be; a system without memory or processes may recover.
      const isPermanent = ["ENOENT", "EACCES", "ENOTDIR"].includes(spawnError.code);
      worker.cause = { kind: "start", detail: spawnError.message, isPermanent };
    }
    const { error, isPermanent } = worker.describe();
    const pings = [...worker.pings.values()].filter(Boolean);
    for (const call of pings) call.end(this.#closing ? closedError() : error);
    if (this.#closing) {
      for (const { job } of worker.pieces.values()) job.call.end(closedError());
      this.#closed();
      return;
    }
    this.#takeBack(worker, error);
    if (isPermanent) this.#refuseAll(error);
    else this.#restartLater(worker, error);
  }

  /** Put what was in flight in front of the queue, or fail what was sent often enough. */
  #takeBack(worker, error) {
    const { isRecycle } = worker;
    for (const piece of worker.pieces.values()) {
      if (isRecycle) piece.attempts--;
      else if (piece.attempts >= this.#options.maxAttempts) piece.job.call.end(error);
      else piece.isSuspect = true;
    }
    this.#queue.pushFront([...worker.pieces.values()].filter((piece) => !piece.job.call.isOver));
  }

  #restartLater(worker, error) {
    const { waitMs, isOpen } = this.#restarts.after(worker, now(), 2 * Math.random() - 1);
    if (isOpen) this.#refuseAll(circuitOpenError(waitMs, error));
    this.#callOffStart = later(waitMs, () => this.#spawn());
  }

  /** Fail what waits, and every call until the next start. */
  #refuseAll(error) {
    this.#failure = error;
    for (const call of [...this.#queue.drain(), ...this.#waiting.keys()]) call.end(error);
  }

  /** End a worker: the end of its input, SIGTERM, SIGKILL. */
  #climbLadder(worker) {
    const { drainMs, terminateMs } = this.#options;
    worker.isDoomed = true;
    worker.endInput();
    later(drainMs, () => worker.signal("SIGTERM"));
    later(drainMs + terminateMs, () => worker.signal("SIGKILL"));
    later(drainMs + 2 * terminateMs + 1_000, () => this.#closed(new Error(`worker ${worker.pid} does not die`)));
  }

  #closed(error) {
    this.#onClosed?.(error);
    this.#onClosed = undefined;
    this.#stayAlive();
  }
}
