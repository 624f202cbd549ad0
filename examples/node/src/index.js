export { EmbedBridge } from "./embed-bridge.js";
export { EmbedBridgeError } from "./errors.js";
export { utf16Offsets } from "./offsets.js";
