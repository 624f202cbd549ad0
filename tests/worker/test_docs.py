"""What the documents say is what the code does."""

from __future__ import annotations

import re

from embed_worker.protocol import METHODS, ErrorCode, ExitCode, Limits
from tests.worker.harness import ROOT

PROTOCOL = (ROOT / "docs" / "protocol.md").read_text("utf-8")


def table_after(heading: str) -> list[list[str]]:
    """Return the cells of the first table after a heading, without its head."""
    lines = PROTOCOL[PROTOCOL.index(heading) :].splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("|---"))
    rows = []
    for line in lines[start + 1 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return rows


def names_in(cell: str) -> list[str]:
    return re.findall(r"`(\w+)`", cell)


def test_the_page_lists_the_methods_of_the_code_with_their_parameters() -> None:
    documented = {}
    for methods, parameters, *_ in table_after("### Methods"):
        for method in names_in(methods):
            documented[method] = set(names_in(parameters.split("(")[0]))
    embed = {names_in(row[0])[0] for row in table_after("### `embed`")}
    documented["embed"] = documented["embed_batch"] = embed
    assert documented == {method: set(spec.parameters) for method, spec in METHODS.items()}


def test_the_page_says_which_parameters_of_embed_are_required() -> None:
    required = {names_in(row[0])[0] for row in table_after("### `embed`") if row[1] == "required"}
    assert required == {name for name, parameter in METHODS["embed"].parameters.items() if parameter.is_required}


def test_the_page_lists_the_error_codes_of_the_code() -> None:
    documented = {names_in(row[0])[0]: row[1] for row in table_after("### Error codes")}
    assert documented == {code.value: "yes" if code.retryable else "no" for code in ErrorCode}


def test_the_page_lists_the_exit_codes_of_the_code() -> None:
    section = PROTOCOL[PROTOCOL.index("### Exit codes") :].split("\n\n")[0]
    documented = {int(number) for number in re.findall(r"(?:^|· )(\d+) ", section, re.MULTILINE)}
    assert documented == {value for name, value in vars(ExitCode).items() if name.isupper()}


def test_the_page_states_the_default_limits() -> None:
    limits = Limits()
    assert f"default {limits.max_line_bytes // 2**20} MiB" in PROTOCOL
    assert f"`max_inputs` ({limits.max_inputs:,})" in PROTOCOL
    assert f"`max_text_bytes` ({limits.max_text_bytes // 2**20} MiB)" in PROTOCOL


def test_the_page_on_architecture_is_short_and_names_every_file() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    assert len(page.splitlines()) < 150
    for file in [*(ROOT / "embed_worker").glob("*.py"), *(ROOT / "embed_worker" / "model_files").glob("*.py")]:
        assert file.name == "__init__.py" or f"{file.name}`" in page, file.name


def test_decisions_are_numbered_and_short() -> None:
    page = (ROOT / "docs" / "decisions.md").read_text("utf-8")
    entries = re.split(r"^## ", page, flags=re.MULTILINE)[1:]
    assert [int(entry.split()[0]) for entry in entries] == list(range(1, len(entries) + 1))
    for entry in entries:
        assert len(entry.strip().splitlines()) <= 13, entry.splitlines()[0]


def test_the_links_of_the_readme_lead_somewhere() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", readme):
        assert (ROOT / target).exists(), target
    for path in re.findall(r"`((?:embed_worker|bridge_client|docs|models|tests|examples)/[\w./-]*)`", readme):
        assert (ROOT / path).exists(), path


def test_the_index_has_a_line_for_every_page() -> None:
    lines = (ROOT / "docs" / "README.md").read_text("utf-8").splitlines()
    listed = [match[1] for line in lines if (match := re.match(r"- \[.+?\]\((.+?)\): .+\.$", line))]
    assert len(listed) == len([line for line in lines if line.startswith("- ")])
    assert all((ROOT / "docs" / target).exists() for target in listed)
    assert {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"} <= set(listed)
