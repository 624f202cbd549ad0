/** @import { Settings } from "./options.js" */

export const PONG_MISSES = 2;
export const SLOW_FACTOR = 20;
export const AVERAGE_WEIGHT = 0.2; // of the newest micro-batch time in the moving average

/**
 * Decides whether a worker hangs. Pure: times come in, a verdict comes out.
 *
 * Two detectors, because alive is not the same as working: pings without any sign of life, and pongs that tell of no
 * progress while work is in flight. A busy worker answers pings, so being busy is neither.
 */
export class Health {
  #options;
  #receivedAt;
  /** @type {number | undefined} */ #pingedAt; // undefined: no ping is out
  #misses = 0;
  #progressAt;
  #seenAt; // when we last knew whether there was progress
  /** @type {number | undefined} */ #microBatches; // as of the last pong since the work began
  #countedAt;
  #microBatchMs = 0; // moving average of one
  #isStuck = false;

  /**
   * @param {number} now
   * @param {Pick<Settings, "pingEveryMs" | "pongTimeoutMs" | "stuckAfterMs">} options
   */
  constructor(now, options) {
    this.#options = options;
    this.#receivedAt = this.#progressAt = this.#seenAt = this.#countedAt = now;
  }

  /**
   * Note the first request after a pause, which must not count as a slow micro-batch.
   * @param {number} now
   */
  workBegan(now) {
    this.#progressAt = this.#seenAt = now;
    this.#microBatches = undefined;
  }

  /**
   * Note any line.
   * @param {number} now
   */
  received(now) {
    this.#receivedAt = now;
    this.#misses = 0;
  }

  /**
   * Note an answer to `embed`, which is progress.
   * @param {number} now
   */
  embedded(now) {
    this.#progressAt = this.#seenAt = now;
  }

  /**
   * Note a pong and what it tells of progress.
   * @param {number} now
   * @param {number} microBatches
   * @param {boolean} isBusy
   */
  ponged(now, microBatches, isBusy) {
    const before = this.#microBatches;
    const pingedAt = this.#pingedAt;
    this.#microBatches = microBatches;
    this.#pingedAt = undefined;
    this.#seenAt = now;
    if (microBatches !== before) {
      if (before !== undefined && microBatches > before) {
        const eachMs = (now - this.#countedAt) / (microBatches - before);
        this.#microBatchMs += AVERAGE_WEIGHT * (eachMs - this.#microBatchMs);
      }
      this.#progressAt = this.#countedAt = now;
    } else if (isBusy && pingedAt !== undefined) {
      // As of the ping: a host that slept has answers lying in the pipe behind this pong.
      const patienceMs = Math.max(this.#options.stuckAfterMs, SLOW_FACTOR * this.#microBatchMs);
      this.#isStuck = pingedAt - this.#progressAt >= patienceMs;
    }
  }

  /**
   * Return "ping" if one is due, which then counts as sent; "silent" or "stuck" for a worker that hangs.
   * @param {number} now
   * @param {boolean} isBusy
   */
  check(now, isBusy) {
    if (this.#isStuck) return "stuck";
    if (now < this.nextCheck(isBusy)) return undefined;
    const isMiss = this.#pingedAt !== undefined && this.#receivedAt < this.#pingedAt;
    if (isMiss && ++this.#misses >= PONG_MISSES) return "silent";
    this.#pingedAt = now;
    return "ping";
  }

  /**
   * Return when `check` has something to say, as far as is known now.
   * @param {boolean} isBusy
   */
  nextCheck(isBusy) {
    if (this.#isStuck) return this.#receivedAt;
    if (this.#pingedAt !== undefined) return this.#pingedAt + this.#options.pongTimeoutMs;
    return (isBusy ? Math.min(this.#receivedAt, this.#seenAt) : this.#receivedAt) + this.#options.pingEveryMs;
  }
}
