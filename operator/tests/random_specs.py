"""Random specs, drawn from the CRD's schema, so that they include every new field."""

import contextlib
import copy
import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, Final

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from llmservice_operator.api.extra_args import SAFE_VALUES
from llmservice_operator.api.fields import VALIDATIONS
from llmservice_operator.api.spec import LLMService
from llmservice_operator.desired.checked_values import PLUGIN_FLAGS
from llmservice_operator.desired.engine_flags import accepted_flags
from llmservice_operator.desired.flag_tables import TABLES, Flag, FlagKind
from llmservice_operator.settings import ENGINE_VERSION
from operator_support.services import a_body
from operator_support.spec_fields import SCHEMA

Spec = dict[str, Any]
Strategy = st.SearchStrategy[Any]

SEED: Final = int(os.environ.get("LLMSERVICE_TEST_SEED", "20261124"))
"""Seed of all random specs. Runs with the same seed draw the same specs."""

_VALUES: Final = {
    "--additional-config": "{}",
    "--attention-backend": "TORCH_SDPA",
    "--attention-config": '{"use_trtllm_attention": false}',
    "--compilation-config": '{"cudagraph_mode": "NONE"}',
    "--config-format": "hf",
    "--custom-histogram-buckets": "{}",
    "--diffusion-config": '{"canvas_length": 4}',
    "--hf-overrides": '{"rope_theta": 20000.0}',
    "--ir-op-priority": "{}",
    "--kernel-config": '{"enable_flashinfer_autotune": false}',
    "--limit-mm-per-prompt": '{"image": 1}',
    "--mamba-backend": "TRITON",
    "--media-io-kwargs": '{"video": {"num_frames": 8}}',
    "--mm-processor-device": "cpu",
    "--mm-processor-kwargs": '{"num_crops": 4}',
    "--override-generation-config": '{"temperature": 0.5}',
    "--pooler-config": '{"use_activation": true}',
    "--reasoning-config": '{"reasoning_start_str": "<s>", "reasoning_end_str": "</s>"}',
    "--watermark": "0.5",
}
"""Values of the flags that accept neither 1 nor the last of their choices."""


def _extra_arg(flag: str, entry: Flag) -> str:
    if entry.kind is not FlagKind.VALUE:
        return f"{flag}=true"
    choices = SAFE_VALUES.get(flag, entry.choices) or ("1",)
    return f"{flag}={_VALUES.get(flag, choices[-1])}"


_NEWEST: Final = TABLES[ENGINE_VERSION]

LIKELY: Final[Mapping[str, Sequence[Any]]] = {
    "spec.model.uri": ("hf://org/model", "pvc://models/llama", "pvc://models"),
    "spec.model.cache.size": ("1Gi", "2Ti"),
    "spec.accelerator.class": ("H100", "L40S"),
    "spec.autoscaling.idle.schedule[].timeZone": ("UTC", "Europe/Berlin", "Etc/GMT+3"),
    "spec.engine.image": ("registry.example.com/server:1", "registry.example.com/server:2"),
    "spec.engine.version": tuple(TABLES),
    "spec.engine.quantization": ("fp8", "awq"),
    "spec.engine.kvCache.offload.cpu": ("1Gi", "64Gi", "1500M"),
    "spec.engine.chatTemplate.inline": ("{{ messages }}", '{% if x %}\n\t"é\U0001f600"{% endif %}'),
    "spec.engine.toolCalling.parser": ("hermes", "mistral"),
    "spec.engine.reasoningParser": ("qwen3", "deepseek_r1"),
    "spec.engine.extraArgs[]": [
        _extra_arg(flag, _NEWEST[flag])
        for flag in accepted_flags(_NEWEST)
        if flag not in PLUGIN_FLAGS  # Plugin flags need a custom image.
    ],
    "spec.engine.logitsProcessors[]": (
        "vllm.model_executor.models.deepseek_ocr:NGramPerReqLogitsProcessor",
    ),
    "spec.engine.speculativeDecoding.schedule": (
        [{"minBatchSize": 1, "maxBatchSize": 8, "numSpeculativeTokens": 1}],
        [
            {"minBatchSize": 5, "maxBatchSize": 64, "numSpeculativeTokens": 0},
            {"minBatchSize": 1, "maxBatchSize": 4, "numSpeculativeTokens": 1},
        ],
    ),
    "spec.engine.speculativeDecoding.draftModel.tensorParallelSize": (1, 2),
    "spec.engine.speculativeDecoding.maxModelLen": (512, 65_536),
    "spec.engine.speculativeDecoding.moeBackend": ("triton", "marlin"),
    "spec.engine.speculativeDecoding.attentionBackend": ("FLASH_ATTN", "TRITON_ATTN"),
}
"""Mapping from a field to likely values. The form of these fields alone does not determine which
values the operator accepts. Random specs contain these values in addition to arbitrary ones."""

_FORM = re.compile(r"(?<!!)\b(self|string\(self\)|key)\.matches\('\^(.*?)\$'\)")
"""Pattern of the rules that prescribe the form of a text or of a key of a mapping."""


def specs_by_schema() -> Strategy:
    """Return specs that the schema accepts. Rules refuse some, often for one extra character."""
    return _values(SCHEMA, "spec", exact=False)


def valid_specs() -> Strategy:
    """Return specs that the schema and the rules accept."""
    by_schema = _values(SCHEMA, "spec", exact=True)
    return by_schema.map(without_what_is_refused).filter(lambda spec: spec is not None)


class _Enough(BaseException):
    """Stops the drawing. Hypothesis would investigate an ordinary exception as a failure."""


def many_valid_specs(count: int, wanted: Callable[[Spec], bool] = bool) -> list[Spec]:
    """Return the first `count` specs that the seed gives and for which `wanted` is true."""
    found = _drawn(valid_specs(), count, wanted)
    assert len(found) == count
    return found


def _drawn(values: Strategy, count: int, wanted: Callable[[Any], bool]) -> list[Any]:
    """Return the first `count` distinct values for which `wanted` is true; all if fewer exist."""
    found: list[Any] = []

    @seed(SEED)
    @settings(
        max_examples=8 * count,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(values)
    def collect(value: Any) -> None:
        if len(found) == count:
            raise _Enough
        if value not in found and wanted(value):
            found.append(copy.deepcopy(value))

    with contextlib.suppress(_Enough):
        collect()
    return found


def without_what_is_refused(spec: Spec) -> Spec | None:
    """Return the spec without the fields that Python's rules refuse.

    Removing a field may break another rule. The result is None if 40 rounds do not suffice.
    """
    spec = copy.deepcopy(spec)
    for _ in range(40):
        problems = LLMService.problems(a_body(spec))
        if not problems:
            return spec
        blamed = {tuple(re.findall(r"[^.\[\]]+", each.field)[1:]) for each in problems}
        # The last item of a list is removed first, so that the other items keep their indexes.
        removed = [_remove(spec, path) for path in sorted(blamed, key=_places, reverse=True)]
        assert any(removed), f"rules blame {blamed}, of which nothing is in {spec}"
    return None


def _places(path: Sequence[str]) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (0, part) for part in path]


def _remove(spec: Any, path: Sequence[str]) -> bool:
    """Remove the innermost part of `path` that exists; return False if no part exists."""
    place, remove = spec, None
    for part in path:
        key = int(part) if isinstance(place, list) else part
        if key not in (range(len(place)) if isinstance(place, list) else place):
            break
        remove = _removal(place, key)
        place = place[key]
        if not isinstance(place, dict | list):
            break
    if remove is None:
        return False
    remove()
    return True


def _removal(place: Any, key: Any) -> Callable[[], None]:
    def remove() -> None:
        del place[key]

    return remove


def _values(schema: Mapping[str, Any], path: str, *, exact: bool) -> Strategy:
    """Return values of one field: the likely ones, and any others that the schema accepts."""
    possible = _possible(schema, path, exact=exact)
    likely = LIKELY.get(path)
    if likely is None:
        return possible
    often = st.sampled_from(likely)
    return st.one_of(often, often, often, possible)


def _possible(schema: Mapping[str, Any], path: str, *, exact: bool) -> Strategy:
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if schema.get("x-kubernetes-int-or-string"):
        return _texts(schema, exact=exact) | st.integers(0, 2**31 - 1)
    match schema["type"]:
        case "object" if "additionalProperties" in schema:
            most = min(schema["maxProperties"], 2)
            values = _values(schema["additionalProperties"], f"{path}{{}}", exact=exact)
            return st.dictionaries(
                _texts({**schema, "maxLength": 63}, exact=exact), values, max_size=most
            )
        case "object":
            return _objects(schema, path, exact=exact)
        case "array":
            return _lists(schema, path, exact=exact)
        case "boolean":
            return st.booleans()
        case "integer":
            least, most = schema["minimum"], schema["maximum"]
            return st.integers(least, min(most, least + 9)) | st.integers(least, most)
        case _:
            return _texts(schema, exact=exact)


def _objects(schema: Mapping[str, Any], path: str, *, exact: bool) -> Strategy:
    fields = {
        name: _values(field, f"{path}.{name}", exact=exact)
        for name, field in schema["properties"].items()
    }
    required = set(schema.get("required", ()))
    optional = [name for name in fields if name not in required]
    # One draw gives a byte for each field. Separate draws would take most of the time for a spec.
    choice = st.binary(min_size=len(optional), max_size=len(optional))

    @st.composite
    def draw_object(draw: st.DrawFn) -> Spec:
        # Hypothesis' own choice of optional keys would leave out most of a deep object.
        left_out = {name for name, byte in zip(optional, draw(choice), strict=True) if byte < 85}
        return {name: draw(values) for name, values in fields.items() if name not in left_out}

    return draw_object()


def _lists(schema: Mapping[str, Any], path: str, *, exact: bool) -> Strategy:
    items = _values(schema["items"], f"{path}[]", exact=exact)
    most = min(schema["maxItems"], 3)
    least = schema.get("minItems", 0)
    match schema.get("x-kubernetes-list-type"):
        case "map":
            keys = schema["x-kubernetes-list-map-keys"]
            return st.lists(
                items,
                min_size=least,
                max_size=most,
                unique_by=lambda item: tuple(item.get(key) for key in keys),
            )
        case "set":
            return st.lists(items, min_size=least, max_size=most, unique=True)
        case _:
            return st.lists(items, min_size=least, max_size=most)


def _texts(schema: Mapping[str, Any], *, exact: bool) -> Strategy:
    """Return texts of the forms that the field's rules prescribe, or any text without such rules.

    If `exact` is false, other characters may precede and follow the prescribed form.
    """
    least, most = schema.get("minLength", 0), schema["maxLength"]
    rules = [rule["rule"] for rule in schema.get(VALIDATIONS, ())]
    forms = [form for rule in rules for _, form in _FORM.findall(rule)]
    if not forms:
        return st.text(min_size=least, max_size=min(most, 12))
    return st.sampled_from(
        [text for form in forms for text in _samples(form, exact) if least <= len(text) <= most]
    )


@cache
def _samples(form: str, exact: bool) -> list[str]:
    """Return some texts that have the form. Drawing new ones for every spec would take minutes."""
    return _drawn(st.from_regex(form, fullmatch=exact), 30, bool)
