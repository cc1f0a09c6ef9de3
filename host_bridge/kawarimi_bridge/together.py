"""Things that need not wait for each other."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

_T = TypeVar("_T")


async def all_of(work: Iterable[Coroutine[Any, Any, _T]]) -> list[_T]:
    """Run coroutines side by side, to the end of each; then raise what the first failed with.

    :return: what they returned, in their order.
    """
    results = await asyncio.gather(*work, return_exceptions=True)
    returned: list[_T] = []
    for result in results:
        if isinstance(result, BaseException):
            raise result
        returned.append(result)
    return returned
