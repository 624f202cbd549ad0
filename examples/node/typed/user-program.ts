// What a TypeScript user writes, under --strict: `npm run types` checks it, and `npm test` runs it.
// The comments that expect errors fail the check when there is none.

import { EmbedBridge, EmbedBridgeError, utf16Offsets } from "embed-bridge";
import type { Embeddings, ErrorKind, Stats, Tokenization, WorkerInfo } from "embed-bridge";
import type * as Declared from "../index.js";
import * as Code from "../src/index.js";

// The hand-written types are those of the code.
export const declared: typeof Declared.EmbedBridge = Code.EmbedBridge;
export const declaredError: abstract new (...given: never[]) => Declared.EmbedBridgeError = Code.EmbedBridgeError;

const [command = "[]", pythonPath = ""] = process.argv.slice(2);
await using bridge = new EmbedBridge({ command: JSON.parse(command) as string[], env: { PYTHONPATH: pythonPath } });

const info: WorkerInfo = await bridge.info({ timeoutMs: 60_000 });
const query: Embeddings = await bridge.embedQuery(["text 0"], { dimensions: 4, signal: AbortSignal.timeout(60_000) });
const documents = await bridge.embedDocuments(["text 1", "text 2"] as const);
const first: Float32Array | undefined = documents.vectors[0];
const { vectors: halves }: { vectors: Uint16Array[] } = await bridge.embed(["text 0"], { precision: "float16" });
const signs: Embeddings<Uint8Array> = await bridge.embedQuery(["text 0"], { precision: "ubinary" });
const found: Tokenization = await bridge.tokenize(["a 😀 b"], { offsets: true, truncate: false });
const words = utf16Offsets("a 😀 b", found.offsets?.[0] ?? []).map(([start, end]) => "a 😀 b".slice(start, end));
let blocks = 0;
async function* read(): AsyncGenerator<string> {
  for (let number = 0; number < 5; number++) yield `text ${number}`;
}
for await (const { matrix, count } of bridge.embedIter(read(), { blockInputs: 2 })) blocks += matrix.length / count / 8;

let kind: ErrorKind | undefined;
try {
  await bridge.embed(["a"], { prompt: "x", promptName: "y" });
} catch (error) {
  if (!(error instanceof EmbedBridgeError)) throw error;
  const { code, retryable, index, retryAt }: { code?: string; retryable?: boolean; index?: number; retryAt?: Date } = error;
  if (code !== "invalid_request" || retryable || index !== undefined || retryAt) throw error;
  kind = error.kind;
}
const stats: Stats = bridge.stats();

export function neverCalled(): void {
  // @ts-expect-error: signs are bytes
  const wrong: Float32Array[] = signs.vectors;
  // @ts-expect-error: a precision that there is not
  void bridge.embed(["a"], { precision: "int8" });
  // @ts-expect-error: tokens have no dimensions
  void bridge.tokenize(["a"], { dimensions: 3 });
  void wrong;
  // @ts-expect-error: one text is no list
  void bridge.embed("text");
  // @ts-expect-error: the old name
  void bridge.embed(["a"], { prompt_name: "query" });
  // @ts-expect-error: the method chooses the prompt
  void bridge.embedQuery(["a"], { promptName: "query" });
  // @ts-expect-error: camelCase
  void info.limits.max_inputs;
  // @ts-expect-error: seconds are not milliseconds
  void new EmbedBridge({ drainS: 1 });
}

console.log(JSON.stringify([info.dimension, query.dimension, documents.count, first?.length, blocks, kind, stats.restarts, halves[0]?.length, signs.matrix.length, found.tokens, words]));
