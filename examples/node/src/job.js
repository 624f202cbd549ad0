/** @import { Call } from "./call.js" */
/** @import { Parameters } from "./options.js" */
/** @import { Answer } from "./wire.js" */
/** @import { Embeddings } from "../index.js" */
import { requestError } from "./errors.js";

// A piece is a second or two of work on a small machine: long enough to be batched well, short enough that a bulk call
// neither outlives the time limit of its pieces in the worker's queue nor keeps others waiting.
export const PIECE_TOKENS = 16_384;
export const PIECE_BYTES = 4 * 2 ** 20; // times six, for the escapes of control characters, still a legal line
export const SHORT_TOKENS = 512; // about one micro-batch of the worker
export const BYTES_PER_TOKEN = 4;
export const SPECIAL_TOKENS = 2;
export const MOST_TOKENS = 512; // an input is truncated at the model's limit, and few models go further

/** A range of a job's inputs that travels as one request. */
export class Piece {
  tokens = 0; // estimated
  bytes = 0;
  attempts = 0;
  isSuspect = false; // a worker died with it: to be sent alone
  /** @type {(() => void) | undefined} */
  stopTimer = undefined; // of its time-out, from being sent first, unless the call has one of its own

  /**
   * @param {Job} job
   * @param {number} start
   * @param {number} stop
   */
  constructor(job, start, stop = start) {
    this.job = job;
    this.start = this.stop = start;
    while (this.stop < stop) this.add(job.sizes[this.stop] ?? 0);
  }

  get count() {
    return this.stop - this.start;
  }

  get inputs() {
    return this.job.inputs.slice(this.start, this.stop);
  }

  /** Whether nobody wants it any more. */
  get isOver() {
    return this.job.call.isOver;
  }

  /** Whether it should not wait behind larger ones. */
  get isShort() {
    return this.tokens <= SHORT_TOKENS;
  }

  /** @param {number} bytes */
  add(bytes) {
    this.stop++;
    this.tokens += cost(bytes);
    this.bytes += bytes;
  }

  /** @param {number} bytes */
  hasRoomFor(bytes) {
    return this.count === 0 || (this.tokens + cost(bytes) <= PIECE_TOKENS && this.bytes + bytes <= PIECE_BYTES);
  }

  /** Cut a piece that is too large for this worker. Both halves keep its history. */
  halves() {
    const middle = (this.start + this.stop) >> 1;
    const { attempts, isSuspect, stopTimer } = this;
    this.job.missing++;
    const halves = [new Piece(this.job, this.start, middle), new Piece(this.job, middle, this.stop)];
    return halves.map((half) => Object.assign(half, { attempts, isSuspect, stopTimer }));
  }
}

/** One call of `embed`, and what has come back of it. */
export class Job {
  missing = 0; // pieces without an answer
  /** @type {Omit<Embeddings, "vectors"> | undefined} */
  #result;

  /**
   * @param {Call<Embeddings>} call
   * @param {readonly string[]} inputs
   * @param {Parameters} parameters
   */
  constructor(call, inputs, parameters) {
    this.call = call;
    this.inputs = inputs;
    this.parameters = parameters;
    this.sizes = inputs.map((input) => Buffer.byteLength(input));
  }

  /** Cut it into pieces of bounded cost; a call without inputs has one, too. */
  pieces() {
    let last = new Piece(this, 0);
    const pieces = [last];
    for (const [index, bytes] of this.sizes.entries()) {
      if (!last.hasRoomFor(bytes)) pieces.push((last = new Piece(this, index)));
      last.add(bytes);
    }
    this.missing = pieces.length;
    return pieces;
  }

  /** What further answers must be of; undefined before the first. */
  get space() {
    return this.#result;
  }

  /**
   * Put the vectors of a piece in their place, and end the call with the last of them.
   * @param {Piece} piece
   * @param {Answer} answer
   */
  take(piece, { matrix, dimension, tokens, truncated, model, fingerprint }) {
    const count = this.inputs.length;
    this.#result ??= {
      matrix: new Float32Array(count * dimension),
      count,
      dimension,
      tokens: new Array(count),
      truncated: [],
      model,
      fingerprint,
    };
    const result = this.#result;
    result.matrix.set(matrix, piece.start * dimension);
    for (const [index, number] of tokens.entries()) result.tokens[piece.start + index] = number;
    for (const index of truncated) result.truncated.push(piece.start + index);
    if (--this.missing > 0) return;
    result.truncated.sort((a, b) => a - b);
    const vectors = Array.from({ length: count }, (_, row) =>
      result.matrix.subarray(row * dimension, (row + 1) * dimension),
    );
    this.call.end(undefined, { vectors, ...result });
  }
}

/**
 * Check what is to be embedded, and copy the list.
 * @param {readonly string[]} inputs
 */
export function checkedInputs(inputs) {
  if (!Array.isArray(inputs)) throw new TypeError("inputs must be an array of strings");
  for (const [index, input] of inputs.entries()) {
    if (typeof input !== "string") throw new TypeError(`input ${index} must be a string, not ${typeof input}`);
    if (!input.isWellFormed()) {
      throw requestError("invalid_request", `input ${index} holds a lone surrogate`, false, index);
    }
  }
  return [...inputs];
}

/**
 * Estimate the tokens of an input: its own and the special ones.
 * @param {number} bytes
 */
const cost = (bytes) => SPECIAL_TOKENS + Math.min(Math.floor(bytes / BYTES_PER_TOKEN), MOST_TOKENS);
