// Drives the fake worker, whose faults are flags, and the real one. EMBED_BRIDGE_PYTHON names an interpreter with the
// project's dependencies.

import assert from "node:assert/strict";
import { execFileSync, spawn } from "node:child_process";
import { getEventListeners, once as onceEvent } from "node:events";
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, describe, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";

import { EmbedBridge, EmbedBridgeError } from "../src/index.js";

const PATIENCE_MS = 180_000; // for everything that must happen; nothing is proved by its length
const ROOT = fileURLToPath(new URL("../../..", import.meta.url));
const PYTHON = process.env.EMBED_BRIDGE_PYTHON || "python3";
const FAKE = [PYTHON, "-m", "bridge_client.testing.fake_worker", "--supervised"];
const SOURCE = new URL("../src/index.js", import.meta.url).href;
const IS_WINDOWS = process.platform === "win32";

const folder = mkdtempSync(join(tmpdir(), "embed-bridge-"));
after(() => rmSync(folder, { recursive: true }));
let files = 0;
const newFile = () => join(folder, String(++files));

const WITHOUT_CHILDREN = "a process of Windows is killed without its children";

/** A busy machine is slow, and no test is about that. */
const PATIENT = {
  startTimeoutMs: PATIENCE_MS,
  requestTimeoutMs: PATIENCE_MS,
  pongTimeoutMs: PATIENCE_MS,
  stuckAfterMs: PATIENCE_MS,
};

/** Run a test with a client of a fake worker with these faults, and close it. */
async function using(faults, options, use) {
  const command = options.command ?? [...FAKE, ...faults];
  const env = { PYTHONPATH: ROOT, ...options.env };
  const bridge = new EmbedBridge({ backoffInitialMs: 10, ...PATIENT, ...options, command, env });
  try {
    await use(bridge);
  } finally {
    await bridge.close();
  }
}

/** Limit faults to the first process. */
const once = (...faults) => [...faults, "--processes=1", `--count-file=${newFile()}`];

/** Texts with numbers, so that a vector in the wrong place is seen. */
const numbered = (count) => Array.from({ length: count }, (_, index) => `text ${index}`);

/** Ask Python for the vectors of the fake worker, on a way without this client. */
function askPython(texts) {
  const program =
    "import json, sys; from bridge_client.testing import fake_vector; " +
    "print(json.dumps([fake_vector(text) for text in json.load(sys.stdin.buffer)]))";
  const told = execFileSync(PYTHON, ["-c", program], {
    input: JSON.stringify(texts),
    env: { ...process.env, PYTHONPATH: ROOT },
    maxBuffer: 2 ** 28,
  });
  return JSON.parse(told).map((vector) => Float32Array.from(vector));
}

const hundred = askPython(numbered(100));

async function assertEmbeds(bridge) {
  const { vectors, count, dimension } = await bridge.embed(numbered(100), { timeoutMs: PATIENCE_MS });
  assert.deepEqual([count, dimension], [100, 8]);
  assert.deepEqual(vectors, hundred);
}

async function until(what, condition) {
  for (const end = Date.now() + PATIENCE_MS; !condition(); await sleep(5)) {
    assert.ok(Date.now() < end, `it did not happen: ${what}`);
  }
}

function isAlive(pid) {
  try {
    process.kill(pid, 0);
  } catch {
    return false;
  }
  const stat = `/proc/${pid}/stat`; // a zombie whose reaper is not ours is dead enough
  return !existsSync(stat) || !readFileSync(stat, "utf8").includes(") Z ");
}

const fails = (promise, kind, facts = {}) =>
  assert.rejects(promise, (error) => {
    assert.ok(error instanceof EmbedBridgeError, error);
    assert.equal(error.kind, kind, error.message);
    for (const [name, value] of Object.entries(facts)) assert.deepEqual(error[name], value, error.message);
    return true;
  });

describe("vectors", { concurrency: 8 }, () => {
  test("they are those of Python, bit for bit", async () => {
    const odd = [
      "",
      " ",
      "naïve 🎈",
      "<b>&amp;</b>",
      "line\nbreak\u2028\0\x1b\x7f",
      "\ufeff\u{10ffff}",
      "x".repeat(100_000),
    ];
    await using([], {}, async (bridge) => {
      const { vectors, matrix, tokens, model, fingerprint } = await bridge.embed(odd);
      assert.deepEqual(vectors, askPython(odd));
      assert.deepEqual([model, fingerprint, tokens.length], ["fake-model", "fake000000000001", odd.length]);
      assert.equal(vectors[3].buffer, matrix.buffer);
    });
  });

  test("a large call is cut into pieces and joined in order", async () => {
    const texts = numbered(8191);
    texts[10] = texts[8000] = "word ".repeat(600);
    // Small limits of the worker cut the pieces further.
    await using(["--max-inputs=1000", "--max-line-bytes=20000"], {}, async (bridge) => {
      const { vectors, truncated, tokens } = await bridge.embed(texts);
      assert.deepEqual(vectors, askPython(texts));
      assert.deepEqual(truncated, [10, 8000]);
      assert.deepEqual(tokens.slice(10, 12), [602, 4]);
    });
  });

  test("no texts give no vectors", () =>
    using([], {}, async (bridge) => {
      const { vectors, count, dimension } = await bridge.embed([]);
      assert.deepEqual([vectors, count, dimension], [[], 0, 8]);
    }));

  test("every option travels", () =>
    using([], {}, async (bridge) => {
      const wanted = { model: "fake-model", promptName: "query", dimensions: 3, normalize: true, truncate: true };
      assert.equal((await bridge.embed(["a"], wanted)).dimension, 3);
      await fails(bridge.embed(["a"], { prompt: "x", promptName: "y" }), "request", { code: "invalid_request" });
    }));

  test("concurrent calls share one worker", () =>
    using(["--unknown-ids", "--duplicate-after=0"], {}, async (bridge) => {
      const callers = Array.from({ length: 500 }, async (_, number) => {
        const { vectors } = await bridge.embed([`text ${number % 100}`]);
        assert.deepEqual(vectors, [hundred[number % 100]]);
      });
      await Promise.all(callers);
      const { restarts, inFlight, queued, isReady } = bridge.stats();
      assert.deepEqual({ restarts, inFlight, queued, isReady }, { restarts: 0, inFlight: 0, queued: 0, isReady: true });
    }));

  test("answers in another order find their calls", () =>
    using(["--reorder=4"], {}, async (bridge) => {
      const calls = numbered(20).map((text) => bridge.embed([text]));
      assert.deepEqual(
        (await Promise.all(calls)).map(({ vectors }) => vectors[0]),
        hundred.slice(0, 20),
      );
    }));

  test("what waits behind a full pipe is sent when there is room", () =>
    using([], { pingEveryMs: 3_600_000 }, async (bridge) => {
      await bridge.info();
      const large = bridge.embed(Array.from({ length: 4 }, () => "x".repeat(2 ** 20)));
      await bridge.ping({ timeoutMs: PATIENCE_MS });
      assert.equal((await large).count, 4);
    }));

  test("answers in small pieces are put together", () => using(["--slow-write=97:0.0001"], {}, assertEmbeds));
});

describe("tokens", { concurrency: 8 }, () => {
  test("a large call is cut and joined in order, and survives a death", () =>
    using(once("--kill-after=2", "--max-inputs=700"), {}, async (bridge) => {
      const inputs = Array.from({ length: 5000 }, (_, index) => "é ".repeat(index % 7));
      inputs[3] = inputs[4000] = "word ".repeat(600);
      for (const offsets of [true, false]) {
        const found = await bridge.tokenize(inputs, { offsets });
        assert.deepEqual(found.truncated, [3, 4000]);
        assert.deepEqual(
          found.tokens,
          inputs.map((text, index) => (text.length > 100 ? 602 : 2 + (index % 7))),
        );
        assert.equal(found.offsets?.length, offsets ? 5000 : undefined);
        assert.deepEqual(found.offsets?.[9] ?? [[0, 1], [2, 3]], [[0, 1], [2, 3]]);
        assert.equal(found.model, "fake-model");
      }
      assert.equal(bridge.stats().restarts, 1);
    }));

  test("wrong arguments are found before anything is sent", () =>
    using([], {}, async (bridge) => {
      for (const options of [{ dimensions: 3 }, { offsets: 1 }, { precision: "float16" }]) {
        await assert.rejects(bridge.tokenize(["a"], options), TypeError);
      }
      for (const precision of ["int8", "toString", 7]) await assert.rejects(bridge.embed(["a"], { precision }), TypeError);
    }));

  test("vectors come at the precision that is asked for", () =>
    using(["--max-inputs=30"], {}, async (bridge) => {
      const exact = await bridge.embed(numbered(100), { dimensions: 7 });
      const halves = await bridge.embed(numbered(100), { dimensions: 7, precision: "float16" });
      const signs = await bridge.embedQuery(numbered(100), { dimensions: 7, precision: "ubinary" });
      assert.deepEqual([halves.dimension, halves.matrix.length, signs.dimension, signs.matrix.length], [7, 700, 7, 100]);
      for (const [row, vector] of exact.vectors.entries()) {
        const bits = Array.from(vector, (number) => (number > 0 ? "1" : "0"));
        assert.equal(signs.vectors[row][0], parseInt(bits.join("") + "0", 2));
        const signBits = Array.from(halves.vectors[row], (half) => half >> 15);
        assert.deepEqual(
          signBits,
          Array.from(vector, (number) => Number(number < 0)),
        );
      }
    }));
});

describe("errors of requests", { concurrency: 8 }, () => {
  test("an error answer is the call's error", () =>
    using(["--error-after=1:inference_failed"], {}, async (bridge) => {
      await bridge.embed(["a"]);
      await fails(bridge.embed(["a"]), "request", { code: "inference_failed", retryable: false, index: 0 });
      assert.equal(bridge.stats().restarts, 0);
    }));

  test("the index of an error counts through the whole call", async () => {
    await using(["--max-line-bytes=4000"], {}, async (bridge) => {
      const tooLong = bridge.embed([...numbered(500), "x".repeat(5000)]);
      await fails(tooLong, "request", { code: "input_too_long", index: 500 });
      await fails(bridge.embed(["good", "\ud800"]), "request", { code: "invalid_request", index: 1 });
      await fails(bridge.embed(["a"], { prompt: "\ud800" }), "request", { code: "invalid_request", index: undefined });
      await assertEmbeds(bridge);
    });
    // The second request of the call is refused, at its first text.
    await using(["--max-inputs=10", "--error-after=1:inference_failed"], {}, (bridge) =>
      fails(bridge.embed(numbered(11)), "request", { code: "inference_failed", index: 5 }),
    );
  });

  test("wrong arguments are found before anything is sent", () =>
    using([], {}, async (bridge) => {
      for (const [texts, options] of [
        ["a"],
        [undefined],
        [["a", 7]],
        [["a"], { dimension: 3 }],
        [["a"], { dimensions: NaN }],
        [["a"], { dimensions: 0 }],
        [["a"], { timeoutMs: "5" }],
        [["a"], { normalize: "yes" }],
        [["a"], { timeoutMs: NaN }],
        [["a"], { timeoutMs: -1 }],
      ]) {
        await assert.rejects(bridge.embed(texts, options), TypeError);
      }
      await assertEmbeds(bridge);
    }));

  test("a stalled request times out and the worker lives on", () =>
    using(["--stall-after=0"], { requestTimeoutMs: 50 }, async (bridge) => {
      const { pid } = await bridge.info();
      await fails(bridge.embed(["a"]), "timeout", { timeoutMs: 50 });
      await fails(bridge.embed(["a"], { timeoutMs: 60 }), "timeout", { timeoutMs: 60 });
      await bridge.ping({ timeoutMs: PATIENCE_MS });
      assert.equal(bridge.stats().pid, pid);
      assert.equal(bridge.stats().restarts, 0);
    }));

  test("a call that is aborted ends at once, and the worker drops it", () =>
    using(["--latency=3600", "--max-in-flight=1"], { drainMs: 100 }, async (bridge) => {
      await bridge.info();
      const controller = new AbortController();
      const calls = [1, 2].map(() => bridge.embed(["a"], { signal: controller.signal }));
      assert.deepEqual([bridge.stats().inFlight, bridge.stats().queued], [1, 1]);
      controller.abort();
      for (const call of calls) await assert.rejects(call, { name: "AbortError" });
      assert.equal(bridge.stats().queued, 0);
      await assert.rejects(bridge.embed(["a"], { signal: controller.signal }), { name: "AbortError" });
      await assert.rejects(bridge.embed(["a"], { signal: AbortSignal.timeout(20) }), { name: "TimeoutError" });
      await until("the worker gives them up", () => bridge.stats().inFlight === 0);
    }));

  test("a signal that is used for many calls collects no listeners", () =>
    using([], {}, async (bridge) => {
      const { signal } = new AbortController();
      for (let call = 0; call < 20; call++) await bridge.embed(["a"], { signal });
      assert.equal(getEventListeners(signal, "abort").length, 0);
    }));

  test("one signal ends 32,000 calls behind one listener", () =>
    using(["--latency=3600", "--max-in-flight=1"], { drainMs: 100 }, async (bridge) => {
      await bridge.info();
      const controller = new AbortController();
      const calls = Array.from({ length: 32_000 }, () => bridge.embed(["a"], { signal: controller.signal }));
      const wanted = bridge.embed(["b"]);
      await sleep(0); // they are begun
      assert.equal(getEventListeners(controller.signal, "abort").length, 1);
      assert.deepEqual([bridge.stats().inFlight, bridge.stats().queued], [1, 32_000]);
      const outcomes = Promise.allSettled(calls);
      controller.abort();
      for (const { reason } of await outcomes) assert.equal(reason.name, "AbortError");
      assert.equal(bridge.stats().queued, 1);
      const ended = fails(wanted, "closed");
      await bridge.close();
      await ended;
    }));

  test("a late answer is ignored", () =>
    using(["--latency=0.2", "--slow-write=50:0.01"], {}, async (bridge) => {
      await bridge.info();
      const late = bridge.embed(numbered(100), { timeoutMs: 250 }); // while it answers, more or less
      await late.catch(({ kind }) => assert.equal(kind, "timeout"));
      await assertEmbeds(bridge);
      assert.deepEqual([bridge.stats().inFlight, bridge.stats().restarts], [0, 0]);
    }));
});

describe("many inputs", { concurrency: 8 }, () => {
  async function* endless() {
    for (let number = 0; ; number++) yield `text ${number % 100}`;
  }

  test("they are embedded in blocks, in order", () =>
    using([], {}, async (bridge) => {
      for (const inputs of [numbered(100), new Set(numbered(100)), endless()]) {
        const vectors = [];
        for await (const block of bridge.embedIter(inputs, { blockInputs: 7 })) {
          assert.ok(block.count <= 7);
          vectors.push(...block.vectors);
          if (vectors.length >= 100) break;
        }
        assert.deepEqual(vectors.slice(0, 100), hundred);
      }
    }));

  test("to leave the loop withdraws what is ahead", () =>
    using(["--stall-after=1", "--max-in-flight=1"], { drainMs: 10 }, async (bridge) => {
      await bridge.info();
      for await (const block of bridge.embedIter(endless(), { blockInputs: 2 })) {
        assert.ok(bridge.stats().queued > 0);
        assert.equal(block.count, 2);
        break;
      }
      assert.equal(bridge.stats().queued, 0);
    }));

  test("no more is read than is needed", () =>
    using(["--latency=3600"], { drainMs: 10 }, async (bridge) => {
      let read = 0;
      function* counted() {
        for (;;) yield `text ${read++}`;
      }
      const controller = new AbortController();
      const block = bridge.embedIter(counted(), { blockInputs: 2, signal: controller.signal }).next();
      await until("they are sent", () => bridge.stats().inFlight > 0);
      controller.abort();
      await assert.rejects(block, { name: "AbortError" });
      assert.ok(read <= 2 * 18, `${read}`);
    }));

  test("an error ends the loop, and nothing else", () =>
    using(["--error-after=2:inference_failed"], {}, async (bridge) => {
      const blocks = [];
      const loop = async () => {
        for await (const { count } of bridge.embedIter(numbered(100), { blockInputs: 10 })) blocks.push(count);
      };
      await fails(loop(), "request", { code: "inference_failed" });
      assert.deepEqual(blocks, [10, 10]);
      for (const wrong of ["one text", 7]) await assert.rejects(bridge.embedIter(wrong).next(), TypeError);
      await assert.rejects(bridge.embedIter([], { blockInputs: 0 }).next(), TypeError);
    }));
});

describe("prompts", { concurrency: 8 }, () => {
  test("queries and documents get the model's", () => {
    const model = join(ROOT, "tests/models/extra-prompt-options");
    return using([], { command: [PYTHON, "-m", "embed_worker", "--model", model] }, async (bridge) => {
      const { prompts, defaultPromptName, model: name } = await bridge.info();
      assert.equal(defaultPromptName, "document");
      assert.notEqual(prompts.query, prompts.document);
      for (const [method, promptName] of [
        ["embedQuery", "query"],
        ["embedDocuments", "document"],
      ]) {
        const { vectors } = await bridge[method](["a cat"], { model: name, timeoutMs: PATIENCE_MS });
        assert.deepEqual(vectors, (await bridge.embed(["a cat"], { promptName })).vectors);
        await assert.rejects(bridge[method](["a"], { prompt: "" }), TypeError);
        await fails(bridge[method](["a"], { model: "another" }), "request", { code: "model_not_found" });
      }
    });
  });

  test("a model without prompts gets none", () =>
    using([], {}, async (bridge) => {
      assert.deepEqual((await bridge.embedQuery(["text 3"])).vectors, [hundred[3]]);
      assert.deepEqual((await bridge.embedDocuments(["text 4"])).vectors, [hundred[4]]);
    }));
});

const QUICK = { maxAttempts: 2, restartBudget: 1000, drainMs: 100, terminateMs: 100 };
// With workers that hang. A busy machine makes others late, too: it waits for two seconds and not for two moments.
const IMPATIENT = { ...QUICK, pingEveryMs: 30, pongTimeoutMs: 1500 };

const FAULTS = [
  ["--kill-after=1", "worker_died"],
  ["--kill-after=1:SEGV", "worker_died"],
  ["--exit-after=1", "worker_died"],
  ["--exit-after=1:70", "worker_died"],
  ["--partial-line-after=1", "worker_died"],
  ["--garbage-after=1", "worker_died"],
  ["--wrong-count-after=1", "worker_died"],
  ["--wrong-dimension-after=1", "worker_died"],
  ["--truncated-base64-after=1", "worker_died"],
  ["--nan-after=1", "worker_died"],
  ["--other-fingerprint-after=1", "worker_died"],
  ["--close-output-after=1", "worker_died"],
  ["--hang-after=1", "worker_hung"],
  ["--stop-after=1", "worker_hung"],
  ["--stop-reading-after=1", "worker_hung"],
];

describe("deaths and lies", { concurrency: 8 }, () => {
  for (const [fault, kind] of FAULTS) {
    const options = kind === "worker_hung" ? IMPATIENT : QUICK;

    test(`what was in flight is sent again after ${fault}`, () =>
      using(once(fault), options, async (bridge) => {
        for (let round = 0; round < 3; round++) await assertEmbeds(bridge);
        assert.equal(bridge.stats().restarts, 1);
      }));

    test(`${fault} at every attempt is one clear error`, () =>
      // A worker of its own for each attempt answers nothing.
      using([fault.replace("=1", "=0"), "--say=the last\rwords"], options, async (bridge) => {
        await fails(bridge.embed(["a"]), kind, { stderrTail: "the last\nwords" });
        await until("the next worker is there", () => bridge.stats().restarts === 2);
      }));
  }

  test("only the guilty call fails", () =>
    using(["--poison=bad", "--latency=0.01"], {}, async (bridge) => {
      const texts = numbered(20).with(7, "bad");
      const outcomes = await Promise.allSettled(texts.map((text) => bridge.embed([text])));
      for (const [number, { reason, value }] of outcomes.entries()) {
        if (number === 7) assert.equal(reason.kind, "worker_died");
        else assert.deepEqual(value?.vectors, [hundred[number]], reason);
      }
    }));

  test("kill -9 under load", () => using([], { restartBudget: 100 }, (bridge) => killUnderLoad(bridge, 5, 50)));

  test("a bulk call survives the death of its worker in the middle", () =>
    using(once("--kill-after=3"), {}, async (bridge) => {
      const texts = Array.from({ length: 60 }, (_, index) => `${index} ${"x".repeat(2 ** 19)}`); // EPIPE, most likely
      const { vectors } = await bridge.embed(texts);
      assert.deepEqual(vectors, askPython(texts));
    }));

  test("a worker that makes no progress is killed", () =>
    using(["--stall-after=0"], { ...IMPATIENT, stuckAfterMs: 200 }, (bridge) =>
      fails(bridge.embed(["a"]), "worker_hung"),
    ));

  test("a ping whose worker dies is asked again", () =>
    using(once("--hang-after=0"), IMPATIENT, async (bridge) => {
      const call = bridge.embed(["a"]);
      await until("it is sent", () => bridge.stats().inFlight === 1);
      await bridge.ping();
      await call;
      assert.equal(bridge.stats().restarts, 1);
    }));

  test("a ping ends when calls are refused", () =>
    using(["--hang-after=0"], { ...IMPATIENT, restartBudget: 1 }, async (bridge) => {
      const call = fails(bridge.embed(["a"]), "circuit_open");
      await until("it is sent", () => bridge.stats().inFlight === 1);
      await fails(bridge.ping(), "circuit_open");
      await call;
    }));

  test("a call that is withdrawn before its replay keeps no timer", async (context) => {
    const requestTimeoutMs = 123_457; // nobody else's
    const timers = new Set();
    const { setTimeout, clearTimeout } = globalThis;
    context.after(() => Object.assign(globalThis, { setTimeout, clearTimeout }));
    globalThis.setTimeout = (run, ms, ...rest) => {
      const timer = setTimeout(run, ms, ...rest);
      if (ms === requestTimeoutMs) timers.add(timer);
      return timer;
    };
    globalThis.clearTimeout = (timer) => {
      timers.delete(timer);
      clearTimeout(timer);
    };
    const options = { requestTimeoutMs, backoffInitialMs: PATIENCE_MS, restartBudget: 100 };
    await using(["--exit-after=0:70"], options, async (bridge) => {
      const host = new AbortController();
      const call = bridge.embed(["a"], { signal: host.signal });
      await until("it waits to be sent again", () => bridge.stats().pid === undefined && bridge.stats().queued === 1);
      assert.equal(timers.size, 1);
      host.abort();
      await assert.rejects(call, { name: "AbortError" });
      assert.equal(timers.size, 0);
    });
  });

  test("a busy worker is not hung", () =>
    using(["--latency=4"], IMPATIENT, async (bridge) => {
      await assertEmbeds(bridge);
      assert.equal(bridge.stats().restarts, 0);
    }));

  test("idle time is no slowness", () =>
    using(["--latency=0.3"], { ...IMPATIENT, stuckAfterMs: 4000 }, async (bridge) => {
      await assertEmbeds(bridge);
      const idle = performance.now();
      await until("it has been idle for longer", () => performance.now() - idle > 4500);
      await assertEmbeds(bridge);
      assert.equal(bridge.stats().restarts, 0);
    }));

  test("a recycle is no failure", () =>
    using(once("--exit-after=1:79"), { restartBudget: 1, maxAttempts: 1 }, async (bridge) => {
      await assertEmbeds(bridge);
      await assertEmbeds(bridge);
    }));

  test("a worker that is about to leave gets nothing new", () =>
    using(once("--error-after=0:shutting_down"), { maxAttempts: 1 }, async (bridge) => {
      await bridge.info();
      const call = bridge.embed(["text 0"]);
      await until("it is refused and waits", () => bridge.stats().queued === 1);
      assert.equal(bridge.stats().isReady, false);
      process.kill(bridge.stats().pid, "SIGKILL");
      assert.deepEqual((await call).vectors, [hundred[0]]);
    }));

  test("the deaths of one poisoned call cost the budget twice", () =>
    // Once with others, and once alone, however often: as for every client that looks for the guilty.
    using(["--poison=bad"], { maxAttempts: 5, restartBudget: 2.5 }, async (bridge) => {
      await fails(bridge.embed([...numbered(5), "bad"]), "worker_died", { blamesInput: true });
      await assertEmbeds(bridge);
      assert.equal(bridge.stats().restarts, 5);
    }));

  test("a start that is too late quotes what was on the pipe", () => {
    const program = "process.stdout.write('Downloading 100%'); setTimeout(() => {}, 3_600_000)";
    const command = [process.execPath, "-e", program, "--"];
    const options = { command, startTimeoutMs: 5000, restartBudget: 1, drainMs: 1 };
    return using([], options, (bridge) =>
      assert.rejects(bridge.info(), ({ kind, message }) => {
        assert.equal(kind, "circuit_open");
        assert.match(message, /"Downloading 100%"/);
        return true;
      }),
    );
  });

  test("no hostile answer is an exception of the host, a hang or a success", async () => {
    const program =
      "import json; from bridge_client.testing.hostile_worker import cases; print(json.dumps([" +
      "[name, case.get('inputs', 1), case.get('request', {}), case['then']] for name, case in cases('answers')]))";
    const cases = JSON.parse(execFileSync(PYTHON, ["-c", program], { env: { ...process.env, PYTHONPATH: ROOT } }));
    const options = { maxAttempts: 1, restartBudget: 10_000, backoffInitialMs: 1, backoffMaxMs: 1, pingEveryMs: 100 };
    const command = [PYTHON, "-m", "bridge_client.testing.hostile_worker"];
    await using([], { ...options, command }, async (bridge) => {
      for (const [name, count, request, then] of cases) {
        const call = bridge.embed(new Array(count).fill(name), { ...request, timeoutMs: PATIENCE_MS });
        const end = await call.then(
          ({ vectors }) => (vectors.every((vector) => vector[0] === 1 && vector.length === 8) ? "ok" : "other vectors"),
          (error) => error.code ?? error.kind ?? error.message,
        );
        assert.ok(then.includes(end), `${name}: ${end} instead of ${then}`);
      }
    });
  });

  for (const lines of [[], ["--stderr-no-newline"]]) {
    test(`a flood on standard error holds nothing up ${lines}`, async () => {
      let bytes = 0;
      const onStderr = (chunk) => (bytes += chunk.length);
      await using([...lines, "--stderr-flood=4194304"], { onStderr }, async (bridge) => {
        await assertEmbeds(bridge);
        await until("all is heard", () => bytes === 4194304);
      });
    });
  }

  test("prints before it is ready are forgiven", async () => {
    await using(["--garbage-before-ready=20"], {}, assertEmbeds);
    await using(["--garbage-before-ready=21"], { restartBudget: 1 }, (bridge) =>
      fails(bridge.embed(["a"]), "circuit_open"),
    );
  });

  test("a grandchild dies with its worker", { skip: IS_WINDOWS && WITHOUT_CHILDREN }, async () => {
    const pidFile = newFile();
    await using(once(`--grandchild=${pidFile}`, "--kill-after=0"), {}, async (bridge) => {
      await assertEmbeds(bridge);
      const pid = Number(readFileSync(pidFile, "utf8"));
      await until("it dies", () => !isAlive(pid));
    });
  });

  test("a grandchild that holds the pipes holds nothing up", async () => {
    const pidFile = newFile();
    const program =
      "import os, subprocess, sys; " +
      "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(3600)'], start_new_session=True); " +
      "open(sys.argv[1], 'w').write(str(child.pid)); os._exit(78)";
    await using([], { command: [PYTHON, "-c", program, pidFile] }, (bridge) => fails(bridge.info(), "start"));
    process.kill(Number(readFileSync(pidFile, "utf8")), "SIGKILL");
  });
});

/** Kill the worker again and again while many callers embed: every call succeeds, or dies with it. */
async function killUnderLoad(bridge, kills, callsBetween) {
  let isDone = false;
  let succeeded = 0;
  const callers = hundred.slice(0, 16).map(async (expected, number) => {
    while (!isDone) {
      try {
        const { vectors, dimension } = await bridge.embed([`text ${number}`]);
        if (dimension === 8) assert.deepEqual(vectors, [expected]);
        succeeded++;
      } catch (error) {
        if (error.kind !== "worker_died") throw error;
      }
    }
  });
  const killer = async () => {
    for (let kill = 0; kill < kills; kill++) {
      const before = succeeded;
      await until("calls succeed", () => succeeded >= before + callsBetween);
      await until("a worker is there", () => bridge.stats().isReady);
      process.kill(bridge.stats().pid, "SIGKILL");
      await until("it is replaced", () => bridge.stats().restarts > kill);
    }
    isDone = true;
  };
  await Promise.all([...callers, killer()]);
  await bridge.embed(["a"]);
}

describe("starts and restarts", { concurrency: 8 }, () => {
  for (const status of [2, 78, 126, 127]) {
    test(`a start that cannot succeed is tried once: ${status}`, () =>
      using([`--fail-start=${status}`], {}, async (bridge) => {
        const facts = { exitCode: status, stderrTail: "fake worker: told to fail" };
        await fails(bridge.embed(["a"]), "start", facts);
        await fails(bridge.info(), "start", facts);
        assert.equal(bridge.stats().restarts, 0);
      }));
  }

  test("a command that is not there is a start error", async () => {
    for (const command of [["/nowhere/embed-worker"], [ROOT], ["nul\0"]]) {
      await using([], { command }, async (bridge) => {
        await fails(bridge.embed(["a"]), "start");
        await fails(bridge.embed(["a"]), "start");
      });
    }
  });

  test("a working directory that is not there is named", () => {
    const cwd = join(folder, "nowhere");
    return using([], { cwd }, (bridge) => assert.rejects(bridge.embed(["a"]), { kind: "start", message: /no folder .*nowhere/ }));
  });

  test("the circuit opens when the budget is spent, and closes again", () => {
    const faults = ["--fail-start=1", "--processes=3", `--count-file=${newFile()}`];
    return using(faults, { restartBudget: 3, halfOpenAfterMs: 300 }, async (bridge) => {
      await assert.rejects(bridge.embed(["a"]), ({ kind, cause, retryAt }) => {
        assert.deepEqual([kind, cause.kind], ["circuit_open", "start"]);
        return retryAt instanceof Date;
      });
      assert.equal(bridge.stats().restarts, 2);
      await until("the fourth worker starts", () => bridge.stats().restarts === 3);
      await assertEmbeds(bridge);
    });
  });

  test("a worker that is not ready in time is replaced", () =>
    // Not while the process is made: that leaves its pipes to the console helper of Wine.
    using(["--start-delay=3600"], { startTimeoutMs: IS_WINDOWS ? 2000 : 50, restartBudget: 2 }, async (bridge) => {
      await assert.rejects(bridge.embed(["a"]), ({ kind, cause }) => {
        assert.deepEqual([kind, cause.kind], ["circuit_open", "start"]);
        assert.match(cause.message, /not ready/);
        return true;
      });
      assert.equal(bridge.stats().restarts, 1);
    }));

  test("another model after a restart is refused for good", () =>
    using(["--change-model", "--kill-after=1", `--count-file=${newFile()}`], {}, async (bridge) => {
      await assertEmbeds(bridge);
      await fails(bridge.embed(["a"]), "model_changed");
      await fails(bridge.embed(["a"]), "model_changed");
    }));

  test("another protocol is refused for good", () =>
    using(["--protocol=2"], {}, async (bridge) => {
      await fails(bridge.embed(["a"]), "protocol_mismatch");
      await fails(bridge.embed(["a"]), "protocol_mismatch");
    }));

  test("the worker does not see the host's secrets", async () => {
    process.env.EMBED_BRIDGE_TEST_SECRET = "hunter2";
    const program = "import os, sys; sys.stderr.write(repr(dict(os.environ))); sys.exit(78)";
    await using([], { command: [PYTHON, "-c", program], env: { WANTED: "yes" } }, (bridge) =>
      assert.rejects(bridge.info(), ({ stderrTail }) => {
        assert.doesNotMatch(stderrTail, /hunter2/);
        assert.match(stderrTail, /'WANTED': 'yes'/);
        return stderrTail.includes("'PATH'");
      }),
    );
  });
});

/** Run a program with a client in it; return its exit status, and whether its worker is gone. */
async function runHost(ending, faults = []) {
  const source = `
    import { EmbedBridge } from ${JSON.stringify(SOURCE)};
    const bridge = new EmbedBridge(${JSON.stringify({ command: [...FAKE, ...faults], env: { PYTHONPATH: ROOT } })});
    const { pid } = await bridge.info();
    console.log(pid);
    ${ending}`;
  const host = spawn(process.execPath, ["--input-type=module", "-e", source], { stdio: ["ignore", "pipe", "pipe"] });
  const output = { stdout: "", stderr: "" };
  for (const name of ["stdout", "stderr"]) host[name].on("data", (chunk) => (output[name] += chunk));
  const timer = setTimeout(() => host.kill("SIGKILL"), PATIENCE_MS);
  const [status, signal] = await onceEvent(host, "close");
  clearTimeout(timer);
  const [pid, ...told] = output.stdout.trim().split("\n");
  assert.ok(Number(pid) > 0, output.stderr);
  await until("the worker is gone", () => !isAlive(Number(pid)));
  return { ending: signal ?? status, told, stderr: output.stderr };
}

describe("the end", { concurrency: 8 }, () => {
  const HOUR = 3_600_000; // the rung that must not be needed
  for (const [stubborn, patience] of [
    [[], { drainMs: HOUR }],
    [["--ignore-eof"], { drainMs: 100, terminateMs: HOUR }],
    [["--ignore-eof", "--ignore-term"], { drainMs: 100, terminateMs: 100 }],
  ]) {
    test(`close reaps the worker and whatever it left ${stubborn}`, () => {
      const pidFile = newFile();
      const child = IS_WINDOWS ? [] : [`--grandchild=${pidFile}`]; // WITHOUT_CHILDREN
      return using([...stubborn, ...child], patience, async (bridge) => {
        const { pid } = await bridge.info();
        const [grandchild] = child.map(() => Number(readFileSync(pidFile, "utf8")));
        await Promise.all([bridge.close(), bridge.close()]);
        assert.throws(() => process.kill(pid, 0), { code: "ESRCH" }); // a zombie would be found
        if (grandchild) await until("the grandchild is gone", () => !isAlive(grandchild));
        await fails(bridge.embed(["a"]), "closed");
        await fails(bridge.ping(), "closed");
      });
    });
  }

  test("close lets the worker finish what it has", () =>
    // It answers one request at its end only.
    using(["--reorder=2", "--max-in-flight=1"], { drainMs: PATIENCE_MS }, async (bridge) => {
      await bridge.info();
      const calls = [bridge.embed(["text 0"]), bridge.embed(["text 1"])];
      const outcomes = Promise.allSettled(calls);
      await bridge.close();
      const [sent, waiting] = await outcomes;
      assert.deepEqual(sent.value.vectors, [hundred[0]]);
      assert.equal(waiting.reason.kind, "closed");
    }));

  test("close ends what the worker does not finish", () =>
    using(["--latency=3600"], QUICK, async (bridge) => {
      await bridge.info();
      const call = fails(bridge.embed(["a"]), "closed");
      await bridge.close();
      await call;
    }));

  test("close does not wait for a back-off, and calls the restart off", () =>
    using(["--fail-start=1"], { backoffInitialMs: 300 }, async (bridge) => {
      const call = fails(bridge.embed(["a"]), "closed");
      await until("it failed", () => bridge.stats().pid === undefined);
      await bridge.close();
      await call;
      await sleep(500); // what must not happen would have happened
      assert.equal(bridge.stats().restarts, 0);
    }));

  test("a client that was never used closes", () =>
    using([], {}, async (bridge) => {
      await bridge.close();
      await fails(bridge.embed(["a"]), "closed");
    }));

  for (const [ending, expected] of [
    ["", 0],
    ["process.exit(3)", 3],
    ["throw new Error('a bug of the host')", 1],
  ]) {
    test(`a host that ends takes a worker along that does not notice: ${ending}`, async () => {
      assert.equal((await runHost(ending, ["--ignore-eof", "--ignore-parent"])).ending, expected);
    });
  }

  test("an idle client does not keep its host alive", async () => {
    assert.deepEqual(await runHost(""), { ending: 0, told: [], stderr: "" });
  });

  test("a closed client leaves nothing behind", async () => {
    const ending = `
      await bridge.close();
      console.log(JSON.stringify(process.getActiveResourcesInfo().filter((name) => /Timeout|Process/.test(name))));
      console.log(process.listeners("exit").filter(({ name }) => name === "killRunning").length);`;
    assert.deepEqual((await runHost(ending)).told, ["[]", "0"]);
  });

  test("a pending call keeps its host alive", async () => {
    const ending = 'console.log((await bridge.embed(["a"])).count);';
    assert.deepEqual(await runHost(ending, ["--latency=0.5"]), { ending: 0, told: ["1"], stderr: "" });
  });

  for (const [ending, expected] of [
    ["process.exit(3)", 3],
    ["throw new Error('a bug of the host')", 1],
    ["process.kill(process.pid, 'SIGTERM'); await new Promise(() => {})", IS_WINDOWS ? 1 : "SIGTERM"],
    ["process.kill(process.pid, 'SIGKILL'); await new Promise(() => {})", IS_WINDOWS ? 1 : "SIGKILL"],
  ]) {
    test(`no worker outlives its host: ${ending}`, async () => {
      const busy = 'bridge.embed(["a"]).catch(() => {});';
      assert.equal((await runHost(busy + ending, ["--latency=3600"])).ending, expected);
    });
  }
});

// Alone, and not beside others whose workers it would spare.
const NO_GROUPS = { skip: IS_WINDOWS && "there are no groups of processes" };
test("a group is only signalled while its number cannot be somebody else's", NO_GROUPS, async (context) => {
  const signalled = [];
  const kill = process.kill.bind(process);
  let isReused = true;
  context.mock.method(process, "kill", (pid, name) => {
    signalled.push([pid, name]);
    return name === 0 && isReused ? true : kill(pid, name);
  });
  for (isReused of [true, false]) {
    signalled.length = 0;
    let pid;
    await using([], {}, async (bridge) => {
      ({ pid } = await bridge.info());
    });
    const groups = signalled.filter(([number]) => number === -pid);
    assert.deepEqual(groups, isReused ? [] : [[-pid, "SIGKILL"]]);
  }
});

test("the real worker embeds and survives kills", () =>
  using([], { command: [PYTHON, "-m", "embed_worker", "--supervised"], restartBudget: 100 }, async (bridge) => {
    const info = await bridge.info();
    assert.deepEqual([info.model, info.dimension, info.maxTokens], ["all-MiniLM-L6-v2", 384, 256]);
    assert.equal(info.pid, bridge.stats().pid);
    const texts = ["a cat sat on the mat", "a cat was sitting on the mat", "stock prices fell sharply"];
    const { vectors, fingerprint } = await bridge.embed(texts);
    const dot = (a, b) => a.reduce((sum, value, index) => sum + value * b[index], 0);
    assert.ok(Math.abs(dot(vectors[0], vectors[0]) - 1) < 1e-5);
    assert.ok(dot(vectors[0], vectors[1]) > 0.8 && dot(vectors[0], vectors[2]) < 0.3);
    const tooLong = bridge.embed(["short", "long ".repeat(400)], { truncate: false });
    await fails(tooLong, "request", { code: "input_too_long", index: 1 });
    await killUnderLoad(bridge, 2, 50);
    const again = await bridge.embed(texts.slice(0, 1));
    assert.equal(again.fingerprint, fingerprint);
    assert.ok(dot(again.vectors[0], vectors[0]) > 1 - 1e-5);
  }));
