import { readFileSync } from "node:fs";
import process from "node:process";

/**
 * What a worker gets of its host's environment: what a locale, a home, a temporary folder, Windows, a linker and an
 * accelerator need. Everything else may be a secret.
 */
export const PASSED = [
  ...["PATH", "LANG", "LANGUAGE", "LC_*", "TZ", "HOME", "XDG_*", "TMPDIR", "TEMP", "TMP"],
  ...["USERPROFILE", "HOMEDRIVE", "HOMEPATH", "APPDATA", "LOCALAPPDATA", "PROGRAMDATA"],
  ...["SYSTEMROOT", "SYSTEMDRIVE", "WINDIR", "COMSPEC", "PATHEXT"],
  ...["NUMBER_OF_PROCESSORS", "PROCESSOR_ARCHITECTURE", "PROCESSOR_IDENTIFIER"],
  ...["LD_LIBRARY_PATH", "DYLD_*", "CUDA_*", "ORT_*", "OMP_*", "HF_HOME", "HF_HUB_CACHE", "EMBED_WORKER_*"],
];

/** Set unless the host or `env` says otherwise: the runtime would report to its makers. */
export const BY_DEFAULT = { ORT_DISABLE_TELEMETRY: "1" };

const PATTERN = new RegExp(`^(${PASSED.join("|").replaceAll("*", ".*")})$`, "s");

/**
 * Return what a worker gets. On Windows names have no case.
 * @param {NodeJS.ProcessEnv} host
 * @param {NodeJS.ProcessEnv} added
 */
export function environmentOf(host, added, isWindows = process.platform === "win32") {
  const key = (/** @type {string} */ name) => (isWindows ? name.toUpperCase() : name);
  /** @type {Map<string, [string, string | undefined]>} */
  const environment = new Map();
  const put = (/** @type {NodeJS.ProcessEnv} */ variables) => {
    for (const [name, value] of Object.entries(variables)) environment.set(key(name), [name, value]);
  };
  put(BY_DEFAULT);
  put(Object.fromEntries(Object.entries(host).filter(([name]) => PATTERN.test(key(name)))));
  put(added);
  return Object.fromEntries(environment.values());
}

/** @param {Record<string, string>} added */
export const environment = (added) => environmentOf(process.env, { EMBED_WORKER_PARENT: thisProcess(), ...added });

/**
 * Name this process to the worker, which watches it whatever launcher stands between the two; on Linux with the time of
 * its start, which tells a number apart that was given away again.
 */
function thisProcess() {
  if (process.platform !== "linux") return `${process.pid}`; // Wine's Windows could read it, too, and mean another process
  try {
    // Of the first thread, which is as old as the process: qemu makes up what a process reads of itself.
    const stat = readFileSync(`/proc/self/task/${process.pid}/stat`, "latin1");
    const start = stat.slice(stat.lastIndexOf(")") + 2).split(" ")[22 - 3]; // the first behind the name is the third
    return `${process.pid}:${start}`;
  } catch {
    return `${process.pid}`;
  }
}
