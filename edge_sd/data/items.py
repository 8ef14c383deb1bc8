"""What every source is: a sequence of items that can become pixels, and a record of those that could not."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from edge_sd.data.config import DataConfig
from edge_sd.data.decode import BrokenImageError
from edge_sd.errors import EdgeSDError
from edge_sd.validation import Record


class Skipped(Record):
    """An image, or the rest of a shard, that was left out: its name and what is wrong, which together read as a sentence."""

    name: str
    reason: str
    shard: bool = False

    def __str__(self) -> str:
        return f"{self.name} {self.reason}"


@dataclass(frozen=True)
class Item:
    """An image that is still to be decoded.

    Attributes:
        read: returns (H, W, 3) uint8 or raises BrokenImageError.
        label: index or name of its class, None where there is none.
    """

    name: str
    read: Callable[[], NDArray[np.uint8]]
    label: int | str | None = None


@dataclass(frozen=True)
class Source:
    """Where items come from.

    Attributes:
        about: "images of photos", for a person; follows a number.
        items: starts a new pass, in an order that is always the same.
        total: how many items there are at most; None where nobody knows.
        classes: names of the classes where labels are indices into them; empty where they follow from the labels.
        threads: whether decoding gains from several.
    """

    about: str
    items: Callable[[], Iterator[Item | Skipped]]
    total: int | None
    classes: tuple[str, ...] = ()
    threads: bool = True


@dataclass(frozen=True)
class Decoded:
    """(H, W, 3) uint8, and the item's label."""

    pixels: NDArray[np.uint8]
    label: int | str | None


def decoded(items: Iterable[Item | Skipped], labelled: bool, threads: int) -> Generator[Decoded | Skipped, None, None]:
    """Decode items in their order, `threads` at a time; what is broken or lacks a label that is asked for becomes a `Skipped`."""

    def outcome(item: Item | Skipped) -> Decoded | Skipped:
        if isinstance(item, Skipped):
            return item
        if labelled and (item.label is None or (isinstance(item.label, int) and item.label < 0)):
            return Skipped(name=item.name, reason="has no label")
        try:
            return Decoded(item.read(), item.label)
        except BrokenImageError as error:
            return Skipped(name=item.name, reason=str(error))

    if threads == 1:
        yield from map(outcome, items)
        return
    waiting: deque[Future[Decoded | Skipped]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for item in items:
            waiting.append(pool.submit(outcome, item))
            if len(waiting) > 8 * threads:  # enough for all threads, and never a whole set in memory
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def refuse_too_many(skipped: list[Skipped], whole: int, total: int | None, config: DataConfig) -> None:
    """Hold what was skipped against `max_broken`.

    Args:
        whole: images that were read.
        total: how many images there will be at most; as many as there were, at the end.

    Raises:
        EdgeSDError: it is more; the first ones are named.
    """
    shards = [skip for skip in skipped if skip.shard]
    if config.max_broken is not None:
        allowed = config.max_broken
    else:
        # Before the end of a stream nobody knows what a hundredth is: it may start badly.
        allowed = max(total if total is not None else 10_000, whole + len(skipped)) // 100
    hint = f"mend or remove what is broken, or give --max-broken {len(skipped)} (or more) to go on without it"
    if config.max_broken is None and shards:
        raise EdgeSDError(named(shards), f"copy or download it again, or give --max-broken {len(skipped)} to use what is left")
    if len(skipped) > allowed:
        first = named(skipped)
        count = f"{len(skipped)} of {len(skipped) + whole} images are broken, {allowed} may be: "
        raise EdgeSDError(first if len(skipped) == 1 else count + first, hint)


def named(things: Iterable[object], most: int = 3) -> str:
    """The first ones by name, and whether there are more."""
    first = list(islice(things, most + 1))
    return "; ".join(map(str, first[:most])) + (" and more" if len(first) > most else "")
