/** @import { Call } from "./call.js" */
/** @import { Parameters } from "./options.js" */
/** @import { Answer, Members } from "./wire.js" */
/** @import { Precision, Matrices, Tokenization, WorkerInfo } from "../index.js" */
import { requestError } from "./errors.js";
import { decodeEmbeddings, decodeTokens, PRECISIONS } from "./wire.js";

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

  /**
   * Cut a piece that is too large for this worker. Both halves keep its history, but one timer runs out for one piece: the
   * second half gets its own when it is sent.
   * @returns {[Piece, Piece]}
   */
  halves() {
    const middle = (this.start + this.stop) >> 1;
    const { attempts, isSuspect, stopTimer } = this;
    this.job.missing++;
    const first = Object.assign(new Piece(this.job, this.start, middle), { attempts, isSuspect, stopTimer });
    return [first, Object.assign(new Piece(this.job, middle, this.stop), { attempts, isSuspect })];
  }
}

/** A call of `embed` or `tokenize`, in pieces. */
class Job {
  #fingerprints;
  missing = 0; // pieces without an answer
  /** @type {{ tokens: number[], truncated: number[] }} */
  counts;

  /**
   * @param {string} method
   * @param {Call<any>} call
   * @param {readonly string[]} inputs
   * @param {Parameters} parameters
   * @param {Map<string, string>} fingerprints by model: the vector spaces that were served
   */
  constructor(method, call, inputs, parameters, fingerprints) {
    this.#fingerprints = fingerprints;
    this.method = method;
    this.call = call;
    this.inputs = inputs;
    this.parameters = parameters;
    this.sizes = inputs.map((input) => Buffer.byteLength(input));
    this.counts = { tokens: new Array(inputs.length), truncated: [] };
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

  /**
   * Check an answer to a piece: compare it with what was asked for, and with what was promised.
   * @param {Piece} _piece
   * @param {Members} _members
   * @param {WorkerInfo | undefined} _info of the worker that answers
   * @returns {() => void} what puts it in its place, and ends the call with the last of them
   */
  checked(_piece, _members, _info) {
    throw new Error("every kind of call has its own answers");
  }

  /**
   * Compare what answers with what was promised: two models, or two states of one, must not be mixed.
   * @param {{ model: string, fingerprint: string }} answer
   * @param {WorkerInfo | undefined} info
   */
  sameSpace({ model, fingerprint }, info) {
    if (this.parameters.model === undefined && model !== info?.model) throw new Error("an answer of another model");
    const known = this.#fingerprints.get(model) ?? fingerprint;
    if (fingerprint !== known) throw new Error("the fingerprint of another vector space");
    this.#fingerprints.set(model, known);
  }

  /**
   * Put what was counted of a piece in its place; return whether that was the last of them.
   * @param {Piece} piece
   * @param {{ tokens: number[], truncated: number[] }} part
   */
  isLast({ start }, { tokens, truncated }) {
    for (const [index, number] of tokens.entries()) this.counts.tokens[start + index] = number;
    for (const index of truncated) this.counts.truncated.push(start + index);
    if (--this.missing > 0) return false;
    this.counts.truncated.sort((a, b) => a - b);
    return true;
  }
}

export class EmbedJob extends Job {
  #precision;
  /** @type {{ matrix: Matrices[Precision], dimension: number, model: string, fingerprint: string } | undefined} */
  #space; // since the first answer

  /**
   * @param {Call<any>} call
   * @param {readonly string[]} inputs
   * @param {{ precision: Precision, parameters: Parameters }} wanted
   * @param {Map<string, string>} fingerprints
   */
  constructor(call, inputs, { precision, parameters }, fingerprints) {
    super("embed", call, inputs, parameters, fingerprints);
    this.#precision = precision;
  }

  /**
   * @override
   * @param {Piece} piece
   * @param {Members} members
   * @param {WorkerInfo | undefined} info
   */
  checked(piece, members, info) {
    const { model: asked, dimensions } = this.parameters;
    const isDefault = asked === undefined || asked === info?.model;
    const wanted = dimensions ?? (isDefault ? info?.dimension : this.#space?.dimension);
    const answer = decodeEmbeddings(members, piece.count, wanted, this.#precision);
    this.sameSpace(answer, info);
    if (this.#space && this.#space.fingerprint !== answer.fingerprint) throw new Error("vectors of two spaces");
    return () => this.#take(piece, answer);
  }

  /**
   * @param {Piece} piece
   * @param {Answer} answer
   */
  #take(piece, { matrix: rows, dimension, model, fingerprint, ...counts }) {
    const { matrix: Matrix, rowLength } = PRECISIONS[this.#precision];
    const [count, length] = [this.inputs.length, rowLength(dimension)];
    this.#space ??= { matrix: new Matrix(count * length), dimension, model, fingerprint };
    const { matrix } = this.#space;
    matrix.set(rows, piece.start * length);
    if (!this.isLast(piece, counts)) return;
    const vectors = Array.from({ length: count }, (_, row) => matrix.subarray(row * length, (row + 1) * length));
    this.call.end(undefined, { vectors, count, ...this.#space, ...this.counts });
  }
}

export class TokenizeJob extends Job {
  /** @type {Tokenization["offsets"]} */
  #offsets;

  /**
   * @param {Call<Tokenization>} call
   * @param {readonly string[]} inputs
   * @param {Parameters} parameters
   * @param {Map<string, string>} fingerprints
   */
  constructor(call, inputs, parameters, fingerprints) {
    super("tokenize", call, inputs, parameters, fingerprints);
    if (parameters.offsets) this.#offsets = new Array(inputs.length);
  }

  /**
   * @override
   * @param {Piece} piece
   * @param {Members} members
   * @param {WorkerInfo | undefined} info
   */
  checked(piece, members, info) {
    const part = decodeTokens(members, piece.inputs, this.#offsets !== undefined);
    this.sameSpace(part, info);
    return () => this.#take(piece, part);
  }

  /**
   * @param {Piece} piece
   * @param {Tokenization} part
   */
  #take(piece, { offsets = [], model, fingerprint, ...counts }) {
    const all = this.#offsets;
    for (const [index, ranges] of offsets.entries()) if (all) all[piece.start + index] = ranges;
    if (!this.isLast(piece, counts)) return;
    this.call.end(undefined, { ...this.counts, ...(all && { offsets: all }), model, fingerprint });
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
