"""No single change to a journal goes unseen, but for its end being cut off."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatepass.daemon.ed25519 import signature_check
from gatepass_broker.chain import EMPTY, BrokenChainError, advance, encode_line, read_lines
from gatepass_broker.events import AnyEvent, Issued, Refused
from gatepass_broker.keys import SigningKey
from gatepass_broker.state import State

texts = st.text(max_size=20)
uids = st.none() | st.integers(0, 2**32 - 1)
times = st.floats(0, 2**40)
events: st.SearchStrategy[AnyEvent] = st.one_of(
    st.builds(
        Issued, time=times, jti=texts, sub=texts, aud=texts, scope=texts, exp=st.integers(0, 2**40),
        uid=st.integers(0, 2**32 - 1), gid=uids, pid=uids, rule=texts,
    ),
    st.builds(Refused, time=times, op=texts, code=texts, reason=texts, uid=uids, pid=uids),
)  # fmt: skip


def build(found: list[AnyEvent]) -> list[bytes]:
    """Return the lines of a journal with `found` in it, between a key and a signed checkpoint."""
    key, state, head, lines = SigningKey(1.0, 60), State(), EMPTY, []
    for event in [key.added(), *found]:
        lines.append(encode_line(head, event))
        head = advance(head, lines[-1])
        state.apply(event)
    return [*lines, encode_line(head, state.checkpoint(2.0, key.kid), key.sign)]


def read(lines: list[bytes]) -> list[AnyEvent]:
    return [event for event, _ in read_lines(lines, EMPTY, {}, signature_check)]


@given(st.lists(events, max_size=5))
def test_what_was_written_is_read(found: list[AnyEvent]) -> None:
    assert read(build(found))[1:-1] == found


@given(st.lists(events, min_size=1, max_size=4), st.data())
def test_any_changed_byte_shows(found: list[AnyEvent], data: st.DataObject) -> None:
    lines = build(found)
    number = data.draw(st.integers(0, len(lines) - 1))
    position = data.draw(st.integers(0, len(lines[number]) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda value: value != lines[number][position]))
    lines[number] = lines[number][:position] + bytes([byte]) + lines[number][position + 1 :]

    with pytest.raises(BrokenChainError) as caught:
        read(lines)
    assert caught.value.number in (number + 1, number + 2)


@given(st.lists(events, min_size=2, max_size=5), st.data())
def test_a_removed_or_moved_record_shows(found: list[AnyEvent], data: st.DataObject) -> None:
    lines = build(found)
    one, other = sorted(data.draw(st.lists(st.integers(0, len(lines) - 1), min_size=2, max_size=2, unique=True)))
    swapped = lines.copy()
    swapped[one], swapped[other] = swapped[other], swapped[one]
    for changed in (swapped, lines[:one] + lines[one + 1 :], lines[:one] + lines[other:] + lines[one:other]):
        with pytest.raises(BrokenChainError):
            read(changed)


@given(st.lists(st.binary(max_size=60), min_size=1, max_size=4))
def test_garbage_is_a_broken_chain_and_nothing_else(lines: list[bytes]) -> None:
    with pytest.raises(BrokenChainError):
        read(lines)
