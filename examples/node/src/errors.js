/**
 * Anything that a call is rejected with on purpose, apart from a TypeError for wrong arguments and the reason of an
 * AbortSignal. Branch on `kind` and `code`, never on messages.
 */
export class EmbedBridgeError extends Error {
  constructor(kind, message, { cause, ...facts } = {}) {
    super(message, cause === undefined ? undefined : { cause });
    this.name = "EmbedBridgeError";
    this.kind = kind;
    Object.assign(this, facts);
  }
}

export const closedError = () => new EmbedBridgeError("closed", "the client is closed");

export const timeoutError = (timeoutMs) =>
  new EmbedBridgeError("timeout", `no answer within ${timeoutMs} ms`, { timeoutMs });

export const requestError = (code, message, retryable, index) =>
  new EmbedBridgeError("request", `${code}: ${message}`, { code, retryable, ...(index !== undefined && { index }) });

export const circuitOpenError = (waitMs, last) =>
  new EmbedBridgeError(
    "circuit_open",
    `the worker failed too often, again in ${Math.ceil(waitMs / 1000)} s; last: ${last.message}`,
    {
      retryAt: new Date(Date.now() + waitMs),
      cause: last,
    },
  );
