// Drives an EmbedBridge for the conformance suite: calls as JSON lines in, outcomes as JSON lines out. docs/hosts.md
// has the contract.
/** @import { EmbedBridgeOptions } from "./index.js" */

import process from "node:process";

import { EmbedBridge, EmbedBridgeError } from "./src/index.js";
import { LineBuffer } from "./src/worker.js";

/** @type {Record<string, keyof EmbedBridgeOptions>} */
const SECONDS = {
  request_timeout_s: "requestTimeoutMs",
  start_timeout_s: "startTimeoutMs",
  backoff_initial_s: "backoffInitialMs",
  backoff_max_s: "backoffMaxMs",
  ping_every_s: "pingEveryMs",
  pong_timeout_s: "pongTimeoutMs",
  stuck_after_s: "stuckAfterMs",
  drain_s: "drainMs",
  terminate_s: "terminateMs",
};

/**
 * @param {Record<string, number>} settings
 * @returns {EmbedBridgeOptions}
 */
function optionsOf({ max_attempts: maxAttempts, max_restarts: maxRestarts, restart_window_s: windowS = 60, ...times }) {
  const durations = Object.entries(SECONDS).map(([name, option]) => [option, times[name]]);
  const { PYTHONPATH } = process.env; // the suite's worker may be a module of a checkout
  return {
    command: JSON.parse(process.env.CONFORMANCE_WORKER ?? ""),
    maxAttempts,
    ...Object.fromEntries(durations.filter(([, s]) => s !== undefined).map(([name, s]) => [name, 1000 * Number(s)])),
    ...(PYTHONPATH !== undefined && { env: { PYTHONPATH } }),
    ...(maxRestarts !== undefined && {
      // The budget is a bucket of failures that leaks, and no window.
      restartBudget: maxRestarts + 1,
      restartForgiveMs: (windowS * 1000) / Math.max(1, maxRestarts),
    }),
  };
}

const bridge = new EmbedBridge(optionsOf(JSON.parse(process.env.CONFORMANCE_OPTIONS ?? "{}")));
/** @type {Map<number, AbortController>} */
const controllers = new Map();

/** @typedef {Record<string, any>} Given what the suite sends */

/** @type {Record<string, (given: Given, signal: AbortSignal) => Promise<object | void>>} */
const operations = {
  async embed({ inputs, timeout_s: timeoutS, prompt_name: promptName, ...wanted }, signal) {
    const timeoutMs = timeoutS === undefined ? undefined : timeoutS * 1000;
    const { matrix, vectors, ...told } = await bridge.embed(inputs, { signal, promptName, timeoutMs, ...wanted });
    return { ...told, vectors_base64: Buffer.from(matrix.buffer).toString("base64") };
  },
  async tokenize({ inputs, timeout_s: timeoutS, prompt_name: promptName, ...wanted }, signal) {
    const timeoutMs = timeoutS === undefined ? undefined : timeoutS * 1000;
    const told = await bridge.tokenize(inputs, { signal, promptName, timeoutMs, ...wanted });
    return { ...told, count: told.tokens.length };
  },
  async info(_, signal) {
    const { model, fingerprint, dimension, maxTokens, protocol, pid } = await bridge.info({ signal });
    return { model, fingerprint, dimension, max_tokens: maxTokens, protocol, pid };
  },
  async ping(_, signal) {
    await bridge.ping({ signal });
  },
  async cancel({ target }) {
    controllers.get(target)?.abort();
  },
  async stats() {
    const { restarts, pid } = bridge.stats();
    return { restarts, pid: pid ?? null };
  },
  async close() {
    await bridge.close();
  },
};

/** @param {any} error */
function failureOf(error) {
  const failure = { ok: false, retryable: error.retryable ?? false, message: error.message };
  if (error instanceof EmbedBridgeError) {
    const { kind, code, index } = error;
    return { ...failure, error: kind, code, index };
  }
  return { ...failure, error: error.name === "AbortError" ? "cancelled" : "invalid_argument" };
}

/** @param {Given} given */
async function carryOut({ call, op, ...given }) {
  const controller = new AbortController();
  controllers.set(call, controller);
  let outcome;
  try {
    outcome = { ok: true, ...(await operations[op]?.(given, controller.signal)) };
  } catch (error) {
    outcome = failureOf(error);
  }
  controllers.delete(call);
  process.stdout.write(`${JSON.stringify({ call, ...outcome })}\n`);
}

const calls = [];
const lines = new LineBuffer(); // not node:readline, which ends lines at U+2028, too
for await (const chunk of process.stdin) {
  for (const line of lines.feed(chunk)) calls.push(carryOut(JSON.parse(line.toString())));
}
await Promise.all(calls);
await bridge.close();
