import process from "node:process";

const PERMANENT_STATUSES = [2, 78, 126, 127]; // usage, configuration, and a shell that did not find it
const CRASH_SIGNALS = ["SIGSEGV", "SIGABRT", "SIGBUS", "SIGILL", "SIGFPE"];
const OUTSIDE_SIGNALS = ["SIGKILL", "SIGTERM"];
const STATUSES = new Map([
  [70, "crashed"],
  [75, "out_of_memory"],
  [79, "recycled"],
]);

// Windows knows no signals. abort() ends with 3, NTSTATUS errors are access violations, stack overflows and the like, and
// from outside come Ctrl-C, a logoff, and TerminateProcess with the numbers that people pass to it.
const WINDOWS_ABORT = 3;
const WINDOWS_OUTSIDE = [1, 9, 15, 0xc000013a, 0xc0000142];
const isNtError = (/** @type {number} */ status) => status >= 0xc0000000 && status < 0xd0000000;

/**
 * Tell why a process ended: crashed, killed (from outside), out_of_memory, recycled, unusable or exited.
 * @param {number | null} status
 * @param {string | null} signal
 * @param {boolean} isWindows
 */
export function causeOf(status, signal, isWindows = process.platform === "win32") {
  if (signal !== null) {
    // libuv tells on Windows, too, which signal it was asked to end a process with.
    if (OUTSIDE_SIGNALS.includes(signal)) return "killed";
    return CRASH_SIGNALS.includes(signal) ? "crashed" : "exited";
  }
  if (status === null) return "unknown";
  if (PERMANENT_STATUSES.includes(status)) return "unusable";
  if (isWindows && WINDOWS_OUTSIDE.includes(status)) return "killed";
  if (isWindows && (status === WINDOWS_ABORT || isNtError(status))) return "crashed";
  return STATUSES.get(status) ?? "exited";
}

/**
 * Why the client killed a worker: the kind of the error, one clause, and what follows.
 * @typedef {object} Sentence
 * @property {import("../index.js").ErrorKind} kind
 * @property {string} [detail]
 * @property {boolean} [isPermanent] another start cannot help
 * @property {boolean} [blamesInput] what was being computed can be the reason
 */

/** @type {(detail: string) => Sentence} */
export const hung = (detail) => ({ kind: "worker_hung", detail, blamesInput: true });
/** @type {(why: string) => Sentence} */
export const brokeProtocol = (why) => ({
  kind: "worker_died",
  detail: `it was killed because it broke the protocol: ${why}`,
});
/** @type {(detail: string) => Sentence} */
export const notStarted = (detail) => ({ kind: "start", detail });
/** @type {(detail: string) => Sentence} */
export const modelChanged = (detail) => ({ kind: "model_changed", detail, isPermanent: true });

/**
 * Tell what an end means; what the worker was killed for counts unless it had ended in its own way before.
 * @param {string} cause
 * @param {Sentence | undefined} killedFor
 * @param {boolean} wasReady
 * @returns {Sentence}
 */
export function meaningOf(cause, killedFor, wasReady) {
  if (killedFor && (cause === "killed" || cause === "unknown")) return killedFor;
  return {
    kind: wasReady ? "worker_died" : "start",
    isPermanent: cause === "unusable",
    blamesInput: cause === "crashed",
  };
}
