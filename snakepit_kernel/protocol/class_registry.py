"""The classes that have come to this process by value, and what of them is renewed.

What a receiver does with the state of a class that it has already is up to the sender, which knows
the direction: see `OnReceipt`.
"""

from __future__ import annotations

import abc
import contextlib
import os
import threading
import typing
import uuid
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final, Literal, NamedTuple

from ..locks import RLock
from .comparison import is_same_definition

OnReceipt = Literal["keep", "update", "update_shared"]
"""What a receiver does with the state of a class that it has.

``keep``: nothing; so does a notebook, whose classes are its own. ``update``: definitions (methods,
properties) become those that came, and an attribute takes the value that came if the sender has
changed it since it last sent the class; so does a worker. ``update_shared``: the same, but what is
defined as before stays the very object that it is, for calls of other threads that use it.
"""

Setter = Callable[[type, "State"], None]

MAX_HELD = 1024
"""Classes that a worker keeps when nothing refers to them, with what its calls have put there."""


class State(NamedTuple):
    """What a class consists of.

    Attributes
    ----------
    attributes
        All, by name.
    stamps
        By name, of those that are data: digests by which a change is known.
    registered
        What an abstract base class takes for its subclasses.
    members
        Of an enumeration: the attributes of each member.
    serial
        Grows with each that a process sends. Work may be done later than it was submitted, and a
        tool is sent when it is first needed: what is older than what has come changes nothing.
    """

    attributes: dict[str, Any]
    stamps: dict[str, bytes]
    registered: list[type]
    members: dict[str, dict[str, Any]]
    serial: int


class Known:
    """The classes that have left this process or come to it, by id."""

    def __init__(self) -> None:
        self._ids: weakref.WeakKeyDictionary[type, str] = weakref.WeakKeyDictionary()
        self._classes: weakref.WeakValueDictionary[str, type] = weakref.WeakValueDictionary()
        self._stamps: weakref.WeakKeyDictionary[type, dict[str, bytes]] = (
            weakref.WeakKeyDictionary()
        )
        self._serials: weakref.WeakKeyDictionary[type, int] = weakref.WeakKeyDictionary()
        self._unfilled: weakref.WeakSet[type] = weakref.WeakSet()
        self._held: OrderedDict[tuple[str, str], type] = OrderedDict()
        self.guard = RLock()
        os.register_at_fork(after_in_child=self._unlock)

    def _unlock(self) -> None:
        self.guard = RLock()

    def id_of(self, kind: type) -> str:
        """Return the id of a class, a new one if it has none."""
        with self.guard:
            known = self._ids.get(kind)
            if known is None:
                known = self._ids[kind] = uuid.uuid4().hex
                self._classes[known] = kind
            return known

    def came(self, kind: type) -> bool:
        """Whether a class came from another process."""
        return kind in self._stamps

    def find_or_make(self, class_id: str, make: Callable[[], Any]) -> Any:
        """Return what has an id; make it if it is not here."""
        with self.guard:
            found = self._classes.get(class_id)
            if found is None:
                found = make()
                self._ids[found] = class_id
                self._classes[class_id] = found
            return found

    def add(self, class_id: str, make: Callable[[], type]) -> type:
        """Return the class of an id; make it, without its state, if it is not here."""

        def make_empty() -> type:
            made = make()
            self._stamps[made] = {}
            self._unfilled.add(made)
            return made

        found: type = self.find_or_make(class_id, make_empty)
        return found

    def hold(self, kind: type) -> None:
        """Keep a class alive, and no longer the one of its name that was there before."""
        key = kind.__module__, kind.__qualname__
        self._held[key] = kind
        self._held.move_to_end(key)
        if len(self._held) > MAX_HELD:
            self._held.popitem(last=False)

    def fill(self, kind: type, state: State) -> bool:
        """Give a class its state if it has none yet; say whether it had none."""
        if kind not in self._unfilled:
            return False
        for name, value in state.attributes.items():
            type.__setattr__(kind, name, value)
        if "__firstlineno__" in state.attributes:  # setting any other attribute removes it
            type.__setattr__(kind, "__firstlineno__", state.attributes["__firstlineno__"])
        for registered in state.registered:
            abc.ABCMeta.register(typing.cast("abc.ABCMeta", kind), registered)
        for name, attributes in state.members.items():
            vars(kind.__members__[name]).update(attributes)  # type: ignore[attr-defined]
        self._stamps[kind] = {**dict.fromkeys(state.attributes, b""), **state.stamps}
        self._unfilled.discard(kind)
        return True

    def is_old(self, kind: type, state: State) -> bool:
        """Whether newer state of a class has come; if not, this is the newest from now on."""
        if state.serial <= self._serials.get(kind, -1):
            return True
        self._serials[kind] = state.serial
        return False

    def stamps(self, kind: type) -> dict[str, bytes] | None:
        """Return the stamps of what has come of a class; None if it is this process's own."""
        return self._stamps.get(kind)


known = Known()


def _keep(kind: type, state: State) -> None:
    """Give a class its state, if it is new here."""
    with known.guard:
        known.fill(kind, state)


def _update(kind: type, state: State) -> None:
    """Give a class its state, or what has changed of it since it last came."""
    _renew(kind, state, may_replace_equals=True)


def _update_shared(kind: type, state: State) -> None:
    """Do the same while calls of other threads use the class; see `renew_shared`."""
    with known.guard:
        known.fill(kind, state)
        to_renew.append((threading.get_ident(), kind, state))


to_renew: list[tuple[int, type, State]] = []
"""What threads have loaded of classes that others use, and `renew_shared` is to renew."""


def renew_shared() -> None:
    """Renew the classes of a value that this thread has loaded.

    Not before: a function may come with a class in its globals, of which it is a method. It would
    be compared when it is not yet complete.
    """
    mine = threading.get_ident()
    with known.guard:
        loaded = [entry for entry in to_renew if entry[0] == mine]
        to_renew[:] = [entry for entry in to_renew if entry[0] != mine]
        for _, kind, state in loaded:
            _renew(kind, state, may_replace_equals=False)


def _renew(kind: type, state: State, *, may_replace_equals: bool) -> None:
    with known.guard:
        stamps = known.stamps(kind)
        if stamps is not None:
            known.hold(kind)
        if stamps is None or known.is_old(kind, state) or known.fill(kind, state):
            return  # it is this process's own, or was new here
        for name, value in state.attributes.items():
            stamp = state.stamps.get(name)
            if stamp is None:
                is_as_before = _is_defined_as(kind, name, value, may_replace_equals)
            else:
                is_as_before = stamps.get(name) == stamp
            if not is_as_before:
                type.__setattr__(kind, name, value)
                stamps[name] = stamp or b""
        for name in stamps.keys() - state.attributes.keys():  # deleted there
            del stamps[name]
            with contextlib.suppress(AttributeError):
                type.__delattr__(kind, name)


def _is_defined_as(kind: type, name: str, value: Any, may_replace_equals: bool) -> bool:
    """Whether a definition is to stay as it is.

    One that remembers results is kept as long as it would be made from the same. Others are new
    each time where one call runs at a time: they share the globals of what came along with them.
    """
    has = vars(kind).get(name)
    if may_replace_equals and not hasattr(getattr(value, "__func__", value), "cache_parameters"):
        return has is value
    return is_same_definition(has, value)


SETTERS: Final[dict[OnReceipt, Setter]] = {
    "keep": _keep,
    "update": _update,
    "update_shared": _update_shared,
}
