"""Texts as messages of a chat: the language Jinja, with what transformers adds to it. Needs the extra `chat`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, ClassVar

from embed_worker.errors import InvalidInput, ModelError, brief
from embed_worker.model_files.plan import ChatPlan

_PROBES = ("0", "1 2 3 4")


def _alike(first: str, second: str) -> int:
    """Return how many characters two strings begin with alike."""
    return next((n for n, pair in enumerate(zip(first, second, strict=False)) if pair[0] != pair[1]), len(first))


class ChatTemplate:
    """A compiled template.

    Reference: transformers, `render_jinja_template`; sentence-transformers, `InputFormatter`.
    """

    def __init__(self, plan: ChatPlan, name: str) -> None:
        """Compile the template of the model of a name.

        Raises:
            ModelError: Jinja is not installed, or cannot compile it.
        """
        self._plan = plan
        try:
            from jinja2 import TemplateError
            from jinja2.sandbox import ImmutableSandboxedEnvironment
        except ImportError as error:
            raise ModelError(
                f"the model {name!r} puts every text into a chat template, which needs the extra `chat`: "
                "pip install 'embed-bridge[chat]'"
            ) from error

        def refuse(message: str) -> None:
            raise TemplateError(message)

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_generation_tag(), "jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = refuse
        if "strftime_now" in plan.template:
            raise ModelError(
                f"the model {name!r} has a chat template with today's date in it: its vectors change from day to day"
            )
        try:
            self._template = environment.from_string(plan.template)
        except TemplateError as error:
            raise ModelError(f"the model {name!r} has a chat template that cannot be used: {brief(error)}") from error

    def render_all(self, texts: Sequence[str], prompt: str) -> list[str]:
        """Render each text as the one message of a user, a prompt as the system's.

        Raises:
            InvalidInput: The template refuses a text; its index.
        """
        before = [self._message("system", prompt)] if prompt else []
        return [self._render([*before, self._message("user", text)], index) for index, text in enumerate(texts)]

    def around(self, prompt: str) -> tuple[str, str]:
        """Return what the template puts before and behind a text, as two short texts show it."""
        first, second = self.render_all(_PROBES, prompt)
        before = _alike(first, second)
        behind = _alike(first[before:][::-1], second[before:][::-1])
        return first[:before], first[len(first) - behind :]

    def _message(self, role: str, text: str) -> dict[str, Any]:
        return {"role": role, "content": [{"type": "text", "text": text}] if self._plan.is_structured else text}

    def _render(self, messages: list[dict[str, Any]], index: int) -> str:
        usual = {"tools": None, "documents": None, "add_generation_prompt": False}
        try:
            return str(self._template.render(messages=messages, **(usual | dict(self._plan.variables))))
        except Exception as error:  # a template may fail in any way that Python does
            problem = (
                f"cannot be put into the model's chat template: {type(error).__name__}"  # which may quote the text
            )
            raise InvalidInput(problem, index=index) from error


def _generation_tag() -> type:
    """Make the tag around what a model was trained to say: it leaves what stands inside as it is."""
    from jinja2 import nodes
    from jinja2.ext import Extension

    class Generation(Extension):  # type: ignore[misc, unused-ignore]
        tags: ClassVar[set[str]] = {"generation"}

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)

    return Generation


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)
