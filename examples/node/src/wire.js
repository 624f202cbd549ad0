import { endianness } from "node:os";

// The wire: one JSON object a line. docs/protocol.md is the whole of it. What decodes throws an Error that says what is
// wrong with a line.

export const PROTOCOL_VERSION = 1;

const LIMITS = {
  max_line_bytes: 32 * 2 ** 20,
  max_inputs: 16_384,
  max_text_bytes: 2 ** 20,
  max_in_flight: 1024,
  max_in_flight_bytes: 64 * 2 ** 20,
};

export const encodeLine = (request) => Buffer.from(`${JSON.stringify(request)}\n`);

/** Read one line of the worker. */
export function decodeLine(line) {
  let members;
  try {
    members = JSON.parse(line);
  } catch {
    throw new Error("a line that is not JSON");
  }
  if (members?.status !== "ok" && members?.status !== "error") throw new Error("a line that is no answer");
  return members;
}

/** Read an answer to `info`. */
export function decodeInfo(members) {
  const { protocol, version, pid, model, fingerprint, dimension, max_tokens: maxTokens, limits: told } = members;
  if (protocol !== PROTOCOL_VERSION) {
    throw new Error(`it speaks protocol ${protocol}, this client ${PROTOCOL_VERSION}`);
  }
  if (
    typeof model !== "string" ||
    !model ||
    typeof fingerprint !== "string" ||
    !fingerprint ||
    !isCount(dimension) ||
    !dimension
  ) {
    throw new Error("its info names no model, fingerprint or dimension");
  }
  const limits = { ...LIMITS };
  for (const name of Object.keys(LIMITS)) if (isCount(told?.[name]) && told[name]) limits[name] = told[name];
  return { protocol, version, pid, model, fingerprint, dimension, maxTokens, limits };
}

/**
 * Read an answer to `embed`.
 * @param dimension of the vectors; undefined where any will do
 */
export function decodeEmbeddings(members, count, dimension = members.dimension) {
  const { tokens, truncated, embeddings_base64: encoded, model, fingerprint } = members;
  if (members.count !== count || members.dimension !== dimension || !isCount(dimension) || !dimension) {
    throw new Error(`${members.count} x ${members.dimension} instead of ${count} x ${dimension}`);
  }
  if (!Array.isArray(tokens) || tokens.length !== count || !tokens.every(isCount)) {
    throw new Error("tokens that are not one number for each text");
  }
  if (!Array.isArray(truncated) || !truncated.every((index) => isCount(index) && index < count)) {
    throw new Error("truncated that are not indexes of texts");
  }
  return { matrix: decodeMatrix(encoded, count * dimension), dimension, tokens, truncated, model, fingerprint };
}

function decodeMatrix(encoded, length) {
  // Into the array's own memory: Buffer.from(text, "base64") may begin where no Float32Array can.
  const matrix = new Float32Array(length);
  const bytes = Buffer.from(matrix.buffer);
  // Node skips what is not base64, so that there would be fewer bytes than the length of the text promises.
  const isWhole =
    typeof encoded === "string" &&
    encoded.length % 4 === 0 &&
    Buffer.byteLength(encoded, "base64") === bytes.length &&
    bytes.write(encoded, "base64") === bytes.length;
  if (!isWhole) throw new Error(`vectors that are not ${length} x 4 bytes in base64`);
  if (endianness() === "BE") bytes.swap32();
  if (!matrix.every(Number.isFinite)) throw new Error("a vector that is not finite");
  return matrix;
}

const isCount = (value) => Number.isSafeInteger(value) && value >= 0;
