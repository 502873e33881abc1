"""Forked processes that share the models in memory, one core each.

Two processes of one thread decode faster than one process of two threads: a thread waits for the
other one at every product.
"""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


def spread(work: Callable, items: Sequence, num_workers: int) -> Iterator:
    """Yield the result of each item as it comes; the work is a function of a module.

    Raises:
        BrokenProcessPool: A worker was killed, as for want of memory.
    """
    if num_workers == 1:
        yield from map(work, items)
        return
    context = get_context("fork")
    cores = context.Queue()
    for core in sorted(os.sched_getaffinity(0))[:num_workers]:
        cores.put({core})
    with ProcessPoolExecutor(num_workers, context, _pin, (cores,)) as pool:
        for done in as_completed([pool.submit(work, item) for item in items]):
            yield done.result()


def _pin(cores) -> None:
    os.sched_setaffinity(0, cores.get())
