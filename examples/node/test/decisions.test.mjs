// What decides without doing. policy.test.mjs has what the clients of all languages decide alike.

import assert from "node:assert/strict";
import { test } from "node:test";

import { later } from "../src/call.js";
import { PIECE_BYTES, PIECE_TOKENS, TokenizeJob } from "../src/job.js";
import { withDefaults } from "../src/options.js";
import { Queue } from "../src/queue.js";
import { utf16Offsets } from "../src/offsets.js";
import { decodeEmbeddings, decodeError, decodeInfo, decodeLine, decodeTokens } from "../src/wire.js";
import { LineBuffer } from "../src/worker.js";

test("pieces are bounded and cover the call", () => {
  const texts = Array.from({ length: 30_000 }, (_, index) => "x".repeat(((index % 97) * index) % 6151));
  texts[777] = "x".repeat(6 * 2 ** 20);
  const job = new TokenizeJob({}, texts, {}, new Map());
  const pieces = job.pieces();
  assert.equal(job.missing, pieces.length);
  let next = 0;
  for (const piece of pieces) {
    assert.equal(piece.start, next);
    assert.ok(piece.stop > piece.start);
    assert.ok(piece.stop - piece.start === 1 || (piece.tokens <= PIECE_TOKENS && piece.bytes <= PIECE_BYTES));
    next = piece.stop;
  }
  assert.equal(next, texts.length);
  const stopTimer = () => {};
  pieces[0].stopTimer = stopTimer; // of a worker before, which took it whole
  const [first, second] = pieces[0].halves();
  assert.deepEqual([first?.stopTimer, second?.stopTimer], [stopTimer, undefined]);
  assert.equal(first.stop, second.start);
  assert.equal(second.stop, pieces[0].stop);
  assert.equal(first.tokens + second.tokens, pieces[0].tokens);
  assert.equal(first.bytes + second.bytes, pieces[0].bytes);
  assert.equal(job.missing, pieces.length + 1);
});

test("to withdraw thousands of calls is linear", () => {
  const queue = new Queue();
  let looks = 0;
  const pieces = Array.from({ length: 4000 }, () => ({
    isShort: true,
    isSuspect: false,
    isWithdrawn: false,
    get isOver() {
      looks++;
      return this.isWithdrawn;
    },
  }));
  for (const piece of pieces) queue.push(piece);
  for (const piece of pieces.slice(1)) {
    piece.isWithdrawn = true;
    queue.withdraw();
  }
  assert.ok(looks < 4 * pieces.length, `${looks} looks`);
  const worker = { pieces: new Map(), hasRoom: () => true };
  assert.equal(queue.length, 1);
  assert.equal(queue.next(worker), pieces[0]);
  assert.equal(queue.next(worker), undefined);
});

test("pieces come out in order, those that were put back first", () => {
  const queue = new Queue();
  const worker = { pieces: new Map(), hasRoom: () => true };
  const piece = (number) => ({ number, isShort: true, isSuspect: false, isOver: false });
  const taken = [];
  for (let number = 0; number < 10; number++) queue.push(piece(number));
  for (let number = 0; number < 4; number++) taken.push(queue.next(worker));
  queue.pushFront(taken.slice(2));
  queue.push(piece(10));
  const rest = Array.from({ length: 9 }, () => queue.next(worker).number);
  assert.deepEqual(rest, [2, 3, 4, 5, 6, 7, 8, 9, 10]);
  assert.equal(queue.next(worker), undefined);
});

test("lines are the same wherever the stream is cut", () => {
  const stream = Buffer.from('{"a":"naïve 🎈 \u2028"}\n\n{"b":2}\r\n{"c":3}\nrest');
  const expected = ['{"a":"naïve 🎈 \u2028"}', '{"b":2}\r', '{"c":3}'];
  for (let first = 0; first <= stream.length; first++) {
    for (let second = first; second <= stream.length; second++) {
      const lines = new LineBuffer();
      const parts = [stream.subarray(0, first), stream.subarray(first, second), stream.subarray(second)];
      assert.deepEqual(
        parts.flatMap((part) => lines.feed(part)).map(String),
        expected,
      );
      assert.equal(lines.partialBytes, 4);
    }
  }
});

test("lines that are no answers are refused", () => {
  for (const line of [
    "",
    "null",
    "7",
    "[]",
    "Segmentation fault",
    '{"id":1}',
    '{"id":1,"status":"fine"}',
    '{"id":1,"status":"ok"',
  ]) {
    assert.throws(() => decodeLine(Buffer.from(line)), line);
  }
  assert.throws(() => decodeLine(Buffer.from('{"id":1,"status":"ok","x":"\xff"}', "latin1")), "not UTF-8");
});

test("an error that is none is refused, and its message can always be built", () => {
  const error = { code: "c", message: "m", retryable: true, index: 1 };
  assert.deepEqual(decodeError(error, 2), error);
  for (const wrong of [
    { code: { toString: 1 } },
    { code: undefined },
    { message: { toString: 1 } },
    { retryable: "no" },
    { index: 2 },
    { index: -1 },
    { index: { toString: 1 } },
    { index: [0] },
  ]) {
    assert.throws(() => decodeError({ ...error, ...wrong }, 2), { constructor: Error }, JSON.stringify(wrong));
  }
});

const answer = {
  count: 2,
  dimension: 1,
  embeddings_base64: "AACAPwAAAEA=",
  tokens: [3, 4],
  truncated: [1],
  model: "m",
  fingerprint: "f",
};

test("an answer is decoded into memory that is aligned", () => {
  const { matrix, tokens } = decodeEmbeddings(answer, 2, 1);
  assert.deepEqual(matrix, new Float32Array([1, 2]));
  assert.equal(matrix.byteOffset, 0);
  assert.equal(matrix.buffer.byteLength, 8);
  assert.deepEqual(tokens, [3, 4]);
  assert.equal(
    decodeEmbeddings({ ...answer, count: 0, embeddings_base64: "", tokens: [], truncated: [] }, 0, 1).matrix.length,
    0,
  );
});

test("answers that do not fit are refused", () => {
  for (const wrong of [
    { count: 3 },
    { count: "2" },
    { dimension: 2 },
    { dimension: 0 },
    { dimension: undefined },
    { dimension: 1e12 },
    { embeddings_base64: undefined },
    { embeddings_base64: "AACAPw==" },
    { embeddings_base64: "AACAPwAAAEAA" },
    { embeddings_base64: "AACAPw*AAEA=" },
    { embeddings_base64: "AACAPwAAwH8=" },
    { embeddings_base64: "AACAPwAAgH8=" },
    { tokens: [3] },
    { tokens: [3, "4"] },
    { tokens: undefined },
    { truncated: [2] },
    { truncated: [-1] },
    { truncated: undefined },
  ]) {
    for (const dimension of [1, undefined]) {
      assert.throws(
        () => decodeEmbeddings({ ...answer, ...wrong }, 2, dimension),
        `${JSON.stringify(wrong)} ${dimension}`,
      );
    }
  }
});

test("halves and signs are decoded, and have lengths of their own", () => {
  const halves = { ...answer, dimension: 9, embeddings_base64: Buffer.alloc(36, "\x00\x3c").toString("base64") };
  assert.deepEqual(decodeEmbeddings(halves, 2, 9, "float16").matrix, new Uint16Array(18).fill(0x3c00));
  const signs = { ...answer, dimension: 9, embeddings_base64: "gIB/gA==" };
  assert.deepEqual(decodeEmbeddings(signs, 2, 9, "ubinary").matrix, new Uint8Array([0x80, 0x80, 0x7f, 0x80]));
  for (const [precision, encoded] of [
    ["float16", signs.embeddings_base64],
    ["ubinary", "gIB/"],
    ["ubinary", "gIB/gIA="],
    ["ubinary", halves.embeddings_base64],
    ["float16", Buffer.alloc(36, "\x00\x7c").toString("base64")], // infinite
    ["float16", Buffer.alloc(36, "\x01\xfe", "latin1").toString("base64")], // not a number
  ]) {
    assert.throws(() => decodeEmbeddings({ ...signs, embeddings_base64: encoded }, 2, 9, precision), encoded);
  }
});

test("tokens are counted, and lie in their text", () => {
  const inputs = ["a 🎈b", ""];
  const offsets = [[[0, 1], [2, 3], [2, 3], [3, 4]], [[0, 0]]];
  const told = { model: "m", fingerprint: "f", count: 2, tokens: [6, 2], truncated: [], offsets };
  assert.deepEqual(decodeTokens(told, inputs, true).offsets, offsets);
  assert.equal(decodeTokens(told, inputs, false).offsets, undefined);
  assert.deepEqual(
    utf16Offsets(inputs[0], offsets[0]).map(([start, end]) => inputs[0].slice(start, end)),
    ["a", "🎈", "🎈", "b"],
  );
  for (const wrong of [
    { tokens: [6] },
    { count: 1 },
    { count: undefined },
    { model: 7 },
    { truncated: [2] },
    { offsets: undefined },
    { offsets: null },
    { offsets: [[]] },
    { offsets: [[], null] },
    { offsets: [[], [[0, 1]]] }, // there is no text
    { offsets: [[[0, 5]], []] },
    { offsets: [[[-1, 1]], []] },
    { offsets: [[[1, 0]], []] },
    { offsets: [[[0.5, 1]], []] },
    { offsets: [[["0", 1]], []] },
    { offsets: [[[0, null]], []] },
    { offsets: [[[0]], []] },
    { offsets: [[[0, 1, 2]], []] },
    { fingerprint: undefined },
  ]) {
    assert.throws(() => decodeTokens({ ...told, ...wrong }, inputs, true), JSON.stringify(wrong));
  }
});

test("an info that promises nothing is refused", () => {
  const info = {
    protocol: 1,
    model: "m",
    fingerprint: "f",
    dimension: 3,
    limits: { max_inputs: 7, max_line_bytes: "many" },
  };
  assert.equal(decodeInfo(info).limits.maxInputs, 7);
  assert.equal(decodeInfo(info).limits.maxLineBytes, 32 * 2 ** 20);
  for (const wrong of [
    { protocol: 2 },
    { protocol: undefined },
    { model: "" },
    { fingerprint: 7 },
    { dimension: 0 },
    { dimension: "3" },
  ]) {
    assert.throws(() => decodeInfo({ ...info, ...wrong }), JSON.stringify(wrong));
  }
});

test("options are checked", () => {
  for (const wrong of [
    { timeout: 1 },
    { requestTimeoutMs: 0 },
    { requestTimeoutMs: NaN },
    { drainMs: "1" },
    { command: [] },
    { command: "embed-worker" },
    { command: null },
    { env: null },
    { cwd: 7 },
    { onStderr: "log" },
  ]) {
    assert.throws(() => withDefaults(wrong), TypeError, JSON.stringify(wrong));
  }
  assert.throws(() => withDefaults({ command: "embed-worker" }), /list of strings/);
  assert.equal(withDefaults({ maxAttempts: undefined }).maxAttempts, 3);
  assert.equal(withDefaults({ drainMs: Infinity }).drainMs, Infinity);
});

test("a wait may be longer than a timer can be, and be called off", async () => {
  // setTimeout would take each of these for 1 ms.
  const callOffs = [2 ** 31, 1e300, Infinity].map((ms) => later(ms, () => assert.fail(`after ${ms}`)));
  await new Promise((resolve) => setTimeout(resolve, 20));
  for (const callOff of callOffs) callOff();
});
