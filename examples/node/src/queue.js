/** What waits to be sent, each list in order. */
export class Queue {
  #suspects = []; // that a worker died with
  #short = [];
  #bulk = [];

  get #lists() {
    return [this.#suspects, this.#short, this.#bulk];
  }

  get length() {
    return this.#suspects.length + this.#short.length + this.#bulk.length;
  }

  #lane(piece) {
    if (piece.isSuspect) return this.#suspects;
    return piece.isShort ? this.#short : this.#bulk;
  }

  push(piece) {
    this.#lane(piece).push(piece);
  }

  /** Put pieces back, in this order. */
  pushFront(pieces) {
    for (const piece of pieces.toReversed()) this.#lane(piece).unshift(piece);
  }

  /** Take out the piece to send now, if any. Suspects go first, and alone. */
  next(worker) {
    if (worker.trial || (this.#suspects.length > 0 && worker.pieces.size > 0)) return undefined;
    return this.#lists.find((list) => list.length > 0 && worker.hasRoom(list[0]))?.shift();
  }

  remove(call) {
    const isOther = (piece) => piece.job.call !== call;
    [this.#suspects, this.#short, this.#bulk] = this.#lists.map((list) => list.filter(isOther));
  }

  /** Empty it; return the calls that waited. */
  drain() {
    const calls = new Set(this.#lists.flat().map((piece) => piece.job.call));
    [this.#suspects, this.#short, this.#bulk] = [[], [], []];
    return calls;
  }
}
