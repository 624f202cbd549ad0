// What a user gets and writes: the package's files, and a program in TypeScript.

import assert from "node:assert/strict";
import { execFileSync, spawnSync } from "node:child_process";
import { existsSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

const PACKAGE = fileURLToPath(new URL("..", import.meta.url));
const ROOT = fileURLToPath(new URL("../../..", import.meta.url));
const PYTHON = process.env.EMBED_BRIDGE_PYTHON || "python3";
const TSC = `${PACKAGE}node_modules/typescript/bin/tsc`;

// On Windows npm is a script of the shell's; and a Node may come without it.
const npm = (command) => spawnSync(`npm ${command}`, { cwd: PACKAGE, encoding: "utf8", shell: true });
const skip = npm("--version").status !== 0 && "npm is not installed";

test("the package holds its types, its licence and its page", { skip }, () => {
  const told = npm("pack --dry-run --json --offline").stdout;
  const files = JSON.parse(told)[0].files.map(({ path }) => path);
  for (const file of ["LICENSE", "README.md", "index.d.ts", "package.json", "src/index.js"]) {
    assert.ok(files.includes(file), file);
  }
  assert.deepEqual(
    files.filter((file) => /^(test|node_modules|conformance)/.test(file)),
    [],
  );
});

test("a strict program in TypeScript runs", { skip: !existsSync(TSC) && "no TypeScript: npm ci" }, async (context) => {
  const { default: ts } = await import("typescript"); // `npm run types` checks the program
  const source = readFileSync(`${PACKAGE}typed/user-program.ts`, "utf8");
  const compilerOptions = { module: ts.ModuleKind.ESNext, target: ts.ScriptTarget.ES2022 };
  const program = `${PACKAGE}typed/.user-program-${process.pid}.js`; // inside, where the package can be named
  context.after(() => rmSync(program));
  writeFileSync(program, ts.transpileModule(source, { compilerOptions }).outputText);
  const fake = JSON.stringify([PYTHON, "-m", "bridge_client.testing.fake_worker"]);
  const told = execFileSync(process.execPath, [program, fake, ROOT], { encoding: "utf8" });
  assert.deepEqual(JSON.parse(told), [8, 4, 2, 8, 3, "request", 0, 8, 1, [5], ["a", "😀", "b"]]);
});
