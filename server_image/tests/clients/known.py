"""Lists the intended differences from stock vLLM, each with its reason."""

import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Known:
    """An intended difference, at some paths of the replies in some cases."""

    cases: str
    """Regular expression of `client: feature`."""
    paths: str
    """Regular expression of the paths that differ, each with both values."""
    verdict: str
    """Verdict: "better" or "differs"."""
    reason: str

    def explains(self, case: str, difference: str) -> bool:
        return bool(re.search(self.cases, case) and re.search(self.paths, difference))


_STOCK_FAILS = r"^(failure: '\(absent\)' instead of |reply: .* instead of '\(absent\)'$)"
KNOWN: tuple[Known, ...] = (
    Known(
        "^Chromium.*: refusal, wrong key$",
        "^reply",
        "better",
        "the page can read the refusal, whereas vLLM causes a network error.",
    ),
    Known(
        "^Chromium.*: refusal, unknown route$",
        r"^reply\.body",
        "better",
        "the message says where the routes are listed.",
    ),
    Known(
        "^Chromium", r"^reply\.hasId: True", "better", "the page can read the id of the request."
    ),
    Known("models, retrieve$", _STOCK_FAILS, "better", "vLLM has no such route and answers 404."),
    Known(
        "max_tokens above the context$",
        _STOCK_FAILS,
        "better",
        "vLLM refuses a `max_tokens` that exceeds the context; this server ends the answer at the "
        "end of the context.",
    ),
    Known(
        "the id of a request$",
        "^reply: True",
        "better",
        "vLLM does not send the header that the client reads.",
    ),
    Known(
        "refusal, wrong key$|does not pass the key on$",
        r"^reply\.(message|body)",
        "better",
        "the message says what to send, whereas that of vLLM is only `Unauthorized`.",
    ),
)


def verdict(case: str, found: Sequence[str], known: Sequence[Known] = KNOWN) -> tuple[str, bool]:
    """Return the verdict on a case for the table, and whether every difference is explained."""
    explained = [
        next((each for each in known if each.explains(case, difference)), None)
        for difference in found
    ]
    if None in explained:
        return "NOT EXPLAINED: see what the command prints", False
    reasons = dict.fromkeys(f"{each.verdict}: {each.reason}" for each in explained if each)
    return " ".join(reasons) or "equal", True
