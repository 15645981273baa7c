"""Registry of the classes that this process has received by value, and their updates.

The sender, which knows the direction, decides what a receiver does with the state of a class that
it has already: see `OnReceipt`.
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
"""Policy of a receiver for the state of a class that it has.

``keep``: nothing changes; used in a notebook, whose classes are its own. ``update``: definitions
(methods, properties) are replaced by those received, and an attribute takes the received value if
the sender has changed it since it last sent the class; used in a worker. ``update_shared``: the
same, but what is defined as before stays the same object, for calls of other threads that use it.
"""

Setter = Callable[[type, "State"], None]

MAX_HELD = 1024
"""Classes that a worker keeps although nothing refers to them, with the state that calls gave them.
"""


class State(NamedTuple):
    """The contents of a class.

    Attributes
    ----------
    attributes
        All attributes, by name.
    stamps
        Digests of the attributes that are data, by name, to detect changes.
    registered
        Virtual subclasses of an abstract base class.
    members
        The attributes of each member of an enumeration.
    serial
        Increases with each state that a process sends. Calls may run in another order than they
        were submitted, and a tool is sent when it is first needed: a state older than the last one
        received is ignored.
    """

    attributes: dict[str, Any]
    stamps: dict[str, bytes]
    registered: list[type]
    members: dict[str, dict[str, Any]]
    serial: int


class Known:
    """The classes that this process has sent or received, by id."""

    def __init__(self) -> None:
        self._ids: weakref.WeakKeyDictionary[type, str] = weakref.WeakKeyDictionary()
        self._classes: weakref.WeakValueDictionary[str, type] = weakref.WeakValueDictionary()
        self._stamps: weakref.WeakKeyDictionary[type, dict[str, bytes]] = (
            weakref.WeakKeyDictionary()
        )
        self._serials: weakref.WeakKeyDictionary[type, int] = weakref.WeakKeyDictionary()
        self._without_state: weakref.WeakSet[type] = weakref.WeakSet()
        self._kept: OrderedDict[tuple[str, str], type] = OrderedDict()
        self.guard = RLock()
        os.register_at_fork(after_in_child=self._renew_lock)

    def _renew_lock(self) -> None:
        self.guard = RLock()

    def id_of(self, kind: type) -> str:
        """Return the id of a class; assign one if it has none."""
        with self.guard:
            known = self._ids.get(kind)
            if known is None:
                known = self._ids[kind] = uuid.uuid4().hex
                self._classes[known] = kind
            return known

    def was_received(self, kind: type) -> bool:
        """Whether a class was received from another process."""
        return kind in self._stamps

    def find_or_make(self, class_id: str, make: Callable[[], Any]) -> Any:
        """Return the object of an id; make it if it does not exist here."""
        with self.guard:
            found = self._classes.get(class_id)
            if found is None:
                found = make()
                self._ids[found] = class_id
                self._classes[class_id] = found
            return found

    def add(self, class_id: str, make: Callable[[], type]) -> type:
        """Return the class of an id; make it, without state, if it does not exist here."""

        def make_empty() -> type:
            made = make()
            self._stamps[made] = {}
            self._without_state.add(made)
            return made

        found: type = self.find_or_make(class_id, make_empty)
        return found

    def keep_alive(self, kind: type) -> None:
        """Keep a class alive, instead of the previous one of its name."""
        key = kind.__module__, kind.__qualname__
        self._kept[key] = kind
        self._kept.move_to_end(key)
        if len(self._kept) > MAX_HELD:
            self._kept.popitem(last=False)

    def set_state(self, kind: type, state: State) -> bool:
        """Set the state of a class if it has none yet; return whether it had none."""
        if kind not in self._without_state:
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
        self._without_state.discard(kind)
        return True

    def is_old(self, kind: type, state: State) -> bool:
        """Whether newer state of a class has been received; if not, record this as the newest."""
        if state.serial <= self._serials.get(kind, -1):
            return True
        self._serials[kind] = state.serial
        return False

    def stamps(self, kind: type) -> dict[str, bytes] | None:
        """Return the stamps of a received class; None if it is this process's own."""
        return self._stamps.get(kind)


known = Known()


def _keep(kind: type, state: State) -> None:
    """Set the state of a class, if it is new here."""
    with known.guard:
        known.set_state(kind, state)


def _update(kind: type, state: State) -> None:
    """Set the state of a class, or what has changed of it since it was last received."""
    _renew(kind, state, replaces_equal=True)


def _update_shared(kind: type, state: State) -> None:
    """Do the same as `_update` while calls of other threads use the class; see `renew_shared`."""
    with known.guard:
        known.set_state(kind, state)
        to_renew.append((threading.get_ident(), kind, state))


to_renew: list[tuple[int, type, State]] = []
"""States of shared classes that threads have loaded, still to be applied by `renew_shared`."""


def renew_shared() -> None:
    """Update the shared classes of a value that this thread has loaded.

    Not earlier: a function may be received with a class in its globals, of which it is a method. It
    would be compared before it is complete.
    """
    mine = threading.get_ident()
    with known.guard:
        loaded = [entry for entry in to_renew if entry[0] == mine]
        to_renew[:] = [entry for entry in to_renew if entry[0] != mine]
        for _, kind, state in loaded:
            _renew(kind, state, replaces_equal=False)


def _renew(kind: type, state: State, *, replaces_equal: bool) -> None:
    with known.guard:
        stamps = known.stamps(kind)
        if stamps is not None:
            known.keep_alive(kind)
        if stamps is None or known.is_old(kind, state) or known.set_state(kind, state):
            return  # it is this process's own, older than the present state, or was new here
        for name, value in state.attributes.items():
            stamp = state.stamps.get(name)
            if stamp is None:
                is_unchanged = _is_defined_as(kind, name, value, replaces_equal)
            else:
                is_unchanged = stamps.get(name) == stamp
            if not is_unchanged:
                type.__setattr__(kind, name, value)
                stamps[name] = stamp or b""
        for name in stamps.keys() - state.attributes.keys():  # deleted there
            del stamps[name]
            with contextlib.suppress(AttributeError):
                type.__delattr__(kind, name)


def _is_defined_as(kind: type, name: str, value: Any, replaces_equal: bool) -> bool:
    """Whether a definition is to be kept.

    A function with a cache is kept while its definition is the same. Others are replaced each time
    where one call runs at a time: they share the globals of what was received with them.
    """
    has = vars(kind).get(name)
    if replaces_equal and not hasattr(getattr(value, "__func__", value), "cache_parameters"):
        return has is value
    return is_same_definition(has, value)


SETTERS: Final[dict[OnReceipt, Setter]] = {
    "keep": _keep,
    "update": _update,
    "update_shared": _update_shared,
}
