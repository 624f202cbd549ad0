/** @import { Settings } from "./options.js" */

export const HEALTHY_MS = 60_000; // of service: the next restart waits for nothing
export const RECYCLE_EVERY_MS = 60_000; // a worker may replace itself so often for free
export const JITTER = 0.2;

/**
 * What a restart depends on of the worker that is gone.
 * @typedef {object} Life
 * @property {number} [readySince]
 * @property {number} [usefulSince] when it embedded first
 * @property {boolean} [isRecycle] it ended at its memory ceiling, all work answered
 * @property {boolean} [isInvestigation] it died with a suspect alone, whose fault it may be
 * @property {boolean} [isCharged] false for the further deaths of one investigation, which cost the budget once
 */

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
  #openForMs = 0; // the next refusal; 0: halfOpenAfterMs
  #recycledAt = -Infinity;

  /** @param {Settings} options */
  constructor(options) {
    this.#options = options;
  }

  /**
   * Return how long to wait, and whether calls are refused meanwhile.
   * @param {Life} life
   * @param {number} now
   * @param {number} random in -1 … 1
   */
  after(life, now, random) {
    const { readySince = Infinity, usefulSince = now, isRecycle, isInvestigation, isCharged = true } = life;
    const { restartBudget, restartForgiveMs, halfOpenAfterMs, halfOpenMaxMs, backoffInitialMs, backoffMaxMs } =
      this.#options;
    this.#level = Math.max(0, this.#level - (now - usefulSince) / restartForgiveMs);
    if (isRecycle && now - this.#recycledAt >= RECYCLE_EVERY_MS) {
      this.#recycledAt = now;
      return { waitMs: 0, isOpen: false };
    }
    if (isCharged) {
      this.#level = Math.min(restartBudget, this.#level + 1);
      if (this.#level >= restartBudget - 1e-9) {
        // a sum of fractions
        const waitMs = Math.min(halfOpenMaxMs, Math.max(this.#openForMs, halfOpenAfterMs));
        this.#openForMs = 2 * waitMs;
        return { waitMs, isOpen: true };
      }
    }
    let delayMs = backoffInitialMs;
    if (!isInvestigation && now - readySince >= HEALTHY_MS) {
      delayMs = this.#failures = this.#openForMs = 0;
    } else if (!isInvestigation) {
      delayMs = Math.min(backoffMaxMs, backoffInitialMs * 2 ** this.#failures);
      this.#failures = Math.min(this.#failures + 1, 64);
    }
    return { waitMs: delayMs * (1 + JITTER * random), isOpen: false };
  }
}
