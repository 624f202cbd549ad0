// transformers.js on the same ONNX file, as a contestant of `python -m tests.benchmarks.compare`: the line protocol of
// tests/benchmarks/peers/serve.py. It has no batching of its own; the variant is the size of the batches it is given.
import { readFileSync } from "node:fs";
import { dirname, basename } from "node:path";
import { createInterface } from "node:readline";
import { env, pipeline } from "@huggingface/transformers";

const settings = JSON.parse(process.argv[2]);
const batch = Number(settings.variant);
env.allowRemoteModels = false;
env.localModelPath = dirname(settings.model);
const extract = await pipeline("feature-extraction", basename(settings.model), {
  device: "cpu",
  dtype: "fp32",
  session_options: { intraOpNumThreads: settings.threads },
});
const manifest = new URL("node_modules/@huggingface/transformers/package.json", import.meta.url);
const versions = { "transformers.js": JSON.parse(readFileSync(manifest)).version, node: process.versions.node };

async function embed(texts) {
  const pieces = [];
  for (let start = 0; start < texts.length; start += batch) {
    const output = await extract(texts.slice(start, start + batch), { pooling: settings.pooling, normalize: true });
    pieces.push(Buffer.from(output.data.buffer, output.data.byteOffset, output.data.byteLength));
  }
  return Buffer.concat(pieces);
}

for await (const line of createInterface({ input: process.stdin })) {
  const asked = JSON.parse(line);
  const seconds = [];
  const pieces = [];
  for (const texts of asked.one_by_one ? asked.inputs.map((text) => [text]) : [asked.inputs]) {
    const started = performance.now();
    pieces.push(await embed(texts));
    seconds.push((performance.now() - started) / 1000);
  }
  const answer = { seconds, versions };
  if (asked.vectors) answer.vectors = Buffer.concat(pieces).toString("base64");
  process.stdout.write(JSON.stringify(answer) + "\n");
}
