/** @import { Precision, Matrices, Tokenization, WorkerInfo } from "../index.js" */
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
 * How vectors travel, by the names of the option `precision`.
 * @type {{ [P in Precision]: {
 *   format: string, matrix: new (length: number) => Matrices[P], numberBytes: number,
 *   rowLength: (dimension: number) => number, swap?: (bytes: Buffer) => Buffer, isFinite: (value: number) => boolean } }}
 */
export const PRECISIONS = {
  float32: {
    format: "base64",
    matrix: Float32Array,
    numberBytes: 4,
    rowLength: (dimension) => dimension,
    swap: (bytes) => bytes.swap32(),
    isFinite: Number.isFinite,
  },
  float16: {
    format: "base64_float16",
    matrix: Uint16Array,
    numberBytes: 2,
    rowLength: (dimension) => dimension,
    swap: (bytes) => bytes.swap16(),
    isFinite: (bits) => (bits & 0x7c00) !== 0x7c00,
  },
  ubinary: {
    format: "base64_ubinary",
    matrix: Uint8Array,
    numberBytes: 1,
    rowLength: (dimension) => Math.ceil(dimension / 8),
    isFinite: () => true,
  },
};

/**
 * A checked answer to an `embed`.
 * @typedef {object} Answer
 * @property {Matrices[Precision]} matrix
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
 * @param {Precision} [precision]
 * @returns {Answer}
 */
export function decodeEmbeddings(members, count, wanted, precision = "float32") {
  const { dimension, model, fingerprint, embeddings_base64: encoded } = members;
  if (members.count !== count || !isDimension(dimension) || dimension !== (wanted ?? dimension)) {
    throw new Error(`${shown(members.count)} x ${shown(dimension)} instead of ${count} x ${wanted}`);
  }
  if (!isText(model) || !isText(fingerprint)) throw new Error("no model or no fingerprint");
  const { tokens, truncated } = decodeCounts(members, count);
  return { matrix: decodeMatrix(encoded, count, dimension, precision), dimension, tokens, truncated, model, fingerprint };
}

/**
 * Read the tokens of each input, and which were cut.
 * @param {Members} members
 * @param {number} count
 */
function decodeCounts({ tokens, truncated }, count) {
  if (!isListOf(tokens, isCount) || tokens.length !== count) {
    throw new Error("tokens that are not one number for each input");
  }
  if (!isListOf(truncated, (index) => isCount(index) && index < count)) {
    throw new Error("truncated that are not indexes of inputs");
  }
  return { tokens, truncated };
}

/**
 * @param {unknown} encoded
 * @param {number} count
 * @param {number} dimension
 * @param {Precision} precision
 */
function decodeMatrix(encoded, count, dimension, precision) {
  const { matrix: Matrix, numberBytes, rowLength, swap, isFinite } = PRECISIONS[precision];
  const length = count * rowLength(dimension);
  const bytes = numberBytes * length;
  // Node skips what is not base64, so that there would be fewer bytes than the length of the text promises; and it takes
  // the other alphabet. The length is compared before anything is allocated.
  const isWhole = isText(encoded) && encoded.length === 4 * Math.ceil(bytes / 3) && !/[-_]/.test(encoded);
  if (!isWhole) throw new Error(`vectors that are not ${bytes} bytes in base64`);
  // Into the array's own memory: Buffer.from(text, "base64") may begin where no Float32Array can.
  const matrix = new Matrix(length);
  const memory = Buffer.from(matrix.buffer);
  if (memory.write(encoded, "base64") !== bytes || Buffer.byteLength(encoded, "base64") !== bytes) {
    throw new Error("vectors that are not base64");
  }
  if (endianness() === "BE") swap?.(memory);
  if (!matrix.every(isFinite)) throw new Error("a vector that is not finite");
  return matrix;
}

/**
 * Read an answer to `tokenize`.
 * @param {Members} members
 * @param {readonly string[]} inputs
 * @param {boolean} hasOffsets
 * @returns {Tokenization}
 */
export function decodeTokens(members, inputs, hasOffsets) {
  const { count, model, fingerprint, offsets } = members;
  if (count !== inputs.length) throw new Error(`${shown(count)} instead of ${inputs.length}`);
  if (!isText(model) || !isText(fingerprint)) throw new Error("no model or no fingerprint");
  const counts = { model, fingerprint, ...decodeCounts(members, inputs.length) };
  if (!hasOffsets) return counts;
  if (!Array.isArray(offsets) || offsets.length !== inputs.length) {
    throw new Error("offsets that are not one list for each input");
  }
  for (const [index, ranges] of offsets.entries()) {
    const length = codePointsIn(/** @type {string} */ (inputs[index]));
    if (!(Array.isArray(ranges) && ranges.every((range) => isRange(range, length)))) {
      throw new Error(`offsets of input ${index} that are not ranges of it`);
    }
  }
  return { ...counts, offsets };
}

/**
 * Ranges may overlap, and may be empty.
 * @param {unknown} range
 * @param {number} length of the text
 */
function isRange(range, length) {
  if (!isListOf(range, isCount) || range.length !== 2) return false;
  const [start, end] = /** @type {[number, number]} */ (/** @type {unknown} */ (range));
  return start <= end && end <= length;
}

/** @param {string} text well formed */
function codePointsIn(text) {
  let lowHalves = 0;
  for (let unit = 0; unit < text.length; unit++) if ((text.charCodeAt(unit) & 0xfc00) === 0xdc00) lowHalves++;
  return text.length - lowHalves;
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
