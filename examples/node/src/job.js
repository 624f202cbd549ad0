// A piece is a second or two of work on a small machine: long enough to be batched well, short enough that a bulk call
// neither outlives the time limit of its pieces in the worker's queue nor keeps others waiting.
export const PIECE_TOKENS = 16_384;
export const PIECE_BYTES = 4 * 2 ** 20; // times six, for the escapes of control characters, still a legal line
const SHORT_TOKENS = 512; // about one micro-batch of the worker
const BYTES_PER_TOKEN = 4;
const MOST_TOKENS = 512; // a text is truncated at the model's limit, and few models go further

/** A range of a job's texts that travels as one request. */
export class Piece {
  tokens = 0; // estimated
  bytes = 0;
  attempts = 0;
  isSuspect = false; // a worker died with it: to be sent alone
  stopTimer = undefined; // of its time-out, from being sent first, unless the call has one of its own

  constructor(job, start, stop = start) {
    this.job = job;
    this.start = this.stop = start;
    while (this.stop < stop) this.add(job.sizes[this.stop]);
  }

  get texts() {
    return this.job.texts.slice(this.start, this.stop);
  }

  /** Whether it should not wait behind larger ones. */
  get isShort() {
    return this.tokens <= SHORT_TOKENS;
  }

  add(bytes) {
    this.stop++;
    this.tokens += cost(bytes);
    this.bytes += bytes;
  }

  hasRoomFor(bytes) {
    return this.start === this.stop || (this.tokens + cost(bytes) <= PIECE_TOKENS && this.bytes + bytes <= PIECE_BYTES);
  }

  /** Cut a piece that is too large for this worker. Both halves keep its history. */
  halves() {
    const middle = (this.start + this.stop) >> 1;
    const { attempts, isSuspect, stopTimer } = this;
    this.job.missing++;
    return [
      [this.start, middle],
      [middle, this.stop],
    ].map((range) => Object.assign(new Piece(this.job, ...range), { attempts, isSuspect, stopTimer }));
  }
}

/** One call of `embed`, and what has come back of it. */
export class Job {
  missing = 0; // pieces without an answer
  #result;

  /** @param parameters as the wire names them */
  constructor(call, texts, parameters) {
    this.call = call;
    this.texts = texts;
    this.parameters = parameters;
    this.sizes = texts.map((text) => Buffer.byteLength(text));
  }

  /** Cut it into pieces of bounded cost; a call without texts has one, too. */
  pieces() {
    const pieces = [new Piece(this, 0)];
    for (const [index, bytes] of this.sizes.entries()) {
      if (!pieces.at(-1).hasRoomFor(bytes)) pieces.push(new Piece(this, index));
      pieces.at(-1).add(bytes);
    }
    this.missing = pieces.length;
    return pieces;
  }

  /** The dimension that further answers must have; undefined before the first. */
  get dimension() {
    return this.parameters.dimensions ?? this.#result?.dimension;
  }

  /** Put the vectors of a piece in their place, and end the call with the last of them. */
  take(piece, { matrix, dimension, tokens, truncated, model, fingerprint }) {
    const count = this.texts.length;
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

/** Estimate the tokens of a text: its own and the two special ones. */
const cost = (bytes) => 2 + Math.min(Math.floor(bytes / BYTES_PER_TOKEN), MOST_TOKENS);
