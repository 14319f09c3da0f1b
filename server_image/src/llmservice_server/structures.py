"""Limits the structures that requests may demand: JSON schema, regex, list of choices or grammar.

The engine compiles the structures of all clients in a few threads. It does not stop compiling when
the client disconnects.
"""

import copy
import json
import re
from typing import Any

from llmservice_server.errors import was_raised_in

_MAX_BYTES = 128 * 1024
"""Maximum length of a structure in characters. It is an estimate: the schemas of a hundred tools
take half of it."""

_MAX_CHOICES = 4096
_MAX_PROPERTIES = 512
"""Maximum number of properties of one object. The time to compile grows with the square of this
number."""

_MAX_REPETITION = 100_000
"""Maximum value of minItems and similar limits, which some compilers unroll."""

_MAX_LENGTHS = 32
"""Maximum number of different limits on the lengths of texts. The compiler takes up to a second for
each limit, and combining hundreds of them takes gigabytes of memory."""

_MAX_RULES = 1024
"""Maximum number of rules of a grammar. The time to compile grows with the square of the length of
a chain of rules."""

_REPETITION = re.compile(r"\{\d+(?:,\d*)?\}")
"""Repetition in a pattern, such as {1,9}, which also limits a length."""

_PLACE_IN_THE_COMPILER = re.compile(r"\[\d\d:\d\d:\d\d\] \S+:\d+: ")
"""Time and source line at the beginning of xgrammar's error texts."""

_REPETITIONS = ("maxItems", "maxLength", "maxProperties", "minItems", "minLength", "minProperties")


def why_too_large(structure: Any) -> str | None:
    """Return the message for the client; None when the structure is within all limits.

    `structure` is vLLM's StructuredOutputsParams.
    """
    choices = getattr(structure, "choice", None) or ()
    if len(choices) > _MAX_CHOICES:
        return f"the structure has {len(choices)} choices; it may have at most {_MAX_CHOICES}"
    schema = getattr(structure, "json", None)
    parts = [getattr(structure, name, None) for name in ("regex", "grammar", "structural_tag")]
    texts = [part for part in (*parts, *choices) if isinstance(part, str)]
    texts.append(schema if isinstance(schema, str) else json.dumps(schema))
    length = sum(map(len, texts))
    if length > _MAX_BYTES:
        return f"the structure has {length} characters; it may have at most {_MAX_BYTES}"
    rules = parts[1].count("::=") if isinstance(parts[1], str) else 0
    if rules > _MAX_RULES:
        return f"the grammar has {rules} rules; it may have at most {_MAX_RULES}"
    for each in (schema, parts[2]):
        if reason := _why_schema_is_too_large(each):
            return reason
    return None


class Compiler:
    """The compiler of structures that the engine uses.

    vLLM chooses a compiler for each request, but the engine compiles every structure with the
    compiler of its first structure. If the engine's compiler fails on a structure, the engine
    reports no cause. Since vLLM 0.33, the engine refuses a structure for which vLLM chose a
    different compiler.
    """

    def __init__(self) -> None:
        self._name: str | None = None

    def choose(self, configuration: Any, tokenizer: Any, params: Any) -> None:
        """Set the engine's compiler for the structure in vLLM's sampling parameters `params`.

        Call it when the request is sent to the engine. The first structure decides which compiler
        the engine uses. If the engine's compiler rejects a later structure, vLLM's choice stays in
        `params`, and the engine refuses the request.
        """
        structure = params.structured_outputs
        if self._name is None:
            self._name = structure._backend
        elif self._name != structure._backend and not self.why_it_failed(
            configuration, tokenizer, params
        ):
            structure._backend = self._name

    def why_it_failed(self, configuration: Any, tokenizer: Any, params: Any) -> str | None:
        """Return the compiler's error about the structure in vLLM's sampling parameters `params`.

        Returns None if the compiler reports no error. `configuration` is vLLM's configuration.
        """
        settings = copy.copy(configuration.structured_outputs_config)
        settings.backend = self._name
        checked = copy.deepcopy(params)
        checked.structured_outputs._backend = None
        try:
            checked.verify(
                configuration.model_config, configuration.speculative_config, settings, tokenizer
            )
        except Exception as error:
            return why_not_compiled(error)
        return None


def why_not_compiled(error: Exception) -> str | None:
    """Return the compiler's error about a structure; None for an unrelated error.

    vLLM's own text often names only the kind of structure. The compiler's text contains the cause.
    """
    if not was_raised_in("_validate_structured_outputs", error):
        return None
    words, cause = str(error), str(error.__cause__ or "")
    if cause not in words:
        words = f"{words} {cause}"
    return _PLACE_IN_THE_COMPILER.sub("", words).strip()


def _why_schema_is_too_large(schema: Any) -> str | None:
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except (RecursionError, ValueError):
            return None  # vLLM refuses a schema that is not JSON
    lengths: set[object] = set()
    remaining = [schema]
    while remaining:
        each = remaining.pop()
        if isinstance(each, list):
            remaining.extend(each)
        if not isinstance(each, dict):
            continue
        remaining.extend(each.values())
        properties = each.get("properties")
        if isinstance(properties, dict) and len(properties) > _MAX_PROPERTIES:
            return (
                f"an object of the structure has {len(properties)} properties; it may have at "
                f"most {_MAX_PROPERTIES}"
            )
        for name in _REPETITIONS:
            number = each.get(name)
            if isinstance(number, int | float) and number > _MAX_REPETITION:
                return f"{name} of the structure is {number}; it may be at most {_MAX_REPETITION}"
        lengths |= _lengths_of_texts(each)
        if len(lengths) > _MAX_LENGTHS:
            return (
                f"the structure has more than {_MAX_LENGTHS} different limits on the length of a "
                "text (minLength, maxLength, {1,9} in a pattern); it may repeat them, so give "
                "several texts the same limit"
            )
    return None


def _lengths_of_texts(schema: dict[str, Any]) -> set[object]:
    """Return the limits on the lengths of texts in a schema, without those in its subschemas."""
    bounds = tuple(
        number if isinstance(number := schema.get(name), int | float) else None
        for name in ("minLength", "maxLength")
    )
    pattern = schema.get("pattern")
    repetitions = _REPETITION.findall(pattern) if isinstance(pattern, str) else []
    return {*repetitions, *([bounds] if bounds != (None, None) else [])}
