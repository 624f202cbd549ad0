"""The tables and the picture of the benchmark, from the results that are in the repository.

`python -m tests.benchmarks.report` rewrites them: in the pages whatever stands between `<!-- benchmark: KIND FILE -->`
and `<!-- end of benchmark -->`, and docs/images/benchmark.svg. KIND is `short`, `full`, `ratios` or `cores`, of results
of `tests.benchmarks.compare`, or `worker`, of `tests.benchmarks`; FILE lies in docs/benchmarks/. A test compares, so
that figures and results cannot drift apart.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "benchmarks"
PAGES = (ROOT / "README.md", ROOT / "docs" / "benchmarks.md", ROOT / "docs" / "scale.md")
PICTURE = ROOT / "docs" / "images" / "benchmark.svg"
DEFAULT = RESULTS / "all-MiniLM-L6-v2.json"
_OURS = "embed-worker"
_BLOCK = re.compile(r"(<!-- benchmark: (\w+) (\S+) -->\n).*?(<!-- end of benchmark -->)", re.DOTALL)

Results = dict[str, Any]
Row = dict[str, Any]


def main() -> None:
    for page in PAGES:
        page.write_text(rewritten(page.read_text("utf-8")), "utf-8")
    PICTURE.write_text(picture(read(DEFAULT)), "utf-8")


def read(file: Path) -> Results:
    results: Results = json.loads(file.read_text("utf-8"))
    return results


def rewritten(page: str) -> str:
    """Return the page with every block made anew."""

    def block(found: re.Match[str]) -> str:
        begin, kind, file, end = found.groups()
        return f"{begin}{_KINDS[kind](read(RESULTS / file))}\n{end}"

    return _BLOCK.sub(block, page)


def fastest_first(results: Results) -> list[Row]:
    """Order contestants by the product of their speeds on all corpora."""

    def product(row: Row) -> float:
        speed = 1.0
        for name in results["corpora"]:
            speed *= row["texts_per_s"][name]["median"]
        return speed

    return sorted(results["contestants"], key=product, reverse=True)


def short_table(results: Results) -> str:
    """For README: medians."""
    names = list(results["corpora"])
    lines = [
        f"{conditions(results)}",
        "",
        f"| texts/s: | {' | '.join(names)} | one text, p50 / p95 | start | memory |",
        f"|---|{'---|' * (len(names) + 3)}",
    ]
    for row in fastest_first(results):
        speeds = " | ".join(f"{row['texts_per_s'][name]['median']:,.0f}" for name in names)
        single = row["one_text_ms"]
        lines.append(
            f"| {_name(row)} | {speeds} | {single['p50']:.1f} / {single['p95']:.1f} ms"
            f" | {row['start_s']['median']:.1f} s | {row['peak_mb']:,} MB |"
        )
    return "\n".join([*lines, *_left_out(results)])


def full_table(results: Results) -> str:
    """Medians and quartiles, how each is used, its versions, and how near its vectors are to ours."""
    names = list(results["corpora"])
    lines = [
        f"{conditions(results)}",
        "",
        f"| | {' | '.join(f'{name}, texts/s' for name in names)} | one text, p50 / p95, ms | start, s | peak, MB |",
        f"|---|{'---|' * (len(names) + 3)}",
    ]
    for row in fastest_first(results):
        speeds = " | ".join(_spread(row["texts_per_s"][name], 0) for name in names)
        single = row["one_text_ms"]
        p50 = _spread({**single["p50_of_rounds"], "median": single["p50"]}, 2)
        start = _spread(row["start_s"], 2)
        lines.append(f"| {_name(row)} | {speeds} | {p50} / {single['p95']:.2f} | {start} | {row['peak_mb']:,} |")
    lines += [
        "",
        "| | how it is used | what it told of itself | smallest cosine to embed-worker |",
        "|---|---|---|---|",
    ]
    for row in results["contestants"]:
        facts = ", ".join(f"{name} {value}" for name, value in row["facts"].items())
        lines.append(f"| {_name(row)} | {row['arrangement']} | {facts} | {row['min_cosine']:.6f} |")
    for key, counts in results.get("scaling", {}).items():
        lines.append(
            f"\n{key}, texts/s by cores: {', '.join(f'{count}: {speed:,.0f}' for count, speed in counts.items())}"
        )
    return "\n".join([*lines, *_left_out(results)])


def ratio_table(results: Results) -> str:
    """What each of ours is of a direct call: speeds divided, waiting subtracted."""
    rows = {row["key"]: row for row in results["contestants"]}
    names = list(results["corpora"])
    lines = [
        f"{conditions(results)}",
        "",
        f"| | {' | '.join(names)} | one text, p50, more | peak memory |",
        f"|---|{'---|' * (len(names) + 2)}",
    ]
    for key, direct, label in (
        (_OURS, "onnxruntime", "embed-worker ÷ onnxruntime called directly"),
        (f"{_OURS}-openvino", "openvino", "embed-worker, OpenVINO ÷ OpenVINO called directly"),
        (f"{_OURS}-openvino", _OURS, "embed-worker, OpenVINO ÷ embed-worker"),
    ):
        if key not in rows or direct not in rows:
            continue
        one, other = rows[key], rows[direct]
        ratios = [one["texts_per_s"][name]["median"] / other["texts_per_s"][name]["median"] for name in names]
        more = one["one_text_ms"]["p50"] - other["one_text_ms"]["p50"]
        lines.append(
            f"| {label} | {' | '.join(f'{ratio:.2f}' for ratio in ratios)} | {more:+.2f} ms"
            f" | {one['peak_mb']:,} / {other['peak_mb']:,} MB |"
        )
    return "\n".join([*lines, *_left_out(results)])


def cores_table(results: Results) -> str:
    """What one core gives of two corpora, and how long corpora of some sizes take it, or many."""
    (ours,) = (row for row in results["contestants"] if row["key"] == _OURS)
    names, cores = list(results["corpora"])[:2], results["machine"]["cores"]
    speeds = [ours["texts_per_s"][name]["median"] for name in names]
    each = [speed / cores for speed in speeds]
    both = " and ".join(f"{speed:,.0f} {name}" for speed, name in zip(speeds, names, strict=True))
    one = " or ".join(f"{speed:,.0f} {name}" for speed, name in zip(each, names, strict=True))
    lines = [
        f"{conditions(results)}",
        "",
        f"embed-worker gave {both} texts a second. A lane is a core, so one core gives **{one} texts a second**.",
        "",
        f"| rows | one core, {' / '.join(names)} | 16 cores | 20 machines of 16 cores |",
        "|---|---|---|---|",
    ]
    for rows, name in ((10**6, "1 M"), (10**8, "100 M"), (10**10, "10 G")):
        cells = (" / ".join(_duration(rows / speed / cores) for speed in each) for cores in (1, 16, 320))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.0f} {unit}"
    return f"{seconds:,.0f} seconds"


def worker_table(results: Results) -> str:
    """The worker by itself, and beside the runtime called directly."""
    latency, start, memory = results["latency"], results["start"], results["memory"]
    ours, direct = latency["worker"], latency["direct"]
    shares = [f"{row['share_of_bulk']:.2f}" for name, row in results["concurrency"].items() if name != "bulk"]
    first, then = (name for name in memory if name.startswith("after_"))
    texts = [f"{int(name.split('_')[1]):,}" for name in (first, then)]
    sizes = "; ".join(f"{memory[name]:.0f}" for name in ("at_start_mb", first, then))
    rows = [
        (
            "one short text alone, p50 / p95",
            f"{ours['p50']:.1f} / {ours['p95']:.1f} ms; called directly {direct['p50']:.1f} / {direct['p95']:.1f} ms",
        ),
        (
            "a query while a request of 10,000 texts is admitted and runs, p95",
            f"{results['load']['under_load']['p95']:.0f} ms",
        ),
        ("64 single-text requests at a time ÷ bulk; 1,000 at once ÷ bulk", "; ".join(shares)),
        (
            "from spawn to the answer of `info`",
            f"{start['worker_s']:.2f} s, {start['ratio']:.2f} × a bare process that loads the same files",
        ),
        (f"resident memory at the start; after {texts[0]} mixed texts; after {texts[1]}", f"{sizes} MB"),
        ("an idle worker", f"{results['idle']['share_of_a_core']:.2%} of a core"),
        (
            "`embed-worker embed` ÷ the same rows through the pipe",
            f"{results['embed']['vs_pipe']:.2f} ({results['embed']['rows']:,} rows, both starts included)",
        ),
    ]
    about = f"{results['machine']}, Python {results['python']}, onnxruntime {results['onnxruntime']}"
    return "\n".join([f"{about}:", "", "| | |", "|---|---|", *(f"| {what} | {figure} |" for what, figure in rows)])


_KINDS: dict[str, Callable[[Results], str]] = {
    "short": short_table,
    "full": full_table,
    "ratios": ratio_table,
    "cores": cores_table,
    "worker": worker_table,
}


def conditions(results: Results) -> str:
    """Return what the figures are figures of, in sentences."""
    machine, load = results["machine"], results["load"]
    # Compared as sets of the names that Linux gives.
    has = set(machine["instructions"])
    without = [name for flag, name in (("avx512f", "AVX-512"), ("avx512_bf16", "bfloat16")) if flag not in has]
    lacks = f" (without {' and '.join(without)})" if "avx2" in has and without else ""
    corpora = ", ".join(
        f"{corpus['texts']} {name} of {corpus['tokens']['least']} to {corpus['tokens']['most']} tokens"
        for name, corpus in results["corpora"].items()
    )
    low, high = min(load["averages"]), max(load["averages"])
    busy = f"load averages {low} to {high}, others took {load['cores_taken_by_others']} cores during a turn"
    return (
        f"{results['model']}, {machine['cores']} cores of an {machine['processor']}{lacks}, {results['date']}."
        f" Texts: {corpora}. Medians of {results['rounds']} rounds, in each of which all take their turns; {busy}"
        f" (niceness {machine['niceness']})."
    )


def _left_out(results: Results) -> list[str]:
    if not results["left_out"]:
        return []
    reasons = "; ".join(f"{name} ({reason})" for name, reason in results["left_out"].items())
    return ["", f"Left out: {reasons}."]


def _name(row: Row) -> str:
    return f"**{row['name']}**" if row["key"].startswith(_OURS) else str(row["name"])


def _spread(figure: dict[str, float], digits: int) -> str:
    middle, low, high = (f"{figure[name]:,.{digits}f}" for name in ("median", "q1", "q3"))
    return f"{middle} ({low}–{high})"


# The picture: a panel for each corpus and one for a text alone, a bar for each contestant, legible on light and dark.
_LABELS, _PANEL, _GAP, _BAR, _TOP = 260, 150, 24, 22, 46
_STYLE = """
text { font: 12px system-ui, sans-serif; fill: #24292f }
.head { font-weight: 600 }
.note { fill: #57606a; font-size: 11px }
.bar { fill: #8c959f }
.ours { fill: #0969da }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 }
  .note { fill: #9198a1 }
  .bar { fill: #6e7681 }
  .ours { fill: #4493f8 }
}"""


def picture(results: Results) -> str:
    """Draw the results as SVG."""
    rows = fastest_first(results)
    panels: list[tuple[str, list[float], int]] = [
        (f"{name}, texts/s", [row["texts_per_s"][name]["median"] for row in rows], 0) for name in results["corpora"]
    ]
    panels.append(("one text, ms (less is better)", [row["one_text_ms"]["p50"] for row in rows], 1))
    width = _LABELS + len(panels) * (_PANEL + _GAP) + 30
    height = _TOP + len(rows) * _BAR + 30
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">',
        f"<title>Throughput and latency on {escape(results['model'])}</title>",
        f"<style>{_STYLE}</style>",
    ]
    for number, row in enumerate(rows):
        parts.append(_text(_LABELS - 10, _TOP + number * _BAR + 15, row["name"], anchor="end", style=_emphasis(row)))
    for number, (title, values, digits) in enumerate(panels):
        left = _LABELS + number * (_PANEL + _GAP)
        parts.append(_text(left, _TOP - 14, title, style="head"))
        parts += _bars(left, rows, values, digits)
    machine = results["machine"]
    note = f"{results['model']}, {machine['cores']} cores of an {machine['processor']}, {results['date']}: medians"
    parts += [_text(_LABELS, height - 8, note, style="note"), "</svg>", ""]
    return "\n".join(parts)


def _bars(left: int, rows: Sequence[Row], values: Sequence[float], digits: int) -> list[str]:
    parts = []
    scale = (_PANEL - 44) / max(values)
    for number, (row, value) in enumerate(zip(rows, values, strict=True)):
        top, length = _TOP + number * _BAR, max(1.0, value * scale)
        style = "ours" if row["key"].startswith(_OURS) else "bar"
        parts.append(
            f'<rect class="{style}" x="{left}" y="{top + 3}" width="{length:.1f}" height="{_BAR - 6}" rx="2"/>'
        )
        parts.append(_text(left + round(length) + 5, top + 15, f"{value:,.{digits}f}", style=_emphasis(row)))
    return parts


def _emphasis(row: Row) -> str:
    return "head" if row["key"].startswith(_OURS) else ""


def _text(x: int, y: int, text: str, *, anchor: str = "start", style: str = "") -> str:
    kind = f' class="{style}"' if style else ""
    return f'<text{kind} x="{x}" y="{y}" text-anchor="{anchor}">{escape(text)}</text>'


if __name__ == "__main__":
    main()
