"""Follows how much of the prompts in an engine is done before their first token.

vLLM reports the tokens of a prompt only with its first token, and a long prompt takes many steps.
Until then, only the sums of each step are known.
"""


class PromptProgress:
    """Tokens of the begun prompts of one engine that are computed or were found in a cache.

    An engine computes prompts in the order of their arrival, so few of them are begun at a time.
    Some counted tokens belong to no begun prompt any more, such as those of an aborted request.
    They are dropped when the next prompt is complete, or when no prompt is begun.
    """

    def __init__(self) -> None:
        self.tokens = 0
        self._found_before = 0

    def step(self, computed: int, found: int, completed: int) -> None:
        """Add a step that computed and found tokens, and completed prompts of `completed` tokens.

        When a prompt is complete, what remains was computed in this step. A prompt that began in
        this step may have been looked up in the cache one step earlier, because vLLM plans a step
        while the step before it runs.
        """
        self.tokens += computed + found
        if completed:
            begun_now = computed + found + self._found_before
            self.tokens = max(0, min(self.tokens - completed, begun_now))
        self._found_before = found

    def clear(self) -> None:
        """Drop all tokens, because no prompt is begun."""
        self.tokens = 0
