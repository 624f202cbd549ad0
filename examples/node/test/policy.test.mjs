// The policy file is shared by the clients of all languages: this one is held to it.

import assert from "node:assert/strict";
import { existsSync, readFileSync } from "node:fs";
import { describe, test } from "node:test";

import { LONGEST_DRAIN_MS } from "../src/dispatcher.js";
import * as ends from "../src/ends.js";
import { BY_DEFAULT, environmentOf, PASSED } from "../src/environment.js";
import * as health from "../src/health.js";
import * as job from "../src/job.js";
import { DOCUMENT_PROMPTS, promptOf, QUERY_PROMPTS, withDefaults } from "../src/options.js";
import * as restarts from "../src/restarts.js";
import * as supervisor from "../src/supervisor.js";
import * as wire from "../src/wire.js";
import * as worker from "../src/worker.js";

const FILE = new URL("../../../bridge_client/testing/conformance/policy.json", import.meta.url);
const OPTIONS = {
  restart_budget: "restartBudget",
  restart_forgive_s: "restartForgiveMs",
  backoff_initial_s: "backoffInitialMs",
  backoff_max_s: "backoffMaxMs",
  half_open_initial_s: "halfOpenAfterMs",
  half_open_max_s: "halfOpenMaxMs",
  request_timeout_s: "requestTimeoutMs",
  start_timeout_s: "startTimeoutMs",
  drain_s: "drainMs",
  terminate_s: "terminateMs",
  max_attempts: "maxAttempts",
  ping_every_s: "pingEveryMs",
  pong_timeout_s: "pongTimeoutMs",
  stuck_after_s: "stuckAfterMs",
};
const inMs = (name, value) => (name.endsWith("_s") ? 1000 * value : value);

describe("the policy", { skip: !existsSync(FILE) && "outside of its repository" }, () => {
  const policy = existsSync(FILE) ? JSON.parse(readFileSync(FILE, "utf8")) : {};
  const each = (section, check) => {
    assert.ok(policy[section].cases.length > 2);
    for (const one of policy[section].cases) check(one, one.name ?? JSON.stringify(one));
  };

  test("every number is the one of the policy", () => {
    const options = withDefaults({});
    const ours = {
      piece_tokens: job.PIECE_TOKENS,
      piece_bytes: job.PIECE_BYTES,
      bytes_per_token: job.BYTES_PER_TOKEN,
      special_tokens: job.SPECIAL_TOKENS,
      most_tokens: job.MOST_TOKENS,
      short_tokens: job.SHORT_TOKENS,
      window_requests: worker.WINDOW_PIECES,
      window_tokens: worker.WINDOW_TOKENS,
      window_bytes: worker.WINDOW_BYTES,
      max_answer_bytes: worker.MAX_ANSWER_BYTES,
      max_dimension: wire.MAX_DIMENSION,
      stderr_tail_bytes: worker.STDERR_TAIL_BYTES,
      nonsense_before_ready: supervisor.NONSENSE_BEFORE_READY,
      pipe_grace_s: worker.PIPE_GRACE_MS,
      pipe_lost_s: supervisor.PIPE_LOST_MS,
      longest_drain_s: LONGEST_DRAIN_MS,
      backoff_jitter: restarts.JITTER,
      healthy_s: restarts.HEALTHY_MS,
      recycle_every_s: restarts.RECYCLE_EVERY_MS,
      pong_misses: health.PONG_MISSES,
      slow_factor: health.SLOW_FACTOR,
      average_weight: health.AVERAGE_WEIGHT,
    };
    for (const [name, option] of Object.entries(OPTIONS)) ours[name] = options[option];
    const told = Object.entries(policy.numbers).map(([name, value]) => [name, inMs(name, value)]);
    assert.deepEqual(ours, Object.fromEntries(told));
    const limits = Object.entries(wire.LIMITS).map(([name, [, byDefault]]) => [name, byDefault]);
    assert.deepEqual(Object.fromEntries(limits), policy.default_limits);
  });

  test("the environment is the one of the policy", () => {
    assert.deepEqual(PASSED, policy.environment.passed);
    assert.deepEqual(BY_DEFAULT, policy.environment.by_default);
    each("environment", ({ host, option, passed, system }, name) => {
      assert.deepEqual(environmentOf(host, option, system === "windows"), passed, name);
    });
  });

  test("an end means what the policy says", () => {
    const sentences = {
      hung: ends.hung(""),
      broke_protocol: ends.brokeProtocol(""),
      start_timeout: ends.notStarted(""),
      model_changed: ends.modelChanged(""),
    };
    each("ends", ({ system, signal = null, status = null, killed_for: reason, cause, ...meaning }, name) => {
      const killedFor = reason && sentences[reason];
      assert.equal(killedFor === undefined, reason === undefined, name);
      const ended = ends.causeOf(status, signal, system === "windows");
      const { isPermanent = false, blamesInput = false, kind } = ends.meaningOf(ended, killedFor, true);
      assert.deepEqual({ is_permanent: isPermanent, blames_input: blamesInput }, meaning, name);
      if (cause === reason) assert.equal(kind, killedFor.kind, name);
      else assert.equal(ended, cause, name);
    });
  });

  test("restarts are those of the policy", () => {
    each("restarts", ({ numbers = {}, lives }, name) => {
      const given = Object.entries(numbers).map(([number, value]) => [OPTIONS[number], inMs(number, value)]);
      const decide = new restarts.Restarts(withDefaults(Object.fromEntries(given)));
      let now = 0;
      for (const [number, lived] of lives.entries()) {
        const at = (s) => (s === undefined ? undefined : now + 1000 * s);
        const life = {
          readySince: at(lived.ready_s),
          usefulSince: at(lived.useful_s),
          isRecycle: lived.is_recycle,
          isInvestigation: lived.is_investigation,
          isCharged: lived.is_charged,
        };
        now += 1000 * lived.gone_s;
        const { waitMs, isOpen } = decide.after(life, now, lived.jitter ?? 0);
        const wanted = isOpen ? lived.then.refuse_for_s : lived.then.restart_in_s;
        assert.ok(Math.abs(waitMs / 1000 - wanted) < 1e-6, `${name}: life ${number}: ${waitMs} ms, open: ${isOpen}`);
        now += waitMs;
      }
    });
  });

  test("hangs are those of the policy", () => {
    each("health", ({ events }, name) => {
      const record = new health.Health(0, withDefaults({}));
      for (const { at_s: atS, on, is_busy: isBusy = false, micro_batches: microBatches, then } of events) {
        const now = 1000 * atS;
        if (on === "work") record.workBegan(now);
        else if (on !== "check") record.received(now);
        if (on === "answer") record.embedded(now);
        if (on === "pong") record.ponged(now, microBatches, isBusy);
        if (on === "check") assert.equal(record.check(now, isBusy) ?? "nothing", then, `${name}: at ${atS} s`);
      }
    });
  });

  test("pieces are those of the policy", () => {
    each("pieces", ({ input_bytes: sizes = [], input_repeated: repeated = sizes.map((size) => [1, size]), pieces }, name) => {
      const inputs = repeated.flatMap(([count, size]) => new Array(count).fill("x".repeat(size)));
      const cut = new job.TokenizeJob({}, inputs, {}, new Map()).pieces();
      assert.deepEqual(
        cut.map(({ start, stop }) => [start, stop]),
        pieces,
        name,
      );
    });
  });

  test("commands are those of the policy", () => {
    each("commands", ({ given, started }) => assert.deepEqual(withDefaults({ command: given }).command, started));
  });

  test("prompts are those of the policy", () => {
    const wanted = (promptName) => (promptName === null ? { prompt: "" } : { promptName });
    each("prompts", ({ prompts, query, document }, name) => {
      assert.deepEqual(promptOf(prompts, QUERY_PROMPTS), wanted(query), name);
      assert.deepEqual(promptOf(prompts, DOCUMENT_PROMPTS), wanted(document), name);
    });
  });
});
