import { timeoutError } from "./errors.js";

const LONGEST_TIMER_MS = 2 ** 31 - 1; // setTimeout takes more for 1

/** Run a function later, without keeping the process alive for it; returns what calls it off. */
export function later(ms, run) {
  const timer = setTimeout(run, Math.min(ms, LONGEST_TIMER_MS)).unref();
  return () => clearTimeout(timer);
}

/** A promise that is settled once, by its outcome, by an AbortSignal or by a time-out. */
export class Call {
  isOver = false;
  #settle;
  #cleanUps;

  /** @param onEnd is called once, with this call, and with the error if it is one */
  constructor({ signal, timeoutMs }, onEnd) {
    if (timeoutMs !== undefined && !(timeoutMs >= 0)) throw new TypeError("timeoutMs must be a number of at least 0");
    this.promise = new Promise((resolve, reject) => {
      this.#settle = (error, value) => (error === undefined ? resolve(value) : reject(error));
    });
    this.#cleanUps = [(error) => onEnd(this, error)];
    if (signal) {
      const onAbort = () => this.end(signal.reason);
      signal.addEventListener("abort", onAbort, { once: true });
      this.#cleanUps.push(() => signal.removeEventListener("abort", onAbort));
    }
    this.hasTimeout = timeoutMs !== undefined;
    if (this.hasTimeout) this.#cleanUps.push(later(timeoutMs, () => this.end(timeoutError(timeoutMs))));
  }

  /** Settle; the first outcome counts. */
  end(error, value) {
    if (this.isOver) return;
    this.isOver = true;
    this.#settle(error, value);
    for (const cleanUp of this.#cleanUps) cleanUp(error);
  }
}
