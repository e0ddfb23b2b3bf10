"""Replace the code that an op set fuses inside a model, and count the calls.

A *site* is a place in a model where an op's chain is computed. A model's own file (such as
`validation.models.helios`) knows its sites and replaces the ``forward`` of the modules around them; this module
counts calls, checks what an op returns and restores the model.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Self

from torch import Tensor, nn

from validation.errors import UsageError
from validation.ops import OpSet
from validation.ops.surroundings import Surroundings
from validation.verdict import Status


@dataclasses.dataclass(frozen=True)
class Site:
    """A place in a model.

    Attributes:
        name: its name in ``--sites``.
        op: the op that is mounted there.
        calls: its calls in one forward of the model; 0 if this model has no such place.
    """

    name: str
    op: str
    calls: int


@dataclasses.dataclass(frozen=True)
class SiteCall:
    """One call of a mounted op.

    Attributes:
        site: the site's name.
        index: number of the call among the site's calls in this forward, from 0.
        forward: number of the model's forward since the mount, from 0.
        calls: total calls of this site in one forward.
    """

    site: str
    index: int
    forward: int
    calls: int


_running: ContextVar[SiteCall] = ContextVar("site call")


def running_call() -> SiteCall:
    """The running call, for ops that must know where in the model they are.

    Raises:
        LookupError: no mounted op is running.
    """
    return _running.get()


class SiteError(Exception):
    """A mounted op failed inside the model, or was called the wrong number of times.

    Attributes:
        status: the status of its `Record`.
    """

    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def select_sites(available: Iterable[Site], ops: OpSet, names: Iterable[str] | None) -> tuple[Site, ...]:
    """The sites to mount, in the model's order: those named, or every site whose op the set provides.

    Raises:
        UsageError: a site is unknown, missing in this model, or without an op in the set; or no site is left.
    """
    by_name = {site.name: site for site in available}
    if names is None:
        chosen = tuple(site for site in by_name.values() if site.calls and site.op in ops)
        if not chosen:
            needed = ", ".join(dict.fromkeys(site.op for site in by_name.values() if site.calls))
            raise UsageError(f"{ops.origin} provides no op that this model calls, expected one of: {needed}")
        return chosen
    wanted = set(names)
    for name in sorted(wanted):
        if name not in by_name:
            raise UsageError(f"--sites: unknown site {name!r}, expected some of: {', '.join(by_name)}")
        if not by_name[name].calls:
            raise UsageError(f"--sites: this model has no {name}, expected a site that its configuration has")
        if by_name[name].op not in ops:
            raise UsageError(f"--sites: {name} calls {by_name[name].op}, which {ops.origin} does not provide")
    if not wanted:
        raise UsageError(f"--sites: no site named, expected some of: {', '.join(by_name)}")
    return tuple(site for site in by_name.values() if site.name in wanted)


class Mount:
    """An op set mounted on some sites of a model, until `unmount` (or the end of the ``with`` block).

    Every forward of the model is checked at its end: each site must have been called exactly `Site.calls` times, so
    that a path around an op is an error and never a silent fallback; and process-wide settings
    (`validation.ops.surroundings`) must be the same after each forward as before it.

    Attributes:
        sites: the mounted sites by name.
        calls: calls of each site since the mount.
        forwards: finished forwards of the model since the mount.
    """

    def __init__(self, model: nn.Module, ops: OpSet, sites: Iterable[Site]) -> None:
        self.ops = ops
        self.sites: Mapping[str, Site] = {site.name: site for site in sites}
        self.calls = dict.fromkeys(self.sites, 0)
        self.forwards = 0
        self._before = dict(self.calls)
        self._around: Surroundings | None = None  # as the running forward found them
        hooks = (
            model.register_forward_pre_hook(self._begin),
            model.register_forward_hook(self._end),
            model.register_forward_hook(self._put_back, always_call=True),
        )
        self._undo: list[Callable[[], None]] = [hook.remove for hook in hooks]

    def __contains__(self, site: str) -> bool:
        return site in self.sites

    def replace_forward(self, module: nn.Module, forward: Callable[..., Any]) -> None:
        """Make calls of the module run ``forward`` (without ``self``) until `unmount`.

        Raises:
            UsageError: the module's forward is replaced already, by another mount or an offloading hook.
        """
        if "forward" in module.__dict__:
            raise UsageError(
                f"the forward of {type(module).__name__} is replaced already, expected a model without another "
                "mount or offloading hook (unmount first; add hooks after mounting)"
            )

        def restore() -> None:
            module.__dict__.pop("forward", None)

        # An instance attribute hides the class's method; torch calls ``self.forward``.
        module.__dict__["forward"] = forward
        self._undo.append(restore)

    def call(self, site: str, x: Tensor, *arguments: Any, **options: Any) -> Tensor:
        """Call the op of a site. Every op of a site returns a tensor like its first argument.

        Raises:
            SiteError: the op raised, or did not return a tensor of the shape, dtype and device of ``x``.
        """
        y = self.run(site, x, *arguments, **options)
        if not isinstance(y, Tensor):
            raise self.wrong(Status.INCORRECT_STRUCTURE, site, type(y).__name__, "a tensor")
        self.require_like(site, y, x)
        return y

    def run(self, site: str, *arguments: Any, **options: Any) -> Any:
        """Count a call of a site's op and make it. Raise SiteError if the op raises."""
        index = self.calls[site] - self._before[site]
        self.calls[site] += 1
        name = self.sites[site].op
        token = _running.set(SiteCall(site, index, self.forwards, self.sites[site].calls))
        try:
            return self.ops[name](*arguments, **options)
        except SiteError:
            raise
        except Exception as error:
            raise SiteError(
                Status.RUNTIME_ERROR, f"{name} raised at site {site}: {type(error).__name__}: {error}"
            ) from error
        finally:
            _running.reset(token)

    def require_like(self, site: str, y: Tensor, x: Tensor) -> None:
        """Raise SiteError unless ``y`` has the dtype, the shape and the device of ``x``."""
        if y.dtype != x.dtype:
            raise self.wrong(Status.INCORRECT_DTYPE, site, str(y.dtype)[6:], str(x.dtype)[6:])
        if y.shape != x.shape:
            raise self.wrong(Status.INCORRECT_SHAPE, site, str(list(y.shape)), str(list(x.shape)))
        if y.device != x.device:
            raise self.wrong(Status.INCORRECT_DEVICE, site, str(y.device), str(x.device))

    def wrong(self, status: Status, site: str, came: str, expected: str) -> SiteError:
        """The error for an unexpected result of a site's op."""
        return SiteError(status, f"{self.sites[site].op} returned {came} at site {site}, expected {expected}")

    def require_forwards(self, expected: int) -> None:
        """Raise SiteError unless the model has finished ``expected`` forwards since the mount."""
        if self.forwards != expected:
            raise SiteError(
                Status.SITE_NOT_REACHED,
                f"{self.forwards} forwards ran through the mounted model, expected {expected}",
            )

    def unmount(self) -> None:
        """Restore the model and, after a forward that was interrupted, torch's settings; a second call does nothing."""
        if self._undo and self._around is not None:
            self._around.put_back(Surroundings.now(), scoped=False)
        while self._undo:
            self._undo.pop()()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.unmount()

    def _begin(self, _model: nn.Module, _arguments: Any) -> None:
        self._before = dict(self.calls)
        self._around = Surroundings.now()

    def _end(self, _model: nn.Module, _arguments: Any, _output: Any) -> None:
        for site in self.sites.values():
            calls = self.calls[site.name] - self._before[site.name]
            if calls != site.calls:
                raise SiteError(
                    Status.SITE_NOT_REACHED,
                    f"site {site.name} was called {calls} times in forward {self.forwards + 1}, expected {site.calls}",
                )
        self.forwards += 1
        before = self._around
        if before is not None and (changed := before.difference(Surroundings.now())):
            words = f"after forward {self.forwards} the whole process computes with something else: {changed}"
            raise SiteError(Status.STATE_CHANGED, words)

    def _put_back(self, _model: nn.Module, _arguments: Any, _output: Any) -> None:
        """Put the settings back after the end of the forward, whether or not it raised; not after an interrupt."""
        if self._around is not None:
            self._around.put_back(Surroundings.now())
            self._around = None
