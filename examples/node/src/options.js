const DEFAULTS = {
  command: ["embed-worker", "--supervised"],
  env: {},
  cwd: undefined,
  onStderr: undefined,
  startTimeoutMs: 60_000,
  requestTimeoutMs: 120_000,
  maxAttempts: 3,
  restartBudget: 5,
  restartForgiveMs: 60_000,
  backoffInitialMs: 200,
  backoffMaxMs: 30_000,
  halfOpenAfterMs: 60_000,
  pingEveryMs: 5_000,
  pongTimeoutMs: 10_000,
  stuckAfterMs: 60_000,
  drainMs: 5_000,
  terminateMs: 2_000,
};

/** Check a host's options and fill in the defaults; index.d.ts describes each. */
export function withDefaults(given) {
  const options = { ...DEFAULTS };
  for (const [name, value] of Object.entries(given)) {
    if (!Object.hasOwn(DEFAULTS, name)) throw new TypeError(`there is no option ${name}`);
    if (value === undefined) continue;
    if (typeof DEFAULTS[name] === "number" && !(typeof value === "number" && value > 0)) {
      throw new TypeError(`${name} must be a number above 0`);
    }
    options[name] = value;
  }
  const { command } = options;
  if (!Array.isArray(command) || command.length === 0 || !command.every((word) => typeof word === "string")) {
    throw new TypeError("command must be a list of strings: no shell reads it");
  }
  return options;
}

const PASSED = /^(PATH|HOME|LANG|TZ|TMPDIR|TEMP|TMP|SYSTEMROOT|LC_.*|OMP_.*|ORT_.*|EMBED_WORKER_.*)$/i;

/** Return what the worker gets of the host's environment, never its passwords, and what was set for it. */
export function environment(added) {
  return { ...Object.fromEntries(Object.entries(process.env).filter(([name]) => PASSED.test(name))), ...added };
}

/** What a call of `embed` may ask for: its name on the wire, and its type. */
const PARAMETERS = {
  model: ["model", "string"],
  promptName: ["prompt_name", "string"],
  prompt: ["prompt", "string"],
  dimensions: ["dimensions", "number"],
  normalize: ["normalize", "boolean"],
  truncate: ["truncate", "boolean"],
};

/** Check what a call asks for, and name it as the wire does. */
export function parametersOf(wanted) {
  const parameters = {};
  for (const [name, value] of Object.entries(wanted)) {
    const [wireName, type] = Object.hasOwn(PARAMETERS, name) ? PARAMETERS[name] : [];
    if (!wireName) throw new TypeError(`embed has no option ${name}`);
    if (value === undefined) continue;
    if (typeof value !== type || Number.isNaN(value)) throw new TypeError(`${name} must be a ${type}`);
    parameters[wireName] = value;
  }
  return parameters;
}
