/// <reference lib="esnext.disposable" />

/** The settings of an EmbedBridge. Times are milliseconds. */
export interface EmbedBridgeOptions {
  /**
   * The worker's whole command line; no shell reads it. Default: `["embed-worker", "--supervised"]`. Keep
   * `--supervised` in your own: such a worker leaves when its host has died.
   */
  command?: string[];
  /**
   * Set in the worker's environment, beside the few variables that a worker needs from the host's (PATH, HOME, the
   * locale, temporary folders, OMP_*, ORT_*, EMBED_WORKER_*). Nothing else is passed on.
   */
  env?: Record<string, string>;
  /** The worker's working directory. Default: the host's. */
  cwd?: string;
  /** Gets what the worker writes to standard error, as it comes. */
  onStderr?: (chunk: Uint8Array) => void;

  /** How long a worker may take until it answers `info`. Default: 60,000. */
  startTimeoutMs?: number;
  /**
   * Ends a call without a `timeoutMs` of its own: it counts for each request on the wire, from being sent first, so
   * that it does not limit how large a call is. Default: 120,000.
   */
  requestTimeoutMs?: number;
  /** How often one request is sent in all when workers die with it. Default: 3. */
  maxAttempts?: number;

  /**
   * How many failures may come together: a bucket that every crash, hang and failed start raises by one; when it is
   * full the client gives up. Default: 5.
   */
  restartBudget?: number;
  /** The time of useful service that takes one failure out of the bucket. Default: 60,000. */
  restartForgiveMs?: number;
  /**
   * The wait before a restart; it doubles with every failure in a row and is varied by a fifth. After a healthy minute
   * there is none. Default: 200.
   */
  backoffInitialMs?: number;
  /** The longest such wait. Default: 30,000. */
  backoffMaxMs?: number;
  /**
   * How long calls are refused once the budget is spent; then one start is tried. It doubles, up to ten times as long.
   * Default: 60,000.
   */
  halfOpenAfterMs?: number;

  /** The silence after which the worker is pinged. Default: 5,000. */
  pingEveryMs?: number;
  /** How long a ping may go without any sign of life; two in a row are a hang. Default: 10,000. */
  pongTimeoutMs?: number;
  /**
   * How long the worker may finish nothing while it has work; a worker that is slow by nature gets twenty times its
   * average. Default: 60,000.
   */
  stuckAfterMs?: number;

  /** How long `close` waits for a worker to finish before it sends SIGTERM. Default: 5,000. */
  drainMs?: number;
  /** How long `close` waits after SIGTERM before it sends SIGKILL. Default: 2,000. */
  terminateMs?: number;
}

/** What any call may be given. */
export interface CallOptions {
  /** Ends the call, which is rejected with the signal's reason; the worker is told to drop what it has not done. */
  signal?: AbortSignal;
  /** For the whole call. */
  timeoutMs?: number;
}

/** What a call of `embed` may ask for. What is left out is as the model's folder says. */
export interface EmbedOptions extends CallOptions {
  /** The name of another model that the worker has loaded. */
  model?: string;
  /** One of the model's prompts, such as "query"; excludes `prompt`. */
  promptName?: string;
  /** A literal prefix of every text. */
  prompt?: string;
  /** Keep that many numbers of each vector (Matryoshka). Default: all. */
  dimensions?: number;
  /** Whether vectors get unit length. */
  normalize?: boolean;
  /** False makes a text over the model's limit an error instead of cutting it. */
  truncate?: boolean;
}

/** The vectors of one call, one for each text, in order. */
export interface Embeddings {
  /** The vectors; they share the memory of `matrix`. */
  vectors: Float32Array[];
  /** All of them: `count` rows of `dimension` numbers. */
  matrix: Float32Array;
  count: number;
  dimension: number;
  /** Of each text, before truncation. */
  tokens: number[];
  /** The indexes of the texts that were cut. */
  truncated: number[];
  model: string;
  /** Names the vector space: never mix vectors of two. */
  fingerprint: string;
}

/** What a worker says of itself once its model has run. */
export interface WorkerInfo {
  protocol: number;
  version: string;
  pid: number;
  model: string;
  fingerprint: string;
  dimension: number;
  maxTokens: number;
  limits: {
    max_line_bytes: number;
    max_inputs: number;
    max_text_bytes: number;
    max_in_flight: number;
    max_in_flight_bytes: number;
  };
}

/** A snapshot of an EmbedBridge. */
export interface Stats {
  /** Of the worker; undefined while there is none. */
  pid: number | undefined;
  isReady: boolean;
  restarts: number;
  /** Requests in flight. */
  inFlight: number;
  /** Requests that wait to be sent. */
  queued: number;
}

/**
 * Keeps one worker alive, which starts with the first call. Concurrent calls are pipelined over it, so many small calls
 * at once are as fast as a large one. Requests that were in flight when a worker died are sent again, because embedding
 * is a pure function, and every promise is settled once. Only pending calls keep the process alive; when it exits
 * without `close`, the worker goes with it.
 */
export class EmbedBridge {
  constructor(options?: EmbedBridgeOptions);
  /** Embed texts. A large call is cut into pieces that travel ahead of each other. */
  embed(texts: readonly string[], options?: EmbedOptions): Promise<Embeddings>;
  /** What the worker says of itself, as soon as it is ready: starts it early, too. */
  info(options?: CallOptions): Promise<WorkerInfo>;
  /** Whether the worker answers; it does at once, also when it is busy. */
  ping(options?: CallOptions): Promise<void>;
  stats(): Stats;
  /**
   * End the worker; fulfilled when it is gone and reaped. Calls that wait to be sent fail; those in flight may still
   * get their vectors: the worker's input is closed, and it has `drainMs` to finish, then `terminateMs` after SIGTERM,
   * before it is killed. May be called more than once.
   */
  close(): Promise<void>;
  [Symbol.asyncDispose](): Promise<void>;
}

export type ErrorKind =
  /** The worker's own answer to a request that it cannot serve: `code`, `retryable`, `index`. */
  | "request"
  /** The call's time is over. The worker was told, and lives on: slow is not hung. */
  | "timeout"
  /** `close` came first. */
  | "closed"
  /** No worker could be started with this command. */
  | "start"
  /** Workers died with this request as often as it may be sent. */
  | "worker_died"
  /** The last worker with this request stopped answering or working, and was killed. */
  | "worker_hung"
  /** The worker speaks another version of the protocol. */
  | "protocol_mismatch"
  /**
   * A restarted worker serves another vector space, which must not be mixed with the earlier. A new EmbedBridge accepts
   * it; embed everything again.
   */
  | "model_changed"
  /** The worker failed too often; calls are refused until `retryAt`. `cause` is the last failure. */
  | "circuit_open";

/**
 * Anything that a call is rejected with on purpose, apart from a TypeError for wrong arguments and the reason of an
 * AbortSignal. Branch on `kind` and `code`, never on messages.
 */
export class EmbedBridgeError extends Error {
  readonly kind: ErrorKind;
  /** Of a "request": one of the protocol's error codes, or one of a newer worker. */
  readonly code?: string;
  /** Of a "request": whether the same request may succeed when it is sent again. */
  readonly retryable?: boolean;
  /** Of a "request": the text that is to blame, where it is known. */
  readonly index?: number;
  /** Of a "timeout". */
  readonly timeoutMs?: number;
  /** Of a worker's end: its exit status, null after a signal. */
  readonly exitCode?: number | null;
  /** Of a worker's end: the signal that ended it. */
  readonly signal?: string | null;
  /** Of a worker's end: the end of what it wrote to standard error. */
  readonly stderrTail?: string;
  /** Of a "circuit_open": when the next start is tried. */
  readonly retryAt?: Date;
}
