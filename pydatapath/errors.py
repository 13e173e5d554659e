"""What can go wrong, as a tree drawn before the code: catch `DatapathError` and you have it all.

    DatapathError                  everything raised on purpose; str() is one sentence: object, fault
    + ManifestError                a Kubernetes object that cannot be taken, with its field path
    + Refused                      an apply that was not done, with one of the others here for each bad object
    + NotFound                     a service, backend, interface or namespace that is not there
    + Conflict                     something is there already, or somebody else holds it
    + NotLoaded, AlreadyLoaded     the instance is not in the state that the command needs
    + LabError                     a laboratory of namespaces that cannot be made or found
    + KernelError                  the kernel refused a call; keeps errno
      + Unsupported                the kernel lacks a feature; says since which version it has it
      + LayoutError                a pinned map is not the one that this version writes
      + CompileError               the C programs do not compile; `log` is the compiler's whole text
      + VerifierError              the verifier refused a program; `log` is its whole text

Every error may carry a `hint`: what to do about it, for the `Hint:` line of the command line.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

__all__ = [
    "AlreadyLoaded",
    "CompileError",
    "Conflict",
    "DatapathError",
    "KernelError",
    "LabError",
    "LayoutError",
    "ManifestError",
    "NotFound",
    "NotLoaded",
    "PydatapathError",
    "Refused",
    "Unsupported",
    "VerifierError",
]


class DatapathError(Exception):
    """Anything that pydatapath raises on purpose. str() is one sentence, `hint` the way out (or "")."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


# By the package's own name, for who would look for it by that
PydatapathError = DatapathError


class ManifestError(DatapathError):
    """A Kubernetes object is malformed; the message names kind, namespace/name and field path.

    `key` is kind, namespace and name of the object that it is about, None where that could not be read.
    """

    key: tuple[str, str, str] | None = None


class Refused(DatapathError):
    """Objects cannot be taken, and nothing was done. `errors` has one error for each, in the order of the objects.

    str() tells the first ones and counts the rest, `hint` has each of their hints once.
    """

    TOLD: Final = 20  # a longer list hides its own beginning

    def __init__(self, errors: Iterable[DatapathError]) -> None:
        self.errors = tuple(errors)
        hints = dict.fromkeys(one.hint for one in self.errors if one.hint)
        super().__init__("; ".join(self.sentences), hint="; ".join(hints))

    @property
    def sentences(self) -> Sequence[str]:
        """One for each of the first errors, and how many more there are."""
        told = [str(one) for one in self.errors[: self.TOLD]]
        more = len(self.errors) - len(told)
        return [*told, f"and {more} more"] if more else told


class NotFound(DatapathError):
    """A named object does not exist."""


class Conflict(DatapathError):
    """A name, address or place is taken, or somebody else holds the lock."""


class NotLoaded(DatapathError):
    """The instance has no datapath in the kernel."""


class AlreadyLoaded(DatapathError):
    """The instance has a datapath already, and the command needs it not to."""


class LabError(DatapathError):
    """A lab could not be brought up, found or taken down."""


class KernelError(DatapathError):
    """A system call failed. `errno` is the kernel's number (0 when there was none)."""

    def __init__(self, message: str, *, errno: int = 0, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.errno = errno


class Unsupported(KernelError):
    """The host or its kernel lacks something that pydatapath cannot do without."""


class LayoutError(KernelError):
    """A pinned map has another type, key size, value size, number of entries or flags than ours."""


class CompileError(KernelError):
    """The compiler refused our C. `log` is everything it said."""

    def __init__(self, message: str, *, log: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.log = log


class VerifierError(CompileError):
    """The kernel's verifier refused a program. `log` is everything it said."""
