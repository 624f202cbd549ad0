// Drives an EmbedBridge for the conformance suite: calls as JSON lines in, outcomes as JSON lines out. docs/hosts.md
// has the contract.

import { EmbedBridge, EmbedBridgeError } from "./src/index.js";
import { LineBuffer } from "./src/worker.js";

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

function optionsOf(settings) {
  const options = { command: JSON.parse(process.env.CONFORMANCE_WORKER), maxAttempts: settings.max_attempts };
  for (const [name, option] of Object.entries(SECONDS)) {
    if (settings[name] !== undefined) options[option] = settings[name] * 1000;
  }
  const { PYTHONPATH } = process.env; // the suite's worker may be a module of a checkout
  if (PYTHONPATH !== undefined) options.env = { PYTHONPATH };
  const { max_restarts: maxRestarts, restart_window_s: windowS = 60 } = settings;
  if (maxRestarts !== undefined) {
    // The budget is a bucket of failures that leaks, and no window.
    options.restartBudget = maxRestarts + 1;
    options.restartForgiveMs = (windowS * 1000) / Math.max(1, maxRestarts);
  }
  return options;
}

const bridge = new EmbedBridge(optionsOf(JSON.parse(process.env.CONFORMANCE_OPTIONS ?? "{}")));
const controllers = new Map();

const operations = {
  async embed(
    { inputs, timeout_s: timeoutS, prompt_name: promptName, prompt, dimensions, normalize, model, truncate },
    signal,
  ) {
    const { matrix, ...told } = await bridge.embed(inputs, {
      signal,
      promptName,
      prompt,
      dimensions,
      normalize,
      model,
      truncate,
      timeoutMs: timeoutS === undefined ? undefined : timeoutS * 1000,
    });
    const { count, dimension, tokens, truncated, fingerprint } = told;
    const vectors = Buffer.from(matrix.buffer).toString("base64");
    return { count, dimension, vectors_base64: vectors, tokens, truncated, model: told.model, fingerprint };
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

function failureOf(error) {
  const failure = { ok: false, retryable: error.retryable ?? false, message: error.message };
  if (error instanceof EmbedBridgeError) {
    const { kind, code, index } = error;
    return { ...failure, error: kind, code, index };
  }
  return { ...failure, error: error.name === "AbortError" ? "cancelled" : "invalid_argument" };
}

async function carryOut({ call, op, ...given }) {
  const controller = new AbortController();
  controllers.set(call, controller);
  let outcome;
  try {
    outcome = { ok: true, ...(await operations[op](given, controller.signal)) };
  } catch (error) {
    outcome = failureOf(error);
  }
  controllers.delete(call);
  process.stdout.write(`${JSON.stringify({ call, ...outcome })}\n`);
}

const calls = [];
const lines = new LineBuffer(); // not node:readline, which ends lines at U+2028, too
for await (const chunk of process.stdin) {
  for (const line of lines.feed(chunk)) calls.push(carryOut(JSON.parse(line)));
}
await Promise.all(calls);
await bridge.close();
