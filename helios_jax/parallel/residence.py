"""Several networks that take turns on the device: which of them is there, and which is parked in host memory.

Distillation (arXiv 2603.04379) needs a generator, a score network of the same size and the states of two optimizers,
but no single program needs all of them: a rollout reads the generator, a score the score network. A ``Residence`` holds
each under a name, and the host asks for it before it calls a program:

    resident     everything stays on the device
    scheduled    on the device is only what was asked for and not parked since; the rest is in pinned host memory

Programs get arrays with the same values and shardings in both modes, so their results are equal bit for bit.

Copies run while kernels run. ``prefetch`` therefore comes before the call of the program that is to hide the copy:

    residence.prefetch("score")
    x = walk(residence.use("generator"), ...)       # the score network arrives meanwhile
    residence.park("generator")
    cotangent = score(residence.use("score"), x)

The memory of a parked tree is free when its copy to host memory is complete. ``settle`` waits for that, where two
trees would not fit side by side.

A master never changes, such as frozen weights: it has a copy in host memory for good, and parking deletes its copy on
the device. A state does change: parking copies it to host memory, and asking for it moves it back.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Literal, get_args

import jax

from helios_jax.parallel.devices import bytes_in_words, devices_of
from helios_jax.parallel.host_memory import (
    buffers,
    bytes_by_device,
    bytes_on_host,
    check_host_memory,
    delete,
    is_on_host,
    on_device,
    on_host,
    total_bytes,
)
from helios_jax.user_input import did_you_mean

Mode = Literal["resident", "scheduled"]
"""Whether what is not in use stays on the device or is parked in host memory."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Held:
    """The memory that one name takes at the moment.

    Attributes:
        device: Bytes on the device that holds most of it.
        host: Bytes in this process's pinned host memory.
    """

    device: int
    host: int


@dataclasses.dataclass(kw_only=True, eq=False)
class _Entry:
    """What a name stands for; at least one of the copies exists.

    Attributes:
        is_master: Whether the arrays never change.
        device: The copy on the device.
        host: The copy in host memory.
    """

    is_master: bool
    device: Any = None
    host: Any = None


class Residence:
    """Named pytrees of arrays, each with at most one copy on the device. For one thread.

    The residence owns the arrays. Those that ``use`` returns are valid until their name is parked or dropped; a program
    may have those of a state donated to it, and its results are then given to ``park``. Shardings are kept, so a
    tree may be spread over a mesh, also one of several processes: all of them then make the same calls.

    Args:
        mode: See the module.

    Raises:
        ValueError: Unknown mode.
    """

    def __init__(self, mode: Mode = "resident") -> None:
        if mode not in get_args(Mode):
            raise ValueError(f"mode={mode!r} must be one of {', '.join(map(repr, get_args(Mode)))}")
        self.mode = mode
        self._entries: dict[str, _Entry] = {}
        self._most_parked = 0
        self._leaving: list[Any] = []

    def __repr__(self) -> str:
        on_device = [name for name, entry in self._entries.items() if entry.device is not None]
        return f"Residence({self.mode}, {len(self._entries)} names, on the device: {', '.join(on_device) or 'none'})"

    @property
    def names(self) -> tuple[str, ...]:
        """All names, in the order in which they were added."""
        return tuple(self._entries)

    def hold(self, name: str, tree: Any, *, master: bool = False) -> None:
        """Adds a tree. It is parked at once if the mode is "scheduled", and its arrays on the device are deleted.

        Args:
            name: Its name.
            tree: A pytree of ``jax.Array``, on devices or in pinned host memory, which the caller gives up.
            master: Whether the arrays never change.

        Raises:
            ValueError: The name is taken; a leaf is not an array of JAX, or belongs to another name, so that parking
                one would take it from the other; or the device has no pinned host memory.
            MemoryError: Pinned host memory has too little room.
        """
        if name in self._entries:
            raise ValueError(f"{name!r} is held already: park gives it new arrays, drop removes it")
        _check_arrays(name, tree)
        self._check_apart(name, tree)
        entry = _Entry(is_master=master)
        if self.mode == "resident":
            entry.device = on_device(tree)
        else:
            entry.host = self._copied(name, tree)
            delete([leaf for leaf in jax.tree.leaves(tree) if not is_on_host(leaf)])
        self._entries[name] = entry

    def use(self, name: str) -> Any:
        """The tree on its device(s); fetched, without waiting for the copy, if it is parked.

        Raises:
            ValueError: Unknown name.
            RuntimeError: Arrays were donated to a program, and ``park`` was not given its results.
        """
        entry = self._find(name)
        if entry.device is None:
            entry.device = on_device(entry.host)
            if not entry.is_master:
                # The runtime frees the memory when the copy is complete. A copy that stayed would be out of date
                # after the next update.
                delete(entry.host)
                entry.host = None
        self._check_alive(name, entry)
        return entry.device

    def peek(self, name: str) -> Any:
        """The tree where it is, on the device or in pinned host memory, for example to save it; without moving it.

        Raises:
            ValueError: Unknown name.
            RuntimeError: See ``use``.
        """
        entry = self._find(name)
        if entry.device is None:
            return entry.host
        self._check_alive(name, entry)
        return entry.device

    def prefetch(self, name: str) -> None:
        """Starts the copy to the device, if the tree is not there. Errors are those of ``use``."""
        self.use(name)

    def park(self, name: str, tree: Any = None) -> None:
        """Ends the use of a tree: in the mode "scheduled" it leaves the device.

        Arrays that it leaves behind on the device are deleted; programs in progress still finish with them.

        Args:
            name: Its name.
            tree: A state's new arrays, with the same structure, which the caller gives up; ``None``: it has not
                changed.

        Raises:
            ValueError: Unknown name; new arrays for a master; or another structure or other shapes, dtypes or
                shardings than before.
            RuntimeError: Arrays were donated to a program, and its results are not given.
            MemoryError: Pinned host memory has too little room; the tree is then still on the device.
        """
        entry = self._find(name)
        if tree is not None:
            self._replace(name, entry, tree)
        elif entry.device is not None:
            self._check_alive(name, entry)
        if self.mode == "resident" or entry.device is None:
            return
        if entry.host is None:
            entry.host = self._copied(name, entry.device)
        delete(entry.device)
        entry.device = None

    def keep(self, name: str, tree: Any) -> None:
        """Gives a state new arrays, which stay on the device in both modes. Errors are those of ``park``."""
        self._replace(name, self._find(name), tree)

    def settle(self, *others: Any) -> None:
        """Waits, if anything is parked at all, until all copies to host memory are complete, and for other arrays.

        Args:
            others: For example the result of a program: the memory of trees that only it read is then free.
        """
        if self.mode == "resident":
            return
        jax.block_until_ready([leaf for leaf in jax.tree.leaves(self._leaving) if not leaf.is_deleted()])
        jax.block_until_ready(others)
        self._leaving = []

    def drop(self, name: str) -> None:
        """Removes a name and deletes its arrays. Raises ValueError for an unknown name."""
        entry = self._find(name)
        delete((entry.device, entry.host))
        del self._entries[name]

    def report(self) -> dict[str, Held]:
        """Bytes by name, without copies that were donated."""
        return {
            name: Held(device=max(bytes_by_device(entry.device).values(), default=0), host=bytes_on_host(entry.host))
            for name, entry in self._entries.items()
        }

    def describe(self) -> str:
        """The report as text, a line for each name and one for all of them."""
        report = self.report()
        together = Held(**{key: sum(getattr(held, key) for held in report.values()) for key in ("device", "host")})
        return "\n".join(
            f"{name}: {bytes_in_words(held.device)} on the device, {bytes_in_words(held.host)} in host memory"
            for name, held in {**report, "together": together}.items()
        )

    def metrics(self) -> dict[str, float]:
        """Bytes of all names together, for a log: "device_bytes" and "parked_bytes"."""
        held = self.report().values()
        return {
            "device_bytes": float(sum(one.device for one in held)),
            "parked_bytes": float(sum(one.host for one in held)),
        }

    def _find(self, name: str) -> _Entry:
        if name not in self._entries:
            known = ", ".join(self._entries) or "none"
            raise ValueError(f"nothing is held as {name!r}; names are {known}{did_you_mean(name, self._entries)}")
        return self._entries[name]

    def _replace(self, name: str, entry: _Entry, tree: Any) -> None:
        """Takes the new arrays of a state over."""
        if entry.is_master:
            raise ValueError(f"{name!r} is a master, which never changes: park it without new arrays")
        before = entry.host if entry.device is None else entry.device
        _check_arrays(name, tree)
        if (known := _description(before)) != (given := _description(tree)):
            raise ValueError(f"the new arrays of {name!r} differ in kind from the old ones{_difference(known, given)}")
        # Compiled programs are looked up by sharding, so a spec that is only written differently is replaced.
        places = jax.tree.map(lambda old: old.sharding.with_memory_kind("device"), before)
        new = jax.tree.map(functools.partial(_placed, name), on_device(tree), places)
        # ``before`` may have been donated, and arrays that did not change may be part of the new tree. They are found
        # by identity: asking for their buffers would wait for the program that computes the others.
        kept = {id(leaf) for leaf in jax.tree.leaves(tree)}
        delete([leaf for leaf in jax.tree.leaves(before) if id(leaf) not in kept])
        entry.device, entry.host = new, None

    def _copied(self, name: str, tree: Any) -> Any:
        """A copy in pinned host memory, after a check that it has room."""
        held, needed = sum(bytes_on_host(entry.host) for entry in self._entries.values()), total_bytes(tree)
        most = self._most_parked
        check_host_memory(needed, held=held, most_held=most, what=repr(name), devices=devices_of(tree))
        self._most_parked = max(most, held + needed)
        copy = on_host(tree)
        self._leaving.append(copy)
        return copy

    def _check_apart(self, name: str, tree: Any) -> None:
        own = buffers(tree)
        for other, entry in self._entries.items():
            if own & buffers((entry.device, entry.host)):
                raise ValueError(f"{name!r} shares arrays with {other!r}: parking one would take them from the other")

    def _check_alive(self, name: str, entry: _Entry) -> None:
        if any(leaf.is_deleted() for leaf in jax.tree.leaves(entry.device)):
            raise RuntimeError(
                f"arrays of {name!r} were donated to a program: give its results to park before the name is used again"
            )


def _check_arrays(name: str, tree: Any) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not isinstance(leaf, jax.Array):
            raise ValueError(f"{name!r}: {jax.tree_util.keystr(path)} is not an array of JAX but {type(leaf)}")
        if leaf.is_deleted():
            raise ValueError(f"{name!r}: {jax.tree_util.keystr(path)} was deleted or donated")


def _placed(name: str, array: jax.Array, place: jax.sharding.Sharding) -> jax.Array:
    """The array, with the same buffers, under another name of its sharding."""
    if array.sharding == place:
        return array
    if not array.sharding.is_equivalent_to(place, array.ndim):
        raise ValueError(f"a new array of {name!r} is sharded as {array.sharding}, the old one as {place}")
    parts = [shard.data for shard in array.addressable_shards]
    return jax.make_array_from_single_device_arrays(array.shape, place, parts)


def _description(tree: Any) -> Mapping[str, str]:
    """Shape and dtype of every leaf by path, which are known of deleted arrays too."""
    return {
        jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _difference(known: Mapping[str, str], given: Mapping[str, str]) -> str:
    """The first leaf that differs, for an error."""
    path = next(path for path in [*known, *given] if known.get(path) != given.get(path))
    return f": {path} was {known.get(path, 'not there')}, now {given.get(path, 'not there')}"
