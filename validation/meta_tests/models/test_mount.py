import pytest
import torch
from torch import Tensor, nn

from validation.errors import UsageError
from validation.models.mount import Mount, Site, SiteCall, SiteError, running_call, select_sites
from validation.ops import Op, OpSet
from validation.ops.surroundings import Surroundings
from validation.verdict import Status


class Doubler(nn.Module):
    """Doubles its input in two layers; each layer is a place to mount an op on."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Identity() for _ in range(2)])

    def forward(self, x: Tensor, skip: bool = False) -> Tensor:
        """Run one layer or both, and add them up."""
        first: Tensor = self.layers[0](x)
        return first + (x if skip else self.layers[1](x))


SITES = (Site("layer", "scale_shift", 2), Site("absent", "rms_norm", 0), Site("other", "rms_norm", 1))


def op_set(op: Op) -> OpSet:
    return OpSet("planted", {"scale_shift": op}, "planted.py")


def mount_on(model: Doubler, op: Op) -> Mount:
    mounted = Mount(model, op_set(op), SITES[:1])
    for layer in model.layers:
        mounted.replace_forward(layer, lambda x: mounted.call("layer", x))
    return mounted


def test_mounted_op_runs_and_is_counted() -> None:
    model, x = Doubler(), torch.ones(1, 2)
    with mount_on(model, lambda x: 10 * x) as mounted:
        assert model(x).tolist() == [[20.0, 20.0]]
        model(x)
        assert mounted.calls == {"layer": 4}
        mounted.require_forwards(2)
    assert model(x).tolist() == [[2.0, 2.0]]


def test_an_op_can_ask_which_call_it_is() -> None:
    model, x, calls = Doubler(), torch.ones(1, 2), []

    def op(x: Tensor) -> Tensor:
        calls.append(running_call())
        return x

    with mount_on(model, op):
        model(x)
        model(x)
    expected = [SiteCall("layer", index, forward, 2) for forward in range(2) for index in range(2)]
    assert calls == expected
    with pytest.raises(LookupError):
        running_call()


def test_unmount_leaves_nothing_behind() -> None:
    model = Doubler()
    before = [dict(vars(module)) for module in model.modules()]
    mounted = mount_on(model, lambda x: x)
    assert [dict(vars(module)) for module in model.modules()] != before
    mounted.unmount()
    mounted.unmount()
    assert [dict(vars(module)) for module in model.modules()] == before
    assert not model._forward_hooks
    assert not model._forward_pre_hooks


def test_a_site_called_too_seldom_is_an_error() -> None:
    model = Doubler()
    with (
        mount_on(model, lambda x: x),
        pytest.raises(SiteError, match=r"layer was called 1 times.*expected 2") as caught,
    ):
        model(torch.ones(1, 2), skip=True)
    assert caught.value.status is Status.SITE_NOT_REACHED


def test_a_site_called_too_often_is_an_error() -> None:
    model = Doubler()
    with mount_on(model, lambda x: x) as mounted:
        model.layers[0].register_forward_hook(lambda *_: mounted.call("layer", torch.ones(1)))
        with pytest.raises(SiteError, match="was called 3 times in forward 1, expected 2"):
            model(torch.ones(1, 2))


def test_a_sabotaged_mount_is_an_error() -> None:
    model = Doubler()
    with mount_on(model, lambda x: x):
        for layer in model.layers:
            vars(layer).pop("forward")
        with pytest.raises(SiteError, match=r"was called 0 times.*expected 2"):
            model(torch.ones(1, 2))


def test_forwards_past_the_mount_are_an_error() -> None:
    model = Doubler()
    with mount_on(model, lambda x: x) as mounted:
        model.forward(torch.ones(1, 2))  # torch's hooks do not see this one
        with pytest.raises(SiteError, match=r"0 forwards ran .* expected 1") as caught:
            mounted.require_forwards(1)
    assert caught.value.status is Status.SITE_NOT_REACHED


def fail(_x: Tensor) -> Tensor:
    raise ValueError("x has a wrong shape")


@pytest.mark.parametrize(
    ("op", "status", "reason"),
    [
        (lambda _x: None, Status.INCORRECT_STRUCTURE, "scale_shift returned NoneType at site layer, expected a tensor"),
        (lambda x: (x, x), Status.INCORRECT_STRUCTURE, "returned tuple"),
        (lambda x: x.double(), Status.INCORRECT_DTYPE, "returned float64 at site layer, expected float32"),
        (lambda x: x[:, :1], Status.INCORRECT_SHAPE, r"returned \[1, 1\] at site layer, expected \[1, 2\]"),
        (lambda x: x.to("meta"), Status.INCORRECT_DEVICE, "returned meta at site layer, expected cpu"),
        (fail, Status.RUNTIME_ERROR, "scale_shift raised at site layer: ValueError: x has a wrong shape"),
    ],
)
def test_what_an_op_returns_is_checked(op: Op, status: Status, reason: str) -> None:
    model = Doubler()
    with mount_on(model, op), pytest.raises(SiteError, match=reason) as caught:
        model(torch.ones(1, 2))
    assert caught.value.status is status


def test_an_op_that_changes_what_the_process_computes_with_is_an_error_and_undone() -> None:
    """Otherwise later arms would be computed in another way than earlier ones."""

    def flush(x: Tensor) -> Tensor:
        torch.set_flush_denormal(True)
        return x

    model, before = Doubler(), Surroundings.now()
    with mount_on(model, flush), pytest.raises(SiteError, match="denormal numbers are flushed to 0") as caught:
        model(torch.ones(1, 2))
    assert caught.value.status is Status.STATE_CHANGED
    assert Surroundings.now() == before


@pytest.mark.parametrize("raised", [ValueError, KeyboardInterrupt])
def test_what_a_forward_changed_before_it_raised_is_undone_and_what_others_change_is_left(
    raised: type[BaseException],
) -> None:
    def raises(_x: Tensor) -> Tensor:
        torch.set_flush_denormal(True)
        raise raised

    model, before = Doubler(), Surroundings.now()
    with mount_on(model, raises), pytest.raises((SiteError, KeyboardInterrupt)), torch.no_grad(), torch.autocast("cpu"):
        model(torch.ones(1, 2))
    assert Surroundings.now() == before  # without the grad mode of inside
    # The sampler's own random numbers between two forwards are no candidate's.
    with mount_on(model, lambda x: x) as mounted:
        for _ in range(2):
            model(torch.ones(1, 2))
            torch.rand(1)
        assert mounted.forwards == 2
        taken = torch.get_rng_state()
    assert torch.equal(torch.get_rng_state(), taken)


def test_a_second_mount_is_refused() -> None:
    model = Doubler()
    with mount_on(model, lambda x: x), pytest.raises(UsageError, match="forward of Identity is replaced already"):
        mount_on(model, lambda x: x)


def test_select_sites() -> None:
    ops = OpSet("both", {"scale_shift": fail, "rms_norm": fail}, "both.py")
    assert [site.name for site in select_sites(SITES, ops, None)] == ["layer", "other"]
    assert [site.name for site in select_sites(SITES, ops, ["other", "layer"])] == ["layer", "other"]
    assert [site.name for site in select_sites(SITES, op_set(fail), None)] == ["layer"]


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["norm9"], "unknown site 'norm9', expected some of: layer, absent, other"),
        (["absent"], "this model has no absent"),
        (["other"], "other calls rms_norm, which planted.py does not provide"),
        ([], "no site named"),
    ],
)
def test_sites_that_cannot_be_mounted_are_refused(names: list[str], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        select_sites(SITES, op_set(fail), names)


def test_an_op_set_without_any_op_of_the_model_is_refused() -> None:
    with pytest.raises(UsageError, match=r"x\.py provides no op that this model calls, expected one of: scale_shift"):
        select_sites(SITES, OpSet("x", {"qk_norm": fail}, "x.py"), None)
