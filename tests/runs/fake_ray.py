"""The part of Ray's interface that sdprobe uses, with forked processes in place of Ray's: actors that can be killed."""

import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as first_of
from types import SimpleNamespace
from typing import Any

FORK = multiprocessing.get_context("fork")


class RayError(Exception):
    """The root of Ray's errors."""


class RayTaskError(RayError):
    """What a call raised."""


class RayActorError(RayError):
    """The process of an actor died."""


class OutOfMemoryError(RayError):
    """Ray killed the process of an actor, because memory ran out. It is no RayActorError."""


exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)
actors: list["Actor"] = []
state = {"room": 1, "init": None}


def is_initialized() -> bool:
    return state["init"] is not None


def init(**arguments: Any) -> None:
    state["init"] = arguments


def cluster_resources() -> dict[str, float]:
    return {"CPU": 2.0}


class Handle:
    """What a call will return."""

    def __init__(self, actor: "Actor", call: tuple[str, tuple[Any, ...]]) -> None:
        self.actor, self.call = actor, call


class Actor:
    """An object in a process of its own, which begins as soon as there is room for it."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.make, self.process = make, None
        actors.append(self)

    def begin(self) -> None:
        self.connection, theirs = FORK.Pipe()
        self.process = FORK.Process(target=_serve, args=(self.make, theirs, self.connection), daemon=True)
        self.process.start()
        theirs.close()

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=lambda *arguments: self.ask(name, arguments))

    def ask(self, name: str, arguments: tuple[Any, ...]) -> Handle:
        handle = Handle(self, (name, arguments))
        if self.process is not None:
            self.connection.send(handle.call)
        return handle


def _serve(make: Callable[[], Any], connection: Connection, other: Connection) -> None:
    other.close()
    served, null = make(), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    while True:
        try:
            name, arguments = connection.recv()
        except EOFError:
            os._exit(0)
        connection.send(getattr(served, name)(*arguments))


def remote(**options: Any) -> Callable[[type], Any]:
    return lambda kind: SimpleNamespace(remote=lambda *arguments: Actor(lambda: kind(*arguments)))


def wait(handles: Sequence[Handle], num_returns: int) -> tuple[list[Handle], list[Handle]]:
    running = [actor for actor in actors if actor.process is not None and actor.process.is_alive()]
    for handle in handles:
        if handle.actor.process is None and len(running) < state["room"]:
            handle.actor.begin()
            handle.actor.connection.send(handle.call)
            running.append(handle.actor)
    asked = {handle.actor.connection: handle for handle in handles if handle.actor.process is not None}
    done = asked[first_of(list(asked))[0]]  # type: ignore[index]
    return [done], [handle for handle in handles if handle is not done]


def get(handle: Handle) -> Any:
    try:
        return handle.actor.connection.recv()
    except (EOFError, ConnectionResetError) as error:
        handle.actor.process.join()
        raise RayActorError from error


def kill(actor: Actor) -> None:
    if actor.process is not None:
        actor.process.kill()
        actor.process.join()
