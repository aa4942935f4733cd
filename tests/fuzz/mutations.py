"""Mutations of whole files. ``mutate(name, number)`` is a function: the same arguments give the same mutant.

    bytes-*    change the file as it lies there. Its digests stand in the way of everything behind them.
    all others change one thing, and what depends on it follows: lengths, the digests of chunks and manifest, the footer.
               Such a mutant is ``sealed``: it reaches what the digests otherwise protect.

Nothing here decides what a reader has to make of a mutant; that is for target.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Final

from tests.fuzz.byte_mutations import BYTE_MUTATIONS
from tests.fuzz.draft_mutations import DRAFT_MUTATIONS, CannotApply, take_apart
from tests.fuzz.seeds import SeedFile, seed_files

__all__ = ["MUTATORS", "Mutant", "mutate"]

_LARGE_ONE_IN: Final = 60
_STACKED: Final = 4
_TRIES: Final = 50


@dataclass(frozen=True)
class Mutant:
    """``sealed``: all digests but those of the decoded content are right again, so other content is legitimate."""

    mutator: str
    number: int
    original: SeedFile
    donor: SeedFile
    data: bytes
    sealed: bool

    @property
    def name(self) -> str:
        """What ``long.py --replay`` takes."""
        return f"{self.mutator}:{self.number}"


_Mutate = Callable[[Random, SeedFile, SeedFile], bytes]


def _raw(name: str) -> _Mutate:
    def apply(random: Random, original: SeedFile, donor: SeedFile) -> bytes:
        return BYTE_MUTATIONS[name](random, original.data, donor.data)

    return apply


def _sealed(name: str) -> _Mutate:
    def apply(random: Random, original: SeedFile, donor: SeedFile) -> bytes:
        file = take_apart(original.data)
        DRAFT_MUTATIONS[name](random, file, donor.data)
        return file.build()

    return apply


def _several(random: Random, original: SeedFile, donor: SeedFile) -> bytes:
    file = take_apart(original.data)
    for _ in range(random.randint(2, _STACKED)):
        try:
            DRAFT_MUTATIONS[random.choice(list(DRAFT_MUTATIONS))](random, file, donor.data)
        except (AttributeError, LookupError, TypeError, ValueError) as exc:
            # An earlier one has left something that this one does not know how to change.
            raise CannotApply from exc
    return file.build()


MUTATORS: Final[Mapping[str, _Mutate]] = {
    **{f"bytes-{name}": _raw(name) for name in BYTE_MUTATIONS},
    **{name: _sealed(name) for name in DRAFT_MUTATIONS},
    "several": _several,
}


@cache
def _by_size() -> tuple[list[SeedFile], list[SeedFile]]:
    files = seed_files()
    return [file for file in files if not file.large], [file for file in files if file.large]


def mutate(mutator: str, number: int) -> Mutant:
    """The mutant ``number`` of a mutator: which file it is made from, and how, follows from both."""
    random = Random(f"{mutator}:{number}")
    small, large = _by_size()
    for _ in range(_TRIES):
        original = random.choice(large if random.randrange(_LARGE_ONE_IN) == 0 else small)
        donor = random.choice(small)
        try:
            data = MUTATORS[mutator](random, original, donor)
        except CannotApply:
            continue
        return Mutant(mutator, number, original, donor, data, not mutator.startswith("bytes-"))
    raise AssertionError(f"{mutator} applies to none of {_TRIES} files")
