/** @import { WorkerInfo } from "../index.js" */
import { endianness } from "node:os";

// The wire: one JSON object a line. docs/protocol.md is the whole of it. What decodes throws an Error that says what is
// wrong with a line; it never builds a message of what the worker wrote but by JSON.stringify.

export const PROTOCOL_VERSION = 1;
export const MAX_DIMENSION = 65_536; // no model is near it, and nothing is allocated for more

/** @typedef {Record<string, unknown>} Members of an answer; nothing is known of their types. */

/**
 * The limits of a worker that tells none, by their names on the wire.
 * @type {Record<string, [keyof WorkerInfo["limits"], number]>}
 */
export const LIMITS = {
  max_line_bytes: ["maxLineBytes", 32 * 2 ** 20],
  max_inputs: ["maxInputs", 16_384],
  max_text_bytes: ["maxTextBytes", 2 ** 20],
  max_in_flight: ["maxInFlight", 1024],
  max_in_flight_bytes: ["maxInFlightBytes", 64 * 2 ** 20],
};

/** @param {object} request */
export const encodeLine = (request) => Buffer.from(`${JSON.stringify(request)}\n`);

const utf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/**
 * Read one line of the worker.
 * @param {Uint8Array} line
 * @returns {Members}
 */
export function decodeLine(line) {
  let members;
  try {
    members = JSON.parse(utf8.decode(line));
  } catch {
    throw new Error("a line that is not JSON");
  }
  if (members?.status !== "ok" && members?.status !== "error") throw new Error("a line that is no answer");
  return members;
}

/**
 * Read an error that answers a request of `count` inputs.
 * @param {Members} members
 * @param {number} count
 */
export function decodeError({ code, message, retryable = false, index = null }, count) {
  if (typeof code !== "string" || typeof message !== "string" || typeof retryable !== "boolean") {
    throw new Error("an error without code, message or retryable");
  }
  if (index !== null && !(isCount(index) && index < Math.max(1, count))) {
    throw new Error(`an error at input ${shown(index)} of ${count}`);
  }
  return { code, message, retryable, index: index ?? undefined };
}

/**
 * Read an answer to `info`.
 * @param {Members} members
 * @returns {WorkerInfo}
 */
export function decodeInfo({ protocol, model, fingerprint, dimension, ...members }) {
  if (protocol !== PROTOCOL_VERSION) {
    throw new Error(`it speaks protocol ${shown(protocol)}, this client ${PROTOCOL_VERSION}`);
  }
  const isNamed = isText(model) && model && isText(fingerprint) && fingerprint;
  if (!isNamed || !isDimension(dimension)) throw new Error("its info names no model, fingerprint or dimension");
  const { version, pid, max_tokens: maxTokens, default_prompt_name: defaultPromptName } = members;
  return {
    protocol,
    version: isText(version) ? version : "",
    pid: isCount(pid) ? pid : 0,
    model,
    fingerprint,
    dimension,
    maxTokens: isCount(maxTokens) ? maxTokens : 0,
    prompts: decodePrompts(members.prompts),
    defaultPromptName: isText(defaultPromptName) ? defaultPromptName : undefined,
    limits: decodeLimits(members.limits),
  };
}

/** @param {unknown} told */
function decodePrompts(told) {
  const prompts = Object.entries(isObject(told) ? told : {}).filter(([, text]) => isText(text));
  return /** @type {Record<string, string>} */ (Object.fromEntries(prompts));
}

/**
 * @param {unknown} told
 * @returns {WorkerInfo["limits"]}
 */
function decodeLimits(told) {
  const members = isObject(told) ? told : {};
  const limits = Object.entries(LIMITS).map(([wireName, [name, byDefault]]) => {
    const value = members[wireName];
    return [name, isCount(value) && value > 0 ? value : byDefault];
  });
  return Object.fromEntries(limits);
}

/**
 * A checked answer to an `embed`.
 * @typedef {object} Answer
 * @property {Float32Array} matrix
 * @property {number} dimension
 * @property {number[]} tokens
 * @property {number[]} truncated
 * @property {string} model
 * @property {string} fingerprint
 */

/**
 * Read an answer to `embed`.
 * @param {Members} members
 * @param {number} count of the inputs
 * @param {number} [wanted] the dimension of the vectors; undefined where any will do
 * @returns {Answer}
 */
export function decodeEmbeddings(members, count, wanted) {
  const { dimension, tokens, truncated, model, fingerprint, embeddings_base64: encoded } = members;
  if (members.count !== count || !isDimension(dimension) || dimension !== (wanted ?? dimension)) {
    throw new Error(`${shown(members.count)} x ${shown(dimension)} instead of ${count} x ${wanted}`);
  }
  if (!isText(model) || !isText(fingerprint)) throw new Error("no model or no fingerprint");
  if (!isListOf(tokens, isCount) || tokens.length !== count) {
    throw new Error("tokens that are not one number for each input");
  }
  if (!isListOf(truncated, (index) => isCount(index) && index < count)) {
    throw new Error("truncated that are not indexes of inputs");
  }
  return { matrix: decodeMatrix(encoded, count * dimension), dimension, tokens, truncated, model, fingerprint };
}

/**
 * @param {unknown} encoded
 * @param {number} length
 */
function decodeMatrix(encoded, length) {
  const bytes = 4 * length;
  // Node skips what is not base64, so that there would be fewer bytes than the length of the text promises; and it takes
  // the other alphabet. The length is compared before anything is allocated.
  const isWhole = isText(encoded) && encoded.length === 4 * Math.ceil(bytes / 3) && !/[-_]/.test(encoded);
  if (!isWhole) throw new Error(`vectors that are not ${length} x 4 bytes in base64`);
  // Into the array's own memory: Buffer.from(text, "base64") may begin where no Float32Array can.
  const matrix = new Float32Array(length);
  const memory = Buffer.from(matrix.buffer);
  if (memory.write(encoded, "base64") !== bytes || Buffer.byteLength(encoded, "base64") !== bytes) {
    throw new Error("vectors that are not base64");
  }
  if (endianness() === "BE") memory.swap32();
  if (!matrix.every(Number.isFinite)) throw new Error("a vector that is not finite");
  return matrix;
}

/** @type {(value: unknown) => value is number} */
export const isCount = (value) => Number.isSafeInteger(value) && Number(value) >= 0;
/** @type {(value: unknown) => value is string} */
const isText = (value) => typeof value === "string";
/** @type {(value: unknown) => value is number} */
const isDimension = (value) => isCount(value) && value > 0 && value <= MAX_DIMENSION;
/** @type {(value: unknown) => value is Members} */
const isObject = (value) => typeof value === "object" && value !== null;
/** @type {(value: unknown, isOne: (each: unknown) => boolean) => value is number[]} */
const isListOf = (value, isOne) => Array.isArray(value) && value.every(isOne);
/** @param {unknown} value */
const shown = (value) => String(JSON.stringify(value)).slice(0, 40);
