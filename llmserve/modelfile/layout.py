"""Do the tensors of a file lie where they can?"""

from __future__ import annotations

from collections.abc import Iterable
from operator import itemgetter

from llmserve.modelfile.types import Problem, ProblemKind, TensorInfo

MOST = 20
"""Problems of one kind that are listed; how many more there are is said in one line."""


def check_layout(
    name: str, tensors: Iterable[TensorInfo], start: int, size: int, slack: int
) -> list[Problem]:
    """Overlaps, gaps and what lies behind the end of the file.

    ``start`` and ``size``: where the data begin, and the file ends. ``slack``: so many
    unused bytes between two tensors are padding. What follows the last tensor is none of
    ours beyond that: formats may end in a checksum.
    """
    problems = []
    end, before = start, "the header"
    for tensor in sorted(tensors, key=itemgetter(4, 3)):  # by offset, then by size
        if tensor.offset < end and tensor.bytes:
            detail = (
                f"It begins at byte {tensor.offset}, before the end of {before[:100]!a} ({end})."
            )
            problems.append(_problem(ProblemKind.OVERLAP, tensor, detail))
        elif tensor.offset - end > slack:
            detail = f"{tensor.offset - end} unused bytes lie between it and {before[:100]!a}."
            problems.append(_problem(ProblemKind.GAP, tensor, detail))
        last = tensor.offset + tensor.bytes
        if last > size:
            detail = f"It ends at byte {last}; the file has {size}."
            problems.append(_problem(ProblemKind.TRUNCATED, tensor, detail))
        if last > end:
            end, before = last, tensor.name
    if size - end > slack:
        detail = f"{size - end} unused bytes lie behind {before[:100]!a}."
        problems.append(Problem(ProblemKind.GAP, f"{name}: end", detail))
    return shortened(problems)


def _problem(kind: ProblemKind, tensor: TensorInfo, detail: str) -> Problem:
    return Problem(kind, f"{tensor.file}: {tensor.name[:100]!a}", detail)


def shortened(problems: list[Problem]) -> list[Problem]:
    """At most ``MOST`` of each kind, so that a broken file stays readable."""
    kept, counts = [], dict.fromkeys(ProblemKind, 0)
    for problem in problems:
        counts[problem.kind] += 1
        if counts[problem.kind] <= MOST:
            kept.append(problem)
    for kind, count in counts.items():
        if count > MOST:
            detail = f"{count - MOST} more problems of this kind."
            kept.append(Problem(kind, "more", detail))
    return kept
