/** @import { ErrorKind, EmbedBridgeError as Declared } from "../index.js" */

/**
 * Anything that a call is rejected with on purpose, apart from a TypeError for wrong arguments and the reason of an
 * AbortSignal. Branch on `kind` and `code`, never on messages.
 * @implements {Declared}
 */
export class EmbedBridgeError extends Error {
  /** @type {string | undefined} */ code;
  /** @type {boolean | undefined} */ retryable;
  /** @type {number | undefined} */ index;
  /** @type {number | undefined} */ timeoutMs;
  /** @type {number | null | undefined} */ exitCode;
  /** @type {string | null | undefined} */ signal;
  /** @type {string | undefined} */ stderrTail;
  /** @type {boolean | undefined} */ blamesInput;
  /** @type {Date | undefined} */ retryAt;

  /**
   * @param {ErrorKind} kind
   * @param {string} message
   * @param {{ cause?: unknown, [fact: string]: unknown }} facts
   */
  constructor(kind, message, { cause, ...facts } = {}) {
    super(message, cause === undefined ? undefined : { cause });
    this.name = "EmbedBridgeError";
    this.kind = kind;
    Object.assign(this, facts);
  }
}

export const closedError = () => new EmbedBridgeError("closed", "the client is closed");

/** @param {number} timeoutMs */
export const timeoutError = (timeoutMs) =>
  new EmbedBridgeError("timeout", `no answer within ${timeoutMs} ms`, { timeoutMs });

/**
 * @param {string} code
 * @param {string} message
 * @param {boolean} retryable
 * @param {number} [index] of the input that is to blame
 */
export const requestError = (code, message, retryable, index) =>
  new EmbedBridgeError("request", `${code}: ${message}`, { code, retryable, index });

const LAST_DATE = 8.64e15;

/**
 * @param {number} waitMs
 * @param {EmbedBridgeError} last
 */
export const circuitOpenError = (waitMs, last) =>
  new EmbedBridgeError(
    "circuit_open",
    `the worker failed too often, again in ${Math.ceil(waitMs / 1000)} s; last: ${last.message}`,
    { retryAt: new Date(Math.min(LAST_DATE, Date.now() + waitMs)), cause: last },
  );
