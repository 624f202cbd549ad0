const HEALTHY_MS = 60_000; // of service: the next restart waits for nothing
const RECYCLE_EVERY_MS = 60_000; // a worker may replace itself so often for free
const MAX_HALF_OPEN = 10; // times halfOpenAfterMs
const JITTER = 0.2;

/**
 * Decides when the next worker starts. Pure: times and the random number come in.
 *
 * The budget is a leaky bucket. It leaks only while a worker is useful, so that one which starts well and then dies at
 * once heals nothing; the commonest mistake of supervisors is to forget all failures at a successful start.
 */
export class Restarts {
  #options;
  #level = 0;
  #failures = 0; // in a row, none of them after a healthy minute
  #halfOpens = 0;
  #recycledAt = -Infinity;

  constructor(options) {
    this.#options = options;
  }

  /**
   * Return how long to wait, and whether calls are refused meanwhile.
   * @param life of the worker that is gone: when it became ready and first embedded, if ever; whether it ended at its
   * memory ceiling, all work answered.
   * @param random in -1 … 1
   */
  after({ readySince = Infinity, usefulSince = Infinity, isRecycle = false }, now, random) {
    const { restartBudget, restartForgiveMs, halfOpenAfterMs, backoffInitialMs, backoffMaxMs } = this.#options;
    this.#level = Math.max(0, this.#level - Math.max(0, now - usefulSince) / restartForgiveMs);
    if (isRecycle && now - this.#recycledAt >= RECYCLE_EVERY_MS) {
      this.#recycledAt = now;
      return { waitMs: 0, isOpen: false };
    }
    if (now - readySince >= HEALTHY_MS) this.#failures = this.#halfOpens = 0;
    else this.#failures++;
    this.#level = Math.min(restartBudget, this.#level + 1);
    if (this.#level >= restartBudget - 1e-9) {
      // sums of fractions
      return { waitMs: halfOpenAfterMs * Math.min(MAX_HALF_OPEN, 2 ** this.#halfOpens++), isOpen: true };
    }
    if (this.#failures === 0) return { waitMs: 0, isOpen: false };
    const delayMs = Math.min(backoffMaxMs, backoffInitialMs * 2 ** (this.#failures - 1));
    return { waitMs: delayMs * (1 + JITTER * random), isOpen: false };
  }
}
