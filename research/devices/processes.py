"""Several processes, one per host or device, that train together."""

import socket

import jax

from research.base.errors import UserError, first_line

# When a process that no longer answers ends the others. JAX's default is 100 s.
HEARTBEAT_SECONDS = 30

_PREEMPTION_SERVICE = "jax_enable_preemption_service"


def join(coordinator: str | None, processes: int | None, process_id: int | None) -> None:
    """Joins the other processes, and waits for them; what is None is detected from the cluster.

    If one of them dies, the others end within about `HEARTBEAT_SECONDS`. Must be called before JAX initializes its
    devices. Raises UserError for values that can't be right, and if the others do not come.
    """
    _check(coordinator, processes, process_id)
    if coordinator is not None and process_id is not None:
        others = "the others" if processes is None else f"{processes} in all"
        print(f"process {process_id} joins {others} at {coordinator}", flush=True)
    # JAX's service takes SIGTERM for itself, so that a run would not notice that it should save and stop.
    if hasattr(jax.config, _PREEMPTION_SERVICE):  # not in every release
        jax.config.update(_PREEMPTION_SERVICE, False)
    try:
        jax.distributed.initialize(coordinator, processes, process_id, heartbeat_timeout_seconds=HEARTBEAT_SECONDS)
    except (ValueError, RuntimeError) as error:
        raise UserError(f"can't join the other processes: {first_line(error)}") from error


def _check(coordinator: str | None, processes: int | None, process_id: int | None) -> None:
    """Raises UserError for a number of processes, an index or an address that can't be right."""
    if processes is not None and processes < 1:
        raise UserError(f"--processes is {processes}; it must be at least 1")
    if process_id is not None and not 0 <= process_id < (processes or process_id + 1):
        last = "" if processes is None else f" to {processes - 1}, as --processes={processes}"
        raise UserError(f"--process_id is {process_id}; it must be 0{last}")
    if coordinator is None:
        return
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"--coordinator={coordinator} is not of the form HOST:PORT")
    try:
        addresses = {info[4][0] for info in socket.getaddrinfo(host.strip("[]"), int(port))}
    except OSError as error:
        raise UserError(f"--coordinator={coordinator}: the host is unknown ({error.strerror})") from error
    is_own = host in ("localhost", "::1", "[::1]") or host.startswith("127.")
    if not is_own and processes != 1 and all(_is_loopback(str(address)) for address in addresses):
        raise UserError(
            f"--coordinator={coordinator} resolves to {', '.join(sorted(map(str, addresses)))}, an address of this "
            "machine only, which other hosts can't reach: give the host's address in the network, or localhost if all "
            "processes are here"
        )


def _is_loopback(address: str) -> bool:
    return address == "::1" or address.startswith("127.")
