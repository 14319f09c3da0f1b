"""Measures how much of other projects' catalogues an LLMService can express.

    make bench-migration RECIPES=vllm_recipes.json KUBEAI=kubeai_catalogue.json

README.md describes the sources of the files and the meaning of the table.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import engine_env
from engine_asking import Ask, asking_engine
from migration.cases import Case, kubeai_cases, recipe_cases
from migration.judge import Verdict, judge
from migration.messages import Change, follow
from migration.vram import compare, table


def report(title: str, verdicts: list[Verdict]) -> Iterator[str]:
    """Yield the table of a catalogue: numbers of expressible entries and cases, and the reasons why
    the others are not expressible.
    """
    entries = {
        name: list(group) for name, group in itertools.groupby(verdicts, lambda it: it.case.entry)
    }
    whole = [
        name
        for name, group in entries.items()
        if all(it.is_expressible for it in group if it.case.is_core)
    ]
    core = [it for it in verdicts if it.case.is_core]
    said = sum(it.is_expressible for it in core)
    yield f"{title}: {len(whole)} of {len(entries)} entries whole, {said} of {len(core)} cases"
    rest = [it for it in verdicts if not it.case.is_core]
    if rest:
        said = sum(it.is_expressible for it in rest)
        yield f"  for one kind of hardware or one strategy: {said} of {len(rest)} cases"
    causes = Counter(reason for it in verdicts for reason in set(it.reasons))
    for reason, count in causes.most_common():
        yield f"  {count:4} cases: {reason}"
    for name, group in entries.items():
        for it in group:
            for reason in it.reasons:
                yield f"  {name} [{it.case.way}]: {reason}"


def _said(changes: Iterable[Change]) -> Iterator[str]:
    """Yield each change once, with its message and the number of times that it was made."""
    counts = Counter((it.before, it.after or "removed", it.message) for it in changes)
    for (before, after, message), count in counts.most_common():
        yield f"  {count:4} times: {before} -> {after}: {message}"


def main() -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipes", type=Path, help="facts of vllm-project/recipes as JSON")
    parser.add_argument("--kubeai", type=Path, help="entries of KubeAI's catalogue as JSON")
    parser.add_argument("--configs", type=Path, help="folder of config.json files, by model id")
    parser.add_argument("--vram", action="store_true", help="compare GPU memory, and nothing else")
    options = parser.parse_args()
    if options.vram:
        print(*table(compare(options.recipes, options.configs)), sep="\n")
        return 0
    with asking_engine(engine_env.engine_python()) as ask:
        if options.recipes:
            print(*_judged("vLLM recipes", recipe_cases(options.recipes), ask), sep="\n")
        if options.kubeai:
            print(*_judged("KubeAI's entries", kubeai_cases(options.kubeai), ask), sep="\n")
    return 0


def _judged(title: str, cases: list[Case], ask: Ask) -> Iterator[str]:
    """Yield the table of the catalogue as it is, and the table after the changes that the messages
    require.
    """
    yield from report(f"{title}, as they stand", judge(cases, ask))
    followed = [follow(case) for case in cases]
    verdicts = judge([case for case, _ in followed], ask)
    yield from report(f"{title}, after the messages", verdicts)
    yield from _said(change for _, changes in followed for change in changes)


if __name__ == "__main__":
    sys.exit(main())
