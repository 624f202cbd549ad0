import { timeoutError } from "./errors.js";

const LONGEST_TIMER_MS = 2 ** 31 - 1; // setTimeout takes more for 1

/**
 * Run a function later, without keeping the process alive for it; Infinity is never. Return what calls it off.
 * @param {number} ms
 * @param {() => void} run
 */
export function later(ms, run) {
  const step = Math.min(ms, LONGEST_TIMER_MS);
  let callOff = () => {};
  const timer = setTimeout(() => {
    if (ms > step) callOff = later(ms - step, run);
    else run();
  }, step).unref();
  callOff = () => clearTimeout(timer);
  return () => callOff();
}

/**
 * The calls that one signal ends, behind one listener: to take a listener off is linear in how many there are, and a
 * signal that is shared by a whole import has thousands of calls.
 */
class Ending {
  /** @type {Set<Call<any>>} */
  #calls = new Set();
  #signal;
  #onAbort = () => {
    for (const call of [...this.#calls]) call.end(this.#signal.reason);
  };

  /** @param {AbortSignal} signal */
  constructor(signal) {
    this.#signal = signal;
  }

  /** @param {Call<any>} call */
  add(call) {
    if (this.#calls.size === 0) this.#signal.addEventListener("abort", this.#onAbort);
    this.#calls.add(call);
  }

  /** @param {Call<any>} call */
  remove(call) {
    this.#calls.delete(call);
    if (this.#calls.size === 0) this.#signal.removeEventListener("abort", this.#onAbort);
  }

  /** @type {WeakMap<AbortSignal, Ending>} */
  static #ofSignals = new WeakMap();

  /** @param {AbortSignal} signal */
  static of(signal) {
    const ending = Ending.#ofSignals.get(signal) ?? new Ending(signal);
    Ending.#ofSignals.set(signal, ending);
    return ending;
  }
}

/**
 * A promise that is settled once, by its outcome, by an AbortSignal or by a time-out.
 * @template T
 */
export class Call {
  isOver = false;
  /** @type {(error: unknown, value: T) => void} */
  #settle = () => {};
  /** @type {((error: unknown) => void)[]} */
  #cleanUps;

  /**
   * @param {{ signal?: AbortSignal, timeoutMs?: number }} options
   * @param {(call: Call<T>, error: unknown) => void} onEnd is called once, with the error if it is one
   */
  constructor({ signal, timeoutMs }, onEnd) {
    if (timeoutMs !== undefined && !(typeof timeoutMs === "number" && timeoutMs >= 0)) {
      throw new TypeError("timeoutMs must be a number of at least 0");
    }
    /** @type {Promise<T>} */
    this.promise = new Promise((resolve, reject) => {
      this.#settle = (error, value) => (error === undefined ? resolve(value) : reject(error));
    });
    this.#cleanUps = [(error) => onEnd(this, error)];
    if (signal) {
      const ending = Ending.of(signal);
      ending.add(this);
      this.#cleanUps.push(() => ending.remove(this));
    }
    this.hasTimeout = timeoutMs !== undefined;
    if (timeoutMs !== undefined) this.limit(timeoutMs);
  }

  /**
   * End it with a time-out when so much time has passed. Return what calls that off; the end of the call does, too, for
   * the timer holds its texts.
   * @param {number} ms
   */
  limit(ms) {
    const callOff = later(ms, () => this.end(timeoutError(ms)));
    this.#cleanUps.push(callOff);
    return callOff;
  }

  /**
   * Settle; the first outcome counts.
   * @param {unknown} error undefined for a success
   * @param {T} [value]
   */
  end(error, value) {
    if (this.isOver) return;
    this.isOver = true;
    this.#settle(error, /** @type {T} */ (value));
    for (const cleanUp of this.#cleanUps) cleanUp(error);
  }
}
