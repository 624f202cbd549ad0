export { EmbedBridge } from "./embed-bridge.js";
export { EmbedBridgeError } from "./errors.js";
