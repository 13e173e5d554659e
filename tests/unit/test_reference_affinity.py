"""Session affinity, on the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from talking import EXTERNAL, FIRST, OTHER, SECOND, SYN, WEB, Talk

from pydatapath.reference import Address, Backend, Choice, Hook, Impossible, Service


@pytest.fixture
def talk() -> Talk:
    return Talk()


def sticky(talk: Talk, *backends: Backend) -> Callable[[int], tuple[Backend, ...]]:
    """Makes the service one with session affinity of ten seconds; gives the choices by source port."""
    talk.put(WEB, Service.for_all(1, *backends, affinity=10))
    return lambda port: talk.model.choices(replace(SYN, source_port=port), Hook.FROM_POD, talk.now)


def test_S73_N106_a_client_keeps_its_backend_whatever_its_port(talk: Talk) -> None:
    """Other clients and other service ports are free."""
    choices = sticky(talk, FIRST, OTHER)
    talk.goes_to(SYN, OTHER)
    assert choices(2) == (OTHER,)
    with pytest.raises(Impossible, match="S73"):
        talk.send(replace(SYN, source_port=2), chosen=Choice(FIRST))
    assert talk.model.choices(replace(SYN, source=SECOND), Hook.FROM_POD, talk.now) == (FIRST, OTHER)


def test_S74_each_new_connection_restarts_the_time(talk: Talk) -> None:
    """Packets of an open one do not."""
    choices = sticky(talk, FIRST, OTHER)
    talk.send(SYN, chosen=Choice(OTHER))
    talk.now += 9
    second = talk.open(replace(SYN, source_port=2))
    talk.now += 9
    talk.answer(second, "A")
    assert choices(3) == (OTHER,)
    talk.now += 2
    assert choices(3) == (FIRST, OTHER)


def test_S75_S79_all_addresses_and_both_sets_share_what_binds_a_client(talk: Talk) -> None:
    """One service port, called at two addresses."""
    sticky(talk, FIRST, OTHER)
    talk.put(Address(EXTERNAL, 80), Service(1, (OTHER, FIRST), (FIRST,), affinity=10))
    talk.goes_to(SYN, OTHER)
    assert talk.model.choices(replace(SYN, destination=EXTERNAL), Hook.FROM_POD, talk.now) == (OTHER,)


def test_C11_ports_that_share_their_clients_share_the_pod(talk: Talk) -> None:
    """Whichever was called; a port without it chooses anew, and that binds the client then."""
    secure = replace(WEB, port=443)
    ours, theirs = (replace(one, port=8443, number=one.number + 10) for one in (FIRST, OTHER))
    talk.put(WEB, Service.for_all(1, FIRST, OTHER, affinity=10, shared=1))
    talk.put(secure, Service.for_all(2, ours, theirs, affinity=10, shared=1))
    call = replace(SYN, destination_port=443)
    talk.goes_to(SYN, OTHER)
    assert talk.model.choices(call, Hook.FROM_POD, talk.now) == (theirs,)
    talk.put(secure, Service.for_all(2, ours, affinity=10, shared=1))
    talk.goes_to(call, ours)
    assert talk.model.choices(replace(SYN, source_port=2), Hook.FROM_POD, talk.now) == (FIRST,)
    talk.put(secure, Service.for_all(2, ours, affinity=10))
    assert talk.model.choices(replace(call, source_port=2), Hook.FROM_POD, talk.now) == (ours,)


def test_S76_a_backend_that_left_the_set_binds_nobody(talk: Talk) -> None:
    """The client is balanced again at once, and does not return."""
    sticky(talk, FIRST, OTHER)
    talk.goes_to(SYN, OTHER)
    choices = sticky(talk, FIRST)
    assert choices(2) == (FIRST,)
    talk.goes_to(replace(SYN, source_port=2), FIRST)
    assert sticky(talk, FIRST, OTHER)(3) == (FIRST,)


def test_S78_affinity_ends_with_its_setting(talk: Talk) -> None:
    """Switching it off is live."""
    sticky(talk, FIRST, OTHER)
    talk.goes_to(SYN, OTHER)
    talk.put(WEB, Service.for_all(1, FIRST, OTHER))
    assert talk.model.choices(replace(SYN, source_port=2), Hook.FROM_POD, talk.now) == (FIRST, OTHER)
