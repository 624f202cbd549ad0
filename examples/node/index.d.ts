/// <reference lib="esnext.disposable" />

/** The settings of an EmbedBridge. Times are milliseconds; Infinity is never. */
export interface EmbedBridgeOptions {
  /**
   * The worker's command line; no shell reads it. `--supervised` is added where it is missing: such a worker leaves
   * when its host has died. Default: `["embed-worker"]`.
   */
  command?: readonly string[];
  /**
   * Set in the worker's environment, beside the variables that a locale, a home, a temporary folder, a linker and an
   * accelerator need. Nothing else of the host's is passed on.
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
   * How long calls are refused once the budget is spent; then one start is tried. It doubles, up to `halfOpenMaxMs`.
   * Default: 60,000.
   */
  halfOpenAfterMs?: number;
  /** The longest such refusal. Default: 600,000. */
  halfOpenMaxMs?: number;

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
  /**
   * How long `close` waits after SIGTERM before it sends SIGKILL; a worker that has not disappeared so long and 5 s after
   * that is given up. Default: 2,000.
   */
  terminateMs?: number;
}

/** What any call may be given. */
export interface CallOptions {
  /** Ends the call, which is rejected with the signal's reason; the worker is told to drop what it has not done. */
  signal?: AbortSignal;
  /** For the whole call. */
  timeoutMs?: number;
}

/** What a call of `info` may be given. */
export interface InfoOptions extends CallOptions {
  /** Another model that the worker has loaded. */
  model?: string;
}

/**
 * What numbers vectors are made of. "float16" rounds to halves: their bits in a Uint16Array, which
 * `new Float16Array(vector.buffer, vector.byteOffset, vector.length)` reads where there is one. "ubinary" keeps the signs,
 * packed: a bit for each number, 1 where it is above 0, the first number highest in its byte.
 */
export type Precision = "float32" | "float16" | "ubinary";

/** The array that holds vectors of each precision. */
export interface Matrices {
  float32: Float32Array;
  float16: Uint16Array;
  ubinary: Uint8Array;
}

/** What a call of `embed` may ask for. What is left out is as the model's folder says. */
export interface EmbedOptions<P extends Precision = "float32"> extends CallOptions {
  /** How the vectors come. Default: "float32". */
  precision?: P;
  /** The name of another model that the worker has loaded. */
  model?: string;
  /** One of the model's prompts, such as "query"; excludes `prompt`. */
  promptName?: string;
  /** A literal prefix of every input. */
  prompt?: string;
  /** Keep that many numbers of each vector (Matryoshka). Default: all. */
  dimensions?: number;
  /** Whether vectors get unit length. */
  normalize?: boolean;
  /** False makes an input over the model's limit an error instead of cutting it. */
  truncate?: boolean;
}

/** What `embedQuery` and `embedDocuments` may be given: they choose the prompt. */
export type PromptedOptions<P extends Precision = "float32"> = Omit<EmbedOptions<P>, "prompt" | "promptName">;

/** What `embedIter` may be given; `timeoutMs` counts for each block. */
export interface EmbedIterOptions<P extends Precision = "float32"> extends EmbedOptions<P> {
  /** Inputs in one block. Default: 256. */
  blockInputs?: number;
}

/** What a call of `tokenize` may ask for. */
export interface TokenizeOptions extends CallOptions {
  /** The name of another model that the worker has loaded. */
  model?: string;
  /** One of the model's prompts, such as "query", whose tokens count; excludes `prompt`. */
  promptName?: string;
  /** A literal prefix of every input, whose tokens count. */
  prompt?: string;
  /** False cuts nothing: `truncated` is empty, and `offsets` go on to the end of each input. */
  truncate?: boolean;
  /** Whether to tell where in its input each token lies. */
  offsets?: boolean;
}

/** The tokens of one call. */
export interface Tokenization {
  /** Of each text, as `embed` counts them: prompt and special tokens included, before truncation. */
  tokens: number[];
  /** The indexes of the inputs that `embed` would cut. */
  truncated: number[];
  /**
   * Where they were asked for: for each input a range for each token of its own text, from where to where, in code
   * points. `utf16Offsets` makes ranges for `slice` of them.
   */
  offsets?: [start: number, end: number][][];
  model: string;
  /** Names the vector space, and with it the tokenizer. */
  fingerprint: string;
}

/**
 * Turn ranges of code points of a text, such as `offsets[i]` of input i, into ranges of its UTF-16 units:
 * `text.slice(start, end)` is what a range covers. The two are the same until an astral character, such as an emoji.
 */
export function utf16Offsets(text: string, offsets: readonly (readonly [number, number])[]): [start: number, end: number][];

/** The vectors of one call, one for each input, in order. */
export interface Embeddings<Matrix = Float32Array> {
  /** The vectors; they share the memory of `matrix`. */
  vectors: Matrix[];
  /** All of them: `count` rows of `dimension` numbers, or of an eighth of the bytes, rounded up, for "ubinary". */
  matrix: Matrix;
  count: number;
  /** How many numbers a vector has, at any precision. */
  dimension: number;
  /** Of each text, before truncation. */
  tokens: number[];
  /** The indexes of the inputs that were cut. */
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
  /** By the names that `promptName` takes. */
  prompts: Record<string, string>;
  /** The one that is used when none is asked for. */
  defaultPromptName: string | undefined;
  limits: {
    maxLineBytes: number;
    maxInputs: number;
    maxTextBytes: number;
    maxInFlight: number;
    maxInFlightBytes: number;
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
  /** Embed texts, with the model's default prompt. A large call is cut into pieces that travel ahead of each other. */
  embed<P extends Precision = "float32">(
    inputs: readonly string[],
    options?: EmbedOptions<P>,
  ): Promise<Embeddings<Matrices[P]>>;
  /** Embed what is searched for: with the model's prompt "query", or with none where it has none. */
  embedQuery<P extends Precision = "float32">(
    inputs: readonly string[],
    options?: PromptedOptions<P>,
  ): Promise<Embeddings<Matrices[P]>>;
  /** Embed what is found: with the model's prompt "document", "passage" or "corpus", or with none. */
  embedDocuments<P extends Precision = "float32">(
    inputs: readonly string[],
    options?: PromptedOptions<P>,
  ): Promise<Embeddings<Matrices[P]>>;
  /**
   * Embed any number of texts, in blocks and in order. A few blocks are in flight while one is consumed, and no more of
   * `inputs` is read than that. To leave the loop withdraws them.
   */
  embedIter<P extends Precision = "float32">(
    inputs: Iterable<string> | AsyncIterable<string>,
    options?: EmbedIterOptions<P>,
  ): AsyncGenerator<Embeddings<Matrices[P]>, void, undefined>;
  /**
   * Count the tokens of texts as `embed` would, without a vector: so that a text can be cut at the model's limit,
   * `maxTokens` of `info`. Cut into pieces, sent again and ended as `embed` is.
   */
  tokenize(inputs: readonly string[], options?: TokenizeOptions): Promise<Tokenization>;
  /** What the worker says of itself and of a model, as soon as it is ready: starts it early, too. */
  info(options?: InfoOptions): Promise<WorkerInfo>;
  /** Whether the worker answers; it does at once, also when it is busy. If it dies before, the next one is asked. */
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
  /** Of a "request": the input that is to blame, where it is known. */
  readonly index?: number;
  /** Of a "timeout". */
  readonly timeoutMs?: number;
  /** Of a worker's end: its exit status, null after a signal. */
  readonly exitCode?: number | null;
  /** Of a worker's end: the signal that ended it. */
  readonly signal?: string | null;
  /** Of a worker's end: the end of what it wrote to standard error. */
  readonly stderrTail?: string;
  /**
   * Of a worker's end: what was being computed can be the reason, as it cannot for a signal from outside. A host that
   * sees it again and again for one input does well to leave that out.
   */
  readonly blamesInput?: boolean;
  /** Of a "circuit_open": when the next start is tried. */
  readonly retryAt?: Date;
}
