from __future__ import annotations

import os
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest

from gatepass.errors import DeniedError, ErrorCode, UnreachableError
from gatepass.messages import IssuedToken
from gatepass.source import TokenSource
from support.client import CountingIssuer

GONE = UnreachableError(ErrorCode.UNREACHABLE, "gone")
THREADS = 50


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class SlowIssuer(CountingIssuer):
    """Answers when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = threading.Event()
        self.may_answer = threading.Event()

    def issue(
        self,
        audience: str | None = None,
        scope: str | None = None,
        ttl: int | None = None,
        binding: str | None = None,
    ) -> IssuedToken:
        self.asked.set()
        assert self.may_answer.wait(10)
        return super().issue(audience, scope, ttl, binding)


def test_a_token_is_kept_until_80_percent_of_its_life_and_then_renewed() -> None:
    issuer, clock = CountingIssuer(expires_in=100), Clock()
    source = TokenSource(issuer, clock=clock)
    assert [source.get(), source.get()] == ["token-1", "token-1"]
    clock.now += 79.9
    assert source.get() == "token-1"
    clock.now += 0.2
    assert source.get() == "token-2"
    assert issuer.calls == 2


def test_what_is_wanted_is_passed_on() -> None:
    wanted: list[object] = []

    class Issuer(CountingIssuer):
        def issue(
            self,
            audience: str | None = None,
            scope: str | None = None,
            ttl: int | None = None,
            binding: str | None = None,
        ) -> IssuedToken:
            wanted.extend((audience, scope, ttl, binding))
            return super().issue()

    TokenSource(Issuer(), audience="a", scope="s", ttl=9, binding="unit").get()
    assert wanted == ["a", "s", 9, "unit"]


def test_fifty_threads_cause_one_request() -> None:
    issuer = SlowIssuer()
    source = TokenSource(issuer)
    with ThreadPoolExecutor(THREADS) as pool:
        answers = [pool.submit(source.get) for _ in range(THREADS)]
        assert issuer.asked.wait(10)
        issuer.may_answer.set()
        assert {answer.result(10) for answer in answers} == {"token-1"}
    assert issuer.calls == 1


def test_the_error_reaches_every_thread_that_waits() -> None:
    issuer = SlowIssuer()
    issuer.error = GONE
    source = TokenSource(issuer)
    started = threading.Barrier(THREADS + 1)

    def get() -> BaseException | None:
        started.wait(10)
        try:
            source.get()
        except UnreachableError as error:
            return error
        return None

    with ThreadPoolExecutor(THREADS) as pool:
        answers = [pool.submit(get) for _ in range(THREADS)]
        started.wait(10)
        assert issuer.asked.wait(10)
        issuer.may_answer.set()
        assert all(answer.result(10) is GONE for answer in answers)


def test_while_one_thread_renews_the_others_go_on_with_the_old_token() -> None:
    issuer, clock = SlowIssuer(), Clock()
    issuer.may_answer.set()
    source = TokenSource(issuer, clock=clock)
    source.get()
    clock.now += 90
    issuer.asked.clear()
    issuer.may_answer.clear()
    with ThreadPoolExecutor(1) as pool:
        renewing = pool.submit(source.get)
        assert issuer.asked.wait(10)
        assert source.get() == "token-1"
        issuer.may_answer.set()
        assert renewing.result(10) == "token-2"


def test_a_broker_that_is_gone_costs_nothing_while_the_old_token_lives() -> None:
    issuer, clock = CountingIssuer(expires_in=100), Clock()
    source = TokenSource(issuer, clock=clock)
    source.get()
    issuer.error = GONE
    clock.now += 81
    assert [source.get() for _ in range(10)] == ["token-1"] * 10
    assert issuer.calls == 2
    clock.now += 18
    assert source.get() == "token-1"
    clock.now += 1
    with pytest.raises(UnreachableError):
        source.get()
    issuer.error = None
    assert source.get() == "token-5"


def test_a_denial_is_raised_at_once_and_ends_the_old_token() -> None:
    issuer, clock = CountingIssuer(), Clock()
    source = TokenSource(issuer, clock=clock)
    source.get()
    issuer.error = DeniedError(ErrorCode.DENIED, "no longer")
    clock.now += 81
    for _ in range(2):
        with pytest.raises(DeniedError):
            source.get()


def test_a_refused_token_is_forgotten_once_for_all_who_saw_the_refusal() -> None:
    issuer = CountingIssuer()
    source = TokenSource(issuer)
    refused = source.get()
    source.invalidate(refused)
    assert source.get() == "token-2"
    source.invalidate(refused)
    assert source.get() == "token-2"
    source.invalidate()
    assert source.get() == "token-3"


def test_an_interrupted_request_leaves_the_source_usable() -> None:
    issuer = CountingIssuer()
    issuer.error = KeyboardInterrupt()  # type: ignore[assignment] # what a person does while it waits
    source = TokenSource(issuer)
    with pytest.raises(KeyboardInterrupt):
        source.get()
    issuer.error = None
    assert source.get() == "token-2"


def test_a_forked_child_neither_uses_the_parents_token_nor_waits_for_its_request() -> None:
    issuer = SlowIssuer()
    source = TokenSource(issuer)
    thread = threading.Thread(target=source.get)
    thread.start()
    assert issuer.asked.wait(10)
    issuer.may_answer.set()
    thread.join()
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns: the test's timeout is a thread
        child = os.fork()
    if child == 0:
        os.write(writer, source.get().encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reader, 99) == b"token-2"
    os.close(reader)
    os.close(writer)


def test_a_repr_shows_no_token() -> None:
    source = TokenSource(CountingIssuer(), audience="openclaw")
    token = source.get()
    assert token not in repr(source)
    assert "openclaw" in repr(source)
