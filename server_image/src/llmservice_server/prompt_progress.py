"""Tracks how many tokens of incomplete prompts an engine has computed or found in a cache.

vLLM reports the tokens of a prompt only with its first token, and a long prompt takes many steps.
Until then, only the sums over all prompts in a step are known.
"""


class PromptProgress:
    """Counts the tokens of incomplete prompts that an engine has computed or found in a cache.

    An engine computes prompts in the order of their arrival, so it works on few prompts at a time.
    Tokens of an aborted request remain in the count until the next prompt is complete or no prompt
    is in progress.
    """

    def __init__(self) -> None:
        self.tokens = 0
        self._found_before = 0

    def step(self, computed: int, found: int, completed: int) -> None:
        """Add a step.

        The engine computed `computed` prompt tokens and found `found` more in a cache. The prompts
        that it completed have `completed` tokens together. If it completed any, all tokens that
        remain belong to prompts that began in this step. vLLM may have looked up such a prompt in
        the cache one step earlier, because it plans a step while the previous step runs.
        """
        self.tokens += computed + found
        if completed:
            begun_now = computed + found + self._found_before
            self.tokens = max(0, min(self.tokens - completed, begun_now))
        self._found_before = found

    def clear(self) -> None:
        """Drop all tokens, because no prompt is in progress."""
        self.tokens = 0
