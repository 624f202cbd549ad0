/** @import { EmbedBridgeOptions, Precision } from "../index.js" */
import { requestError } from "./errors.js";
import { PRECISIONS } from "./wire.js";

const NO_DEFAULTS = /** @type {const} */ (["cwd", "onStderr"]);

/**
 * The options with their defaults.
 * @typedef {Required<Omit<EmbedBridgeOptions, NO_DEFAULTS[number]>> & Pick<EmbedBridgeOptions, NO_DEFAULTS[number]>} Settings
 */

/** @type {Settings} */
const DEFAULTS = {
  command: ["embed-worker"],
  env: {},
  startTimeoutMs: 60_000,
  requestTimeoutMs: 120_000,
  maxAttempts: 3,
  restartBudget: 5,
  restartForgiveMs: 60_000,
  backoffInitialMs: 200,
  backoffMaxMs: 30_000,
  halfOpenAfterMs: 60_000,
  halfOpenMaxMs: 600_000,
  pingEveryMs: 5_000,
  pongTimeoutMs: 10_000,
  stuckAfterMs: 60_000,
  drainMs: 5_000,
  terminateMs: 2_000,
};

const NO_COMMAND = "command must be a list of strings: no shell reads it";

/** @type {Record<string, string>} */
const TYPES = { ...mapped(DEFAULTS, (value) => typeof value), cwd: "string", onStderr: "function" };

/**
 * Check a host's options and fill in the defaults; index.d.ts describes each. Infinity is never.
 * @param {EmbedBridgeOptions} given
 */
export function withDefaults(given) {
  /** @type {Record<string, unknown>} */
  const options = { ...DEFAULTS };
  for (const [name, value] of Object.entries(given)) {
    if (!Object.hasOwn(TYPES, name)) throw new TypeError(`there is no option ${name}`);
    if (value === undefined) continue;
    const type = /** @type {string} */ (TYPES[name]);
    if (typeof value !== type || value === null) {
      throw new TypeError(name === "command" ? NO_COMMAND : `${name} must be ${type === "object" ? "an" : "a"} ${type}`);
    }
    if (type === "number" && !(Number(value) > 0)) throw new TypeError(`${name} must be a number above 0`);
    options[name] = value;
  }
  const settings = /** @type {Settings} */ (/** @type {unknown} */ (options));
  const { command } = settings;
  if (!Array.isArray(command) || command.length === 0 || !command.every((word) => typeof word === "string")) {
    throw new TypeError(NO_COMMAND);
  }
  settings.command = supervised(command);
  return settings;
}

/**
 * Return a command that makes the worker watch its host.
 * @param {readonly string[]} command
 */
export const supervised = (command) =>
  command.includes("--supervised") ? [...command] : [...command, "--supervised"];

/**
 * What a call of `embed` may ask for: its name on the wire, and its type.
 * @type {Record<string, [string, string]>}
 */
const PARAMETERS = {
  model: ["model", "string"],
  promptName: ["prompt_name", "string"],
  prompt: ["prompt", "string"],
  dimensions: ["dimensions", "number"],
  normalize: ["normalize", "boolean"],
  truncate: ["truncate", "boolean"],
};

/** @type {Record<string, [string, string]>} */
const TOKENIZE_PARAMETERS = {
  model: ["model", "string"],
  promptName: ["prompt_name", "string"],
  prompt: ["prompt", "string"],
  truncate: ["truncate", "boolean"],
  offsets: ["offsets", "boolean"],
};

/**
 * What a call asks for, as the wire names it.
 * @typedef {{ model?: string, prompt_name?: string, prompt?: string, dimensions?: number, normalize?: boolean,
 *   truncate?: boolean, encoding_format?: string, offsets?: boolean }} Parameters
 */

/**
 * Check what a call of `embed` asks for, and name it as the wire does.
 * @param {{ precision?: Precision }} options
 */
export function embedParametersOf({ precision = "float32", ...wanted }) {
  if (!Object.hasOwn(PRECISIONS, precision)) {
    throw new TypeError(`precision must be one of ${Object.keys(PRECISIONS).join(", ")}`);
  }
  const { format: encoding_format } = PRECISIONS[precision];
  return { precision, parameters: { encoding_format, ...parametersOf("embed", PARAMETERS, wanted) } };
}

/**
 * Check what a call of `tokenize` asks for, and name it as the wire does.
 * @param {object} wanted
 */
export const tokenizeParametersOf = (wanted) => parametersOf("tokenize", TOKENIZE_PARAMETERS, wanted);

/**
 * @param {string} method
 * @param {Record<string, [string, string]>} known
 * @param {object} wanted
 * @returns {Parameters}
 */
function parametersOf(method, known, wanted) {
  /** @type {Record<string, unknown>} */
  const parameters = {};
  for (const [name, value] of Object.entries(wanted)) {
    const [wireName, type] = known[name] && Object.hasOwn(known, name) ? known[name] : [];
    if (!wireName) throw new TypeError(`${method} has no option ${name}`);
    if (value === undefined) continue;
    if (typeof value !== type) throw new TypeError(`${name} must be a ${type}`);
    if (type === "number" && !(Number.isSafeInteger(value) && value > 0)) {
      throw new TypeError(`${name} must be an integer above 0`);
    }
    if (type === "string" && !String(value).isWellFormed()) {
      throw requestError("invalid_request", `${name} holds a lone surrogate`, false);
    }
    parameters[wireName] = value;
  }
  return parameters;
}

/** Names of prompts that sentence-transformers uses, in the order in which they are looked for. */
export const QUERY_PROMPTS = ["query"];
export const DOCUMENT_PROMPTS = ["document", "passage", "corpus"];

/**
 * Ask for the first of the prompts that the model has a text for, and for the empty one where it has none: its default
 * prompt may be that of the other side.
 * @param {Record<string, string>} prompts
 * @param {readonly string[]} names
 * @returns {{ promptName: string } | { prompt: string }}
 */
export function promptOf(prompts, names) {
  const promptName = names.find((name) => Object.hasOwn(prompts, name) && prompts[name]);
  return promptName === undefined ? { prompt: "" } : { promptName };
}

/**
 * @template {object} T
 * @template R
 * @param {T} object
 * @param {(value: T[keyof T]) => R} change
 */
function mapped(object, change) {
  return Object.fromEntries(Object.entries(object).map(([name, value]) => [name, change(value)]));
}
