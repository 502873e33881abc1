"""Replicas as Ray actors, each in a place of its own on one machine of the cluster."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from cospec.errors import BackendError, ConfigError, CospecError, MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_TRIES = 3
"""Times that a piece of work is tried."""
_NOSET = "RAY_EXPERIMENTAL_NOSET_"
PATIENCE_S = 60.0
"""Seconds to wait for a place in the cluster."""


class Actors:
    """Actors of one class; one that dies is replaced.

    Args:
        kind: Class of the actors, called with the factory.
        factory: Makes what an actor works with; it is pickled.
        num_replicas: Actors to start.
        address: Address of a Ray cluster; by default one is started here.
        gpus: GPUs of one machine for each actor, reserved by a placement group of its own. A
            cluster without GPUs decodes on CPUs.

    Attributes:
        ray: The ``ray`` module.

    Raises:
        MissingExtraError: Ray is not installed.
        ConfigError: The cluster has no room for the actors, or Ray may not assign GPUs to them.
    """

    def __init__(
        self,
        kind: type[Any],  # Any: the class of the actor
        factory: Callable[[], object],
        num_replicas: int,
        *,
        address: str | None = None,
        gpus: int = 0,
    ) -> None:
        self.ray = _connect(address, num_replicas)
        has_gpus = bool(self.ray.cluster_resources().get("GPU"))
        self._kind, self._factory, self._gpus = kind, factory, gpus if has_gpus else 0
        self._groups: list[Any] = []  # Any: placement groups
        if self._gpus and (told := [n for n in os.environ if n.startswith(_NOSET)]):
            raise ConfigError(
                f"{told[0]} is set, and so Ray would put every replica on GPU 0; unset it here "
                "and on every machine of the cluster."
            )
        try:
            for _ in range(num_replicas):
                self._reserve()
        except BaseException:
            self._free()
            raise
        self._actors = [self._start(n) for n in range(num_replicas)]

    def __len__(self) -> int:
        return len(self._actors)

    def __getitem__(self, n: int) -> Any:  # Any: an actor
        """Return the actor that is the replica `n` now."""
        return self._actors[n]

    def ask_first(self, call: Callable[[Any], Any]) -> Any:  # Any: an actor, an ObjectRef, a result
        """Return the first replica's answer to a call; it is started again if it has died.

        Raises:
            BackendError: It failed three times, for example since its machine lacks a model.
        """
        for _ in range(MAX_TRIES):
            try:
                return self.ray.get(call(self[0]))
            except self.ray.exceptions.RayError as failed:
                self.recover(failed, 0)
                error = failed
        raise BackendError(
            f"the first replica failed {MAX_TRIES} times: {last_line(error)}"
        ) from error

    def recover(self, error: Exception, n: int) -> None:
        """Replace a replica that died; raise errors that another try cannot help.

        Raises:
            CospecError: The replica raised it, since the work cannot be done as asked for.
            BackendError: The replica's machine is gone, and there is no other for it.
        """
        cause = getattr(error, "cause", None)
        if isinstance(cause, CospecError):
            raise cause
        if isinstance(error, self.ray.exceptions.RayActorError):
            if not self._groups[n].wait(timeout_seconds=PATIENCE_S):
                raise BackendError(
                    f"replica {n} died, and within {PATIENCE_S:.0f} seconds Ray found no place for "
                    "another. Repair the cluster and run again: what was finished is resumed."
                )
            self._actors[n] = self._start(n)

    def close(self) -> None:
        """End the replicas; a Ray that was running before goes on."""
        for actor in self._actors:
            self.ray.kill(actor)
        self._free()

    def _reserve(self) -> None:
        """Reserve the place of a replica, on one machine."""
        bundle = {"CPU": 1.0} | ({"GPU": float(self._gpus)} if self._gpus else {})
        placement = importlib.import_module("ray.util.placement_group")
        group = placement.placement_group([bundle], strategy="STRICT_PACK")
        self._groups.append(group)
        if not group.wait(timeout_seconds=PATIENCE_S):
            raise ConfigError(
                f"Ray has no room for a replica with {bundle}; its machines have "
                f"{self.ray.cluster_resources()}. Ask for fewer replicas or GPUs."
            )

    def _free(self) -> None:
        """Give the reserved places back."""
        placement = importlib.import_module("ray.util.placement_group")
        while self._groups:
            placement.remove_placement_group(self._groups.pop())

    def _start(self, n: int) -> Any:  # Any: an actor
        """Start a replica in its place."""
        strategies = importlib.import_module("ray.util.scheduling_strategies")
        place = strategies.PlacementGroupSchedulingStrategy(placement_group=self._groups[n])
        actor = self.ray.remote(self._kind).options(
            num_cpus=1, num_gpus=self._gpus, scheduling_strategy=place
        )
        return actor.remote(self._factory)


def last_line(error: Exception) -> str:
    """Return the message of an actor's error, without the traceback in it."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[-1]}"


def _connect(address: str | None, num_replicas: int) -> Any:  # Any: the module
    """Connect to a cluster, or start one on this machine; return Ray.

    Raises:
        MissingExtraError: Ray is not installed.
        ConfigError: There is no cluster at the address.
    """
    try:
        ray = importlib.import_module("ray")
    except ImportError:
        raise MissingExtraError("Ray", "ray") from None
    if not ray.is_initialized():
        is_ours = address is None and not os.environ.get("RAY_ADDRESS")  # Ray sets it in its jobs
        here = {"num_cpus": num_replicas, "include_dashboard": False} if is_ours else {}
        try:
            ray.init(address, log_to_driver=False, logging_level="warning", **here)
        except ConnectionError as error:
            raise ConfigError(
                f"there is no Ray cluster at {address or os.environ.get('RAY_ADDRESS')} "
                f"({last_line(error)}); start one (ray start --head), name its address with "
                "--ray-address, or leave that out for a cluster on this machine."
            ) from None
    return ray
