/** @import * as Declared from "../index.js" */
import { checkedInputs } from "./job.js";
import {
  DOCUMENT_PROMPTS,
  embedParametersOf,
  promptOf,
  QUERY_PROMPTS,
  tokenizeParametersOf,
  withDefaults,
} from "./options.js";
import { Supervisor } from "./supervisor.js";

const BLOCK_INPUTS = 256;
const BLOCKS_AHEAD = 16; // of `embedIter`: 4,096 inputs, which the worker sorts by length

/**
 * What a host calls: a thin face, `Supervisor` does the work. index.d.ts describes it.
 * @implements {Declared.EmbedBridge}
 */
export class EmbedBridge {
  #supervisor;

  /** @param {Declared.EmbedBridgeOptions} options */
  constructor(options = {}) {
    this.#supervisor = new Supervisor(withDefaults(options));
  }

  /**
   * @param {readonly string[]} inputs
   * @param {Declared.EmbedOptions<any>} options
   */
  async embed(inputs, { signal, timeoutMs, ...wanted } = {}) {
    return this.#supervisor.dispatcher.embed(checkedInputs(inputs), embedParametersOf(wanted), { signal, timeoutMs });
  }

  /**
   * @param {readonly string[]} inputs
   * @param {Declared.TokenizeOptions} options
   */
  async tokenize(inputs, { signal, timeoutMs, ...wanted } = {}) {
    const parameters = tokenizeParametersOf(wanted);
    return this.#supervisor.dispatcher.tokenize(checkedInputs(inputs), parameters, { signal, timeoutMs });
  }

  /**
   * @param {readonly string[]} inputs
   * @param {Declared.PromptedOptions<any>} options
   */
  async embedQuery(inputs, options = {}) {
    return this.#embedPrompted(checkedInputs(inputs), options, QUERY_PROMPTS);
  }

  /**
   * @param {readonly string[]} inputs
   * @param {Declared.PromptedOptions<any>} options
   */
  async embedDocuments(inputs, options = {}) {
    return this.#embedPrompted(checkedInputs(inputs), options, DOCUMENT_PROMPTS);
  }

  /**
   * @param {readonly string[]} inputs
   * @param {Declared.PromptedOptions<any>} options
   * @param {readonly string[]} names
   */
  async #embedPrompted(inputs, { signal, timeoutMs, ...wanted }, names) {
    for (const name of ["prompt", "promptName"]) {
      if (Object.hasOwn(wanted, name)) throw new TypeError(`${name} beside the prompt of the method`);
    }
    const { parameters } = embedParametersOf(wanted);
    const startedAt = performance.now();
    const { prompts } = await this.#supervisor.dispatcher.info(parameters.model, { signal, timeoutMs });
    const prompted = embedParametersOf({ ...wanted, ...promptOf(prompts, names) });
    const leftMs = timeoutMs === undefined ? undefined : Math.max(0, timeoutMs - (performance.now() - startedAt));
    return this.#supervisor.dispatcher.embed(inputs, prompted, { signal, timeoutMs: leftMs });
  }

  /**
   * @param {Iterable<string> | AsyncIterable<string>} inputs
   * @param {Declared.EmbedIterOptions<any>} options
   */
  async *embedIter(inputs, { blockInputs = BLOCK_INPUTS, signal, ...options } = {}) {
    if (typeof inputs === "string") throw new TypeError("inputs must be many texts: this is one");
    if (!(Number.isSafeInteger(blockInputs) && blockInputs > 0)) {
      throw new TypeError("blockInputs must be an integer above 0");
    }
    const left = new AbortController();
    const both = signal ? AbortSignal.any([signal, left.signal]) : left.signal;
    /** @type {Promise<Declared.Embeddings<any>>[]} */
    const ahead = [];
    try {
      for await (const block of blocksOf(inputs, blockInputs)) {
        const call = this.embed(block, { ...options, signal: both });
        call.catch(() => {}); // it is heard when its turn comes, or not at all
        ahead.push(call);
        if (ahead.length > BLOCKS_AHEAD) yield await /** @type {Promise<Declared.Embeddings<any>>} */ (ahead.shift());
      }
      for (const call of ahead) yield await call;
    } finally {
      left.abort();
    }
  }

  /** @param {Declared.InfoOptions} options */
  async info({ model, ...waiting } = {}) {
    return this.#supervisor.dispatcher.info(model, waiting);
  }

  /** @param {Declared.CallOptions} options */
  async ping(options = {}) {
    return this.#supervisor.dispatcher.ping(options);
  }

  stats() {
    return this.#supervisor.stats();
  }

  close() {
    return this.#supervisor.close();
  }

  async [Symbol.asyncDispose]() {
    await this.close();
  }
}

/**
 * @param {Iterable<string> | AsyncIterable<string>} inputs
 * @param {number} size
 */
async function* blocksOf(inputs, size) {
  /** @type {string[]} */
  let block = [];
  for await (const input of inputs) {
    block.push(input);
    if (block.length === size) {
      yield block;
      block = [];
    }
  }
  if (block.length > 0) yield block;
}
