/**
 * Turn ranges of code points of a text into ranges of its UTF-16 units; index.d.ts describes it.
 * @param {string} text
 * @param {readonly (readonly [number, number])[]} offsets
 * @returns {[number, number][]}
 */
export function utf16Offsets(text, offsets) {
  /** @type {number[]} */
  const starts = []; // of each code point, and the end
  for (let unit = 0; unit < text.length; unit += /** @type {number} */ (text.codePointAt(unit)) > 0xffff ? 2 : 1) {
    starts.push(unit);
  }
  const at = (/** @type {number} */ point) => starts[point] ?? text.length;
  return offsets.map(([start, end]) => [at(start), at(end)]);
}
