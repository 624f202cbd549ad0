/** @import { Piece } from "./job.js" */

/**
 * Pieces in order. What nobody wants any more is passed over when its turn comes, so that to withdraw thousands of calls
 * is not to search the list thousands of times; when that is most of the list, it is thrown away.
 */
class Lane {
  /** @type {Piece[]} */ #front = []; // the first is the last
  /** @type {Piece[]} */ #back = [];
  #head = 0; // of #back

  get length() {
    return this.#front.length + this.#back.length - this.#head;
  }

  /** @param {Piece} piece */
  push(piece) {
    this.#back.push(piece);
  }

  /** @param {Piece} piece */
  unshift(piece) {
    this.#front.push(piece);
  }

  /** Return the first piece that somebody wants. */
  first() {
    for (;;) {
      const piece = this.#front.at(-1) ?? this.#back[this.#head];
      if (!piece?.isOver) return piece;
      this.shift();
    }
  }

  shift() {
    if (this.#front.length > 0) return this.#front.pop();
    const piece = this.#back[this.#head++];
    if (2 * this.#head > this.#back.length) {
      this.#back = this.#back.slice(this.#head);
      this.#head = 0;
    }
    return piece;
  }

  clean() {
    this.#front = this.#front.filter((piece) => !piece.isOver);
    this.#back = this.#back.slice(this.#head).filter((piece) => !piece.isOver);
    this.#head = 0;
  }

  *[Symbol.iterator]() {
    yield* this.#front.toReversed();
    yield* this.#back.slice(this.#head);
  }
}

/** What waits to be sent. */
export class Queue {
  #suspects = new Lane(); // that a worker died with
  #short = new Lane();
  #bulk = new Lane();
  #withdrawn = 0;

  get #lanes() {
    return [this.#suspects, this.#short, this.#bulk];
  }

  get hasSuspects() {
    return this.#suspects.first() !== undefined;
  }

  /** How many pieces wait that somebody wants. */
  get length() {
    return this.#lanes.flatMap((lane) => [...lane]).filter((piece) => !piece.isOver).length;
  }

  /** @param {Piece} piece */
  #lane(piece) {
    if (piece.isSuspect) return this.#suspects;
    return piece.isShort ? this.#short : this.#bulk;
  }

  /** @param {Piece} piece */
  push(piece) {
    this.#lane(piece).push(piece);
  }

  /**
   * Put pieces back, in this order.
   * @param {Piece[]} pieces
   */
  pushFront(pieces) {
    for (const piece of pieces.toReversed()) this.#lane(piece).unshift(piece);
  }

  /**
   * Take out the piece to send now, if any. Suspects go first, and alone.
   * @param {{ trial?: Piece, pieces: Map<number, Piece>, hasRoom: (piece: Piece) => boolean }} worker
   */
  next(worker) {
    if (worker.trial || (worker.pieces.size > 0 && this.hasSuspects)) return undefined;
    for (const lane of this.#lanes) {
      const piece = lane.first();
      if (piece && worker.hasRoom(piece)) return lane.shift();
    }
    return undefined;
  }

  /** Hear that a call is over before its pieces were sent, perhaps. */
  withdraw() {
    const waiting = this.#lanes.reduce((sum, lane) => sum + lane.length, 0);
    if (2 * ++this.#withdrawn <= waiting) return;
    this.#withdrawn = 0;
    for (const lane of this.#lanes) lane.clean();
  }

  /** Empty it; return the calls that waited. */
  drain() {
    const calls = new Set(this.#lanes.flatMap((lane) => [...lane]).map((piece) => piece.job.call));
    [this.#suspects, this.#short, this.#bulk] = [new Lane(), new Lane(), new Lane()];
    return calls;
  }
}
