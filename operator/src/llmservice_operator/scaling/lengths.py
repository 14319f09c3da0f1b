"""Distributions of the lengths of prompts and answers, from fading histograms."""

import math
from dataclasses import dataclass

from llmservice_operator.api.calibration import LENGTH_BUCKETS

BUCKET_CENTRES = tuple(1.0 if i == 0 else 0.75 * 2**i + 0.5 for i in range(LENGTH_BUCKETS))
"""Centre of each bucket, in tokens. Lengths are integers, so the second bucket, which contains only
the length 2, has the centre 2."""

LONG = 1024
"""Least number of tokens of a bucket that `split` divides. Shorter prompts rarely miss a limit."""
PARTS = 4
"""Number of parts of a bucket that is divided."""

RARE = 0.005
"""Share of the requests that may be outliers: a tenth of those that the default objective lets
miss."""

USUAL = 0.95
OUTLIER = 8.0
"""An outlier is longer than this multiple of the length that the share USUAL does not exceed."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """A distribution of token counts."""

    points: tuple[tuple[float, float], ...]
    """Pairs of a number of tokens and a share of the requests. The shares sum to 1."""

    @property
    def mean(self) -> float:
        return sum(tokens * share for tokens, share in self.points)

    @property
    def mean_square(self) -> float:
        return sum(tokens * tokens * share for tokens, share in self.points)

    def mean_excess(self, limit: float) -> float:
        """Return the mean of `max(0, length / limit - 1)`.

        If `limit` is the token budget of a step, this is the mean number of budgets that a prompt
        needs in addition to the first.
        """
        return sum(max(0.0, tokens / limit - 1) * share for tokens, share in self.points)

    def without_outliers(self) -> "Lengths":
        """Return the distribution without the longest requests, if they are few and much longer
        than the others.

        It is continuous in the shares, because at most the share RARE is left out of any length.
        """
        ordered, below = sorted(self.points), 0.0
        limit = math.inf
        for tokens, share in ordered:
            below += share
            if below >= USUAL:
                limit = OUTLIER * tokens
                break
        kept, left = list[tuple[float, float]](), RARE
        for tokens, share in reversed(ordered):
            taken = min(share, left) if tokens > limit else 0.0
            left -= taken
            if share > taken:
                kept.append((tokens, share - taken))
        if left == RARE:
            return self
        whole = sum(share for _, share in kept)
        return Lengths(tuple((tokens, share / whole) for tokens, share in reversed(kept)))

    def split(self) -> "Lengths":
        """Return the distribution with PARTS lengths in place of each long one.

        The lengths in a bucket differ by up to a factor of 2. A latency limit that only some of
        them attain would otherwise count for all or for none.
        """
        width = 2 / 3
        return Lengths(
            tuple(
                (tokens * (1 + width * ((part + 0.5) / parts - 0.5)), share / parts)
                for tokens, share in self.points
                for parts in (PARTS if tokens >= LONG else 1,)
                for part in range(parts)
            )
        )

    def is_close_to(self, other: "Lengths", relative: float, share: float) -> bool:
        """Return whether the other distribution has the same lengths with the same shares.

        Lengths may differ by `relative` of their amount, and shares by `share`.
        """
        return len(self.points) == len(other.points) and all(
            math.isclose(ours[0], theirs[0], rel_tol=relative) and abs(ours[1] - theirs[1]) <= share
            for ours, theirs in zip(self.points, other.points, strict=True)
        )

    def times(self, factor: float) -> "Lengths":
        return Lengths(tuple((factor * tokens, share) for tokens, share in self.points))


def lengths_of(histogram: tuple[float, ...], total_tokens: float) -> Lengths | None:
    """Return the distribution of a histogram whose lengths sum to `total_tokens`.

    None if the histogram is empty or the sum is zero.

    All lengths in a bucket are taken as the centre of the bucket. The centres are then scaled so
    that the mean is exact.
    """
    count = sum(histogram)
    if count <= 0 or total_tokens <= 0:
        return None
    raw = Lengths(
        tuple(
            (centre, number / count)
            for centre, number in zip(BUCKET_CENTRES, histogram, strict=True)
            if number > 1e-9 * count
        )
    )
    return raw.times(total_tokens / count / raw.mean)
