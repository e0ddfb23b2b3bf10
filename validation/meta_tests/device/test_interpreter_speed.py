"""What makes the interpreter faster changes no bit of a kernel's result: with and without it, in forked processes."""

from pathlib import Path

import pytest

from validation.forking.forked import start_call
from validation.forking.server import Order
from validation.meta_tests.device.kernel_digest import OPS


def digests(arrangement: str) -> list[str]:
    order = Order("validation.meta_tests.device.kernel_digest", "main", (arrangement,), str(Path.cwd()), {})
    return start_call(order).output().splitlines()


@pytest.fixture(scope="module")
def plain() -> list[str]:
    return digests("plain")


def test_kernels_give_the_same_bits(plain: list[str]) -> None:
    assert [line.split()[0] for line in plain] == list(OPS)
    assert digests("hastened") == plain


def test_another_operation_would_show(plain: list[str]) -> None:
    assert digests("sum for difference") != plain
