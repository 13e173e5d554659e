"""What services claim, and which of them is refused for it."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import at, port, service, spec

from pydatapath.claims import Candidate, Claim, Claimant, Holding, claimant, claims_of, made_of, refusals
from pydatapath.errors import ManifestError

A, B, C = (Claim(f"10.96.0.{last}", 80, "TCP") for last in (1, 2, 3))
OLD, NEW = "2024-05-06T07:08:09Z", "2025-05-06T07:08:09Z"


def claiming(name: str, *claims: Claim, made: str = "") -> Claimant:
    return Claimant(name, made, dict.fromkeys(claims, "cluster-ip"))


def refused(*candidates: Candidate, standing: Mapping[Claim, list[Holding]] | None = None) -> list[str]:
    """The sentences of those that are refused."""
    return [str(error) for error in refusals(candidates, standing or {}).values()]


def held(*claimants: Claimant) -> dict[Claim, list[Holding]]:
    """The claims of services that do not change."""
    found: dict[Claim, list[Holding]] = {}
    for one in claimants:
        for claim, holding in one.holdings():
            found.setdefault(claim, []).append(holding)
    return found


class TestClaims:
    def test_every_place_where_a_service_is_called(self) -> None:
        """Its addresses with each port, its node ports and its health check's port at no address of their own."""
        found = claims_of(
            service(
                spec(
                    type="LoadBalancer",
                    externalTrafficPolicy="Local",
                    externalIPs=["192.0.2.1"],
                    healthCheckNodePort=32000,
                    ports=[{"port": 80, "nodePort": 30080}],
                ),
                at("status", "loadBalancer", "ingress", value=[{"ip": "192.0.2.1"}, {"ip": "192.0.2.2"}]),
            )
        )
        assert {str(claim): kind for claim, kind in found.items()} == {
            "10.96.0.10:80/tcp": "cluster-ip",
            "192.0.2.1:80/tcp": "load-balancer-ip",
            "192.0.2.2:80/tcp": "load-balancer-ip",
            "node port 30080/tcp": "node-port",
            "node port 32000/tcp": "health-check",
        }

    def test_S7_addresses_of_a_family_without_a_cluster_ip_are_not_claimed(self) -> None:
        """They have no effect, so nobody else need do without them."""
        external = spec(externalIPs=["192.0.2.1", "2001:db8::1"], ports=[{"port": 80}])
        assert [str(one) for one in claims_of(service(external))] == ["10.96.0.10:80/tcp", "192.0.2.1:80/tcp"]
        six = spec(clusterIP="fd00::10")
        assert [str(one) for one in claims_of(service(external, six))] == ["[fd00::10]:80/tcp", "[2001:db8::1]:80/tcp"]

    def test_S1_who_is_not_served_claims_nothing(self) -> None:
        """A headless service with left-over addresses takes none from others."""
        assert claims_of(service(spec(clusterIP="None", externalIPs=["192.0.2.1"]))) == {}

    @pytest.mark.parametrize(
        ("text", "made"),
        [
            (None, ""),
            ("2024-05-06T07:08:09Z", OLD),
            ("2024-05-06T09:08:09+02:00", OLD),
            ("2024-05-06t07:08:09.987654z", OLD),
            ("0999-05-06T07:08:09Z", "0999-05-06T07:08:09Z"),
        ],
    )
    def test_C7_the_time_that_a_service_was_made(self, text: str | None, made: str) -> None:
        """In one form, whatever the zone, so that text sorts by time."""
        assert made_of(service(at("metadata", "creationTimestamp", value=text))) == made

    @pytest.mark.parametrize(
        "value",
        ["yesterday", "", "2024-05-06", "2024-05-06T07:08:09", "2024-02-31T00:00:00Z", 7, "0001-01-01T00:00:00+02:00"],
    )
    def test_C7_a_time_that_is_none_is_refused(self, value: object) -> None:
        """It would decide about an address."""
        with pytest.raises(
            ManifestError, match=r"^Service shop/web: metadata\.creationTimestamp: .* is not a time"
        ) as caught:
            claimant(service(at("metadata", "creationTimestamp", value=value)))
        assert caught.value.key == ("Service", "shop", "web")

    @pytest.mark.parametrize(("protocol", "good"), [("TCP", False), ("UDP", True)])
    def test_S80_a_health_check_needs_a_port_of_its_own(self, protocol: str, good: bool) -> None:
        """It is asked over TCP: a node port of UDP is no matter."""
        edits = (
            spec(type="LoadBalancer", externalTrafficPolicy="Local", healthCheckNodePort=30080),
            port(nodePort=30080, protocol=protocol),
        )
        if good:
            assert claimant(service(*edits)).service == "shop/web"
            return
        with pytest.raises(
            ManifestError, match=r"^Service shop/web: spec\.healthCheckNodePort: 30080 is a node port of"
        ):
            claimant(service(*edits))


class TestRefusals:
    def test_the_second_that_claims_an_address_is_refused(self) -> None:
        """It is named with the first, and so is one that claims what a service has that is not given."""
        one, two = (Candidate(claiming(name, A), None) for name in "ab")
        assert refused(one, two) == [f"Service b: {A} is taken by Service a"]
        assert refused(two, one) == [f"Service a: {A} is taken by Service b"]
        assert refused(one, standing=held(claiming("b", A))) == [f"Service a: {A} is taken by Service b"]

    @pytest.mark.parametrize(("made", "other"), [(OLD, ""), ("", OLD), (OLD, NEW), (NEW, OLD), (OLD, OLD)])
    def test_C7_S70_where_one_says_when_it_was_made_both_are_kept(self, made: str, other: str) -> None:
        """What comes from an API server is taken as it is; who is called there is another question."""
        assert (
            refused(Candidate(claiming("a", A, made=made), None), Candidate(claiming("b", A, made=other), None)) == []
        )

    @pytest.mark.parametrize("kinds", [("health-check", "health-check"), ("health-check", "node-port")])
    def test_S80_a_port_of_a_health_check_is_nobody_elses(self, kinds: tuple[str, str]) -> None:
        """Whenever they were made: two servers cannot listen at one port, in whatever order they come."""
        node_port = Claim("", 32000, "TCP")
        one, two = (
            Candidate(Claimant(name, made, {node_port: kind}), None)  # type: ignore[dict-item]
            for name, made, kind in zip("ab", (OLD, NEW), kinds, strict=True)
        )
        assert refused(one, two) == ["Service b: node port 32000/tcp is taken by Service a"]
        assert refused(two, one) == ["Service a: node port 32000/tcp is taken by Service b"]

    def test_addresses_are_exchanged(self) -> None:
        """What one gives up, another may have in the same apply, in whatever order."""
        one = Candidate(claiming("a", A), claiming("a", B))
        two = Candidate(claiming("b", B), claiming("b", A))
        assert refused(one, two) == refused(two, one) == []

    def test_who_keeps_an_address_is_not_refused_for_one_that_is_given_first(self) -> None:
        """A service that changes in other things has what it had."""
        one, two = Candidate(claiming("a", A), None), Candidate(claiming("b", A, B), claiming("b", A))
        assert refused(one, two) == refused(two, one) == [f"Service a: {A} is taken by Service b"]

    def test_who_is_refused_stays_where_it_was(self) -> None:
        """And who was to have its old address is refused, too, and so on."""
        one = Candidate(claiming("a", A), claiming("a", B))
        two = Candidate(claiming("b", B), claiming("b", C))
        three = Candidate(claiming("c", C), None)
        standing = held(claiming("z", A))
        for order in ((one, two, three), (three, two, one), (two, three, one)):
            assert sorted(refused(*order, standing=standing)) == [
                f"Service a: {A} is taken by Service z",
                f"Service b: {B} is taken by Service a",
                f"Service c: {C} is taken by Service b",
            ]

    def test_who_is_refused_does_not_keep_others_from_an_address(self) -> None:
        """It claims it no longer."""
        one, two = Candidate(claiming("a", A, B), None), Candidate(claiming("b", A), None)
        assert refused(one, two, standing=held(claiming("z", B))) == [f"Service a: {B} is taken by Service z"]

    def test_who_is_refused_after_all_does_not_keep_others_from_an_address(self) -> None:
        """It was taken at first, until the one whose place it was to have had to stay there."""
        first = Candidate(claiming("a", B, C), None)
        stays = Candidate(claiming("b", A), claiming("b", B))
        last = Candidate(claiming("c", C), None)
        assert sorted(refused(first, stays, last, standing=held(claiming("z", A)))) == [
            f"Service a: {B} is taken by Service b",
            f"Service b: {A} is taken by Service z",
        ]


@st.composite
def steps(draw: st.DrawFn) -> list[list[Claimant]]:
    """Applies of some services, each with some claims, some with a time."""
    claimants = st.builds(
        claiming, st.sampled_from("abcd"), st.just(A), made=st.sampled_from(["", "", OLD])
    ) | st.builds(
        lambda name, claims, made: claiming(name, *sorted(claims), made=made),
        st.sampled_from("abcd"),
        st.sets(st.sampled_from([A, B, C])),
        st.sampled_from(["", "", OLD, NEW]),
    )
    return draw(st.lists(st.lists(claimants, min_size=1, max_size=4, unique_by=lambda one: one.service), max_size=4))


@settings(deadline=None)
@given(steps())
def test_what_is_kept_never_excludes_each_other(history: list[list[Claimant]]) -> None:
    """After any applies: of all services that say no time, no two claim one address; and only such are refused."""
    kept: dict[str, Claimant] = {}
    for given_now in history:
        candidates = [Candidate(one, kept.get(one.service)) for one in given_now]
        others = held(*(one for name, one in kept.items() if name not in {each.service for each in given_now}))
        found = refusals(candidates, others)
        assert all(not one.made for one in given_now if one.service in found)
        kept |= {one.service: one for one in given_now if one.service not in found}
        for claim, holdings in held(*kept.values()).items():
            assert len([one for one in holdings if not one.made]) <= 1, claim
