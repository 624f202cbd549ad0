// What decides without doing: restarts, health, pieces, lines, answers.

import assert from "node:assert/strict";
import { test } from "node:test";

import { Health } from "../src/health.js";
import { Job, PIECE_BYTES, PIECE_TOKENS } from "../src/job.js";
import { withDefaults } from "../src/options.js";
import { Restarts } from "../src/restarts.js";
import { decodeEmbeddings, decodeInfo, decodeLine } from "../src/wire.js";
import { LineBuffer } from "../src/worker.js";

const MINUTE = 60_000;

test("the budget is a leaky bucket", () => {
  for (const [serviceS, expected] of [
    [0, 5],
    [30, 9],
    [45, 17],
    [60, undefined],
    [3600, undefined],
  ]) {
    const restarts = new Restarts(withDefaults({}));
    let now = 0;
    let openedAt;
    for (let crash = 1; crash <= 1000 && !openedAt; crash++) {
      const life = { readySince: now, usefulSince: now };
      now += serviceS * 1000;
      const { waitMs, isOpen } = restarts.after(life, now, 0);
      if (isOpen) openedAt = crash;
      now += waitMs;
    }
    assert.equal(openedAt, expected, `with ${serviceS} s of service`);
  }
});

test("a ready worker that is of no use heals nothing", () => {
  const restarts = new Restarts(withDefaults({}));
  const open = [];
  for (let hour = 0; hour < 5; hour++) {
    open.push(restarts.after({ readySince: hour * 60 * MINUTE }, (hour + 1) * 60 * MINUTE, 0).isOpen);
  }
  assert.deepEqual(open, [false, false, false, false, true]);
});

test("the back-off doubles up to its maximum", () => {
  const restarts = new Restarts(withDefaults({ restartBudget: 1000 }));
  const wait = (life = {}, now = 0, random = 0) => restarts.after(life, now, random).waitMs;
  const waits = Array.from({ length: 10 }, () => wait());
  assert.deepEqual(waits, [200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 30_000, 30_000]);
  assert.equal(wait({}, 0, -1), 24_000);
  assert.equal(wait({ readySince: 0 }, MINUTE), 0, "after a healthy minute");
  assert.equal(wait(), 200);
});

test("half-open attempts come later each time", () => {
  const restarts = new Restarts(withDefaults({}));
  for (let failure = 0; failure < 4; failure++) restarts.after({}, 0, 0);
  for (const minutes of [1, 2, 4, 8, 10, 10]) {
    assert.deepEqual(restarts.after({}, 0, 0), { waitMs: minutes * MINUTE, isOpen: true });
  }
});

test("a recycle is free once a minute", () => {
  const restarts = new Restarts(withDefaults({ restartBudget: 2 }));
  const open = [0, 61, 62, 63].map((seconds) => restarts.after({ isRecycle: true }, seconds * 1000, 0).isOpen);
  assert.deepEqual(open, [false, false, false, true]);
});

test("two pings without a sign of life are a hang", () => {
  const health = new Health(0, withDefaults({}));
  const verdicts = [4, 5, 14, 15, 25].map((seconds) => health.check(seconds * 1000, false));
  assert.deepEqual(verdicts, [undefined, "ping", undefined, "ping", "silent"]);
});

test("any sign of life forgives a miss", () => {
  const health = new Health(0, withDefaults({}));
  health.check(5_000, true);
  health.check(15_000, true);
  health.received(16_000);
  assert.equal(health.check(25_000, true), "ping");
});

/** Let a ping be sent and answered at once; return whether the worker is stuck then. */
function isStuckAfterPong(health, seconds, microBatches) {
  health.check(seconds * 1000, true);
  health.received(seconds * 1000);
  health.ponged(seconds * 1000, microBatches, true);
  return health.check(seconds * 1000, true) === "stuck";
}

test("pongs without progress are a hang", () => {
  const health = new Health(0, withDefaults({}));
  health.workBegan(0);
  for (let seconds = 5; seconds <= 60; seconds += 5) assert.equal(isStuckAfterPong(health, seconds, 3), false);
  assert.equal(isStuckAfterPong(health, 65, 3), true); // a minute after the first pong told of what was done before
});

test("progress is no hang, however slow", () => {
  const health = new Health(0, withDefaults({}));
  health.workBegan(0);
  for (let seconds = 5; seconds <= 600; seconds += 5) {
    assert.equal(isStuckAfterPong(health, seconds, Math.floor(seconds / 50)), false);
  }
  for (let seconds = 605; seconds <= 700; seconds += 5) {
    // micro-batches of 50 s: twenty times that is a hang
    assert.equal(isStuckAfterPong(health, seconds, 12), false);
  }
});

test("pieces are bounded and cover the call", () => {
  const texts = Array.from({ length: 30_000 }, (_, index) => "x".repeat(((index % 97) * index) % 6151));
  texts[777] = "x".repeat(6 * 2 ** 20);
  const job = new Job({}, texts, {});
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
  const [first, second] = pieces[0].halves();
  assert.equal(first.stop, second.start);
  assert.equal(second.stop, pieces[0].stop);
  assert.equal(first.tokens + second.tokens, pieces[0].tokens);
  assert.equal(first.bytes + second.bytes, pieces[0].bytes);
  assert.equal(job.missing, pieces.length + 1);
});

test("lines are the same wherever the stream is cut", () => {
  const stream = Buffer.from('{"a":"naïve 🎈 \u2028"}\n\n{"b":2}\r\n{"c":3}\nrest');
  const expected = ['{"a":"naïve 🎈 \u2028"}', '{"b":2}', '{"c":3}'];
  for (let first = 0; first <= stream.length; first++) {
    for (let second = first; second <= stream.length; second++) {
      const lines = new LineBuffer();
      const parts = [stream.subarray(0, first), stream.subarray(first, second), stream.subarray(second)];
      assert.deepEqual(
        parts.flatMap((part) => lines.feed(part)),
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
    assert.throws(() => decodeLine(line), line);
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

test("an info that promises nothing is refused", () => {
  const info = {
    protocol: 1,
    model: "m",
    fingerprint: "f",
    dimension: 3,
    limits: { max_inputs: 7, max_line_bytes: "many" },
  };
  assert.equal(decodeInfo(info).limits.max_inputs, 7);
  assert.equal(decodeInfo(info).limits.max_line_bytes, 32 * 2 ** 20);
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
  ]) {
    assert.throws(() => withDefaults(wrong), TypeError, JSON.stringify(wrong));
  }
  assert.equal(withDefaults({ maxAttempts: undefined }).maxAttempts, 3);
});
