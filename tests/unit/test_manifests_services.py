"""Manifests of services: what is taken, and what it means."""

from __future__ import annotations

import copy

import pytest
from samples import SERVICE, Edit, at, edited, port, service, spec

from pydatapath.manifests import parse
from pydatapath.model import Service, ServicePort


class TestService:
    def test_S1_a_service_with_a_cluster_ip_is_proxied(self) -> None:
        """Every field of an ordinary service arrives, with the API's defaults."""
        assert service() == Service(
            namespace="shop",
            name="web",
            type="ClusterIP",
            cluster_ips=("10.96.0.10",),
            ports=(ServicePort("http", "TCP", 80, 8080), ServicePort("dns", "UDP", 53, "dns")),
            proxied=True,
        )

    @pytest.mark.parametrize(
        "edit",
        [
            pytest.param(spec(clusterIP="None"), id="S3 headless"),
            pytest.param(spec(clusterIP="None", clusterIPs=["None"], ports=None), id="S3 headless without ports"),
            pytest.param(spec(clusterIP=None, clusterIPs=["None"]), id="S3 headless by the list"),
            pytest.param(spec(clusterIP=""), id="S1 no address"),
            pytest.param(spec(type="ExternalName", externalName="example.org", ports=[]), id="S2 ExternalName"),
            pytest.param(
                at("metadata", "labels", "service.kubernetes.io/service-proxy-name", value=""), id="S4 another proxy"
            ),
        ],
    )
    def test_S1_S2_S3_S4_not_proxied(self, edit: Edit) -> None:
        """Without a cluster IP, headless, ExternalName or handed to another proxy: known, and left alone."""
        assert service(edit).proxied is False

    def test_S5_headless_label_on_a_service_means_nothing(self) -> None:
        """The headless label counts on slices only."""
        assert service(at("metadata", "labels", "service.kubernetes.io/headless", value="")).proxied

    def test_S7_S8_dual_stack_in_any_order(self) -> None:
        """Both cluster IPs are taken in the order given, in their canonical form."""
        found = service(spec(clusterIP="FD00:0::A", clusterIPs=["fd00::a", "10.96.0.10"]))
        assert found.cluster_ips == ("fd00::a", "10.96.0.10")

    def test_S9_leading_zeros_are_decimal(self) -> None:
        """010 in an address is ten, as Kubernetes reads it, and not eight."""
        assert service(spec(clusterIP="010.096.000.010")).cluster_ips == ("10.96.0.10",)

    def test_S14_one_number_in_three_protocols(self) -> None:
        """TCP, UDP and SCTP on one number are three ports, for node ports too."""
        ports = [
            {"name": name.lower(), "port": 53, "protocol": name, "nodePort": 30053} for name in ("TCP", "UDP", "SCTP")
        ]
        found = service(spec(type="NodePort", ports=ports))
        assert [(one.protocol, one.port, one.node_port) for one in found.ports] == [
            ("TCP", 53, 30053),
            ("UDP", 53, 30053),
            ("SCTP", 53, 30053),
        ]

    @pytest.mark.parametrize(
        ("value", "target"), [(None, 80), (0, 80), ("", 80), (8080, 8080), ("http-alt", "http-alt")]
    )
    def test_S11_target_port_is_kept_for_people(self, value: object, target: object) -> None:
        """A targetPort is a number or a name; absent, zero and empty mean the port itself."""
        assert service(port(targetPort=value)).ports[0].target_port == target

    def test_S57_external_ips(self) -> None:
        """The externalIPs are taken in order."""
        assert service(spec(externalIPs=["192.0.2.7", "2001:db8::7"])).external_ips == ("192.0.2.7", "2001:db8::7")

    def test_S59_S60_load_balancer_ips_are_those_of_mode_vip(self) -> None:
        """Ingress addresses of mode VIP or of none are taken; hostnames and mode Proxy are not."""
        ingress = [
            {"ip": "192.0.2.1"},
            {"ip": "192.0.2.2", "ipMode": "VIP"},
            {"ip": "192.0.2.3", "ipMode": "Proxy"},
            {"hostname": "lb.example.org"},
        ]
        found = service(spec(type="LoadBalancer"), at("status", "loadBalancer", "ingress", value=ingress))
        assert found.load_balancer_ips == ("192.0.2.1", "192.0.2.2")

    def test_S61_node_port_zero_is_none(self) -> None:
        """A nodePort of 0 means that there is none."""
        assert service(spec(type="LoadBalancer"), port(nodePort=0)).ports[0].node_port is None

    @pytest.mark.parametrize(
        ("edit", "policy"),
        [
            pytest.param(spec(type="NodePort"), "Local", id="node port"),
            pytest.param(spec(type="LoadBalancer"), "Local", id="balancer"),
            pytest.param(spec(externalIPs=["192.0.2.1"]), "Local", id="external IP"),
            pytest.param(spec(), "Cluster", id="S71 no way in from outside"),
            pytest.param(
                at("status", "loadBalancer", "ingress", value=[{"ip": "192.0.2.1"}]), "Cluster", id="S71 a left-over"
            ),
        ],
    )
    def test_S71_the_external_policy_counts_where_there_is_a_way_in(self, edit: Edit, policy: str) -> None:
        """It counts for LoadBalancer, NodePort and services with externalIPs; all others have Cluster, the default."""
        assert service(edit, spec(externalTrafficPolicy="Local")).external_policy == policy
        assert service(edit).external_policy == "Cluster"

    @pytest.mark.parametrize(("value", "policy"), [(None, "Cluster"), ("Cluster", "Cluster"), ("Local", "Local")])
    def test_S35_the_internal_policy(self, value: str | None, policy: str) -> None:
        """internalTrafficPolicy is Cluster unless said."""
        assert service(spec(internalTrafficPolicy=value)).internal_policy == policy

    @pytest.mark.parametrize(
        ("kind", "config", "seconds"),
        [
            (None, None, 0),
            ("None", None, 0),
            ("ClientIP", None, 10_800),
            ("ClientIP", {"clientIP": None}, 10_800),
            ("ClientIP", {"clientIP": {"timeoutSeconds": 1}}, 1),
            ("ClientIP", {"clientIP": {"timeoutSeconds": 86_400}}, 86_400),
        ],
    )
    def test_S73_session_affinity(self, kind: str | None, config: object, seconds: int) -> None:
        """ClientIP keeps a client for three hours, or for the seconds said; None for none."""
        assert service(spec(sessionAffinity=kind, sessionAffinityConfig=config)).affinity == seconds

    def test_S9_S62_source_ranges_are_canonical(self) -> None:
        """Trimmed, without the host's bits and leading zeros, of both families, in their order."""
        ranges = ["192.0.2.7/24", " 010.0.0.0/8\n", "2001:DB8::1/32", "0.0.0.0/0", "192.0.2.1/32"]
        found = service(spec(type="LoadBalancer", loadBalancerSourceRanges=ranges)).source_ranges
        assert found == ("192.0.2.0/24", "10.0.0.0/8", "2001:db8::/32", "0.0.0.0/0", "192.0.2.1/32")

    @pytest.mark.parametrize(
        ("kind", "policy", "port"),
        [("LoadBalancer", "Local", 32000), ("LoadBalancer", "Cluster", None), ("NodePort", "Local", None)],
    )
    def test_S72_S80_the_health_check_node_port(self, kind: str, policy: str, port: int | None) -> None:
        """Only a LoadBalancer with policy Local has one; 0 is none."""
        fields = {"type": kind, "externalTrafficPolicy": policy}
        assert service(spec(**fields, healthCheckNodePort=32000)).health_check_node_port == port
        assert service(spec(**fields, healthCheckNodePort=0)).health_check_node_port is None

    def test_the_namespace_is_default_unless_said(self) -> None:
        """A manifest without namespace means `default`, in the manifest too."""
        found = service(at("metadata", "namespace", value=None))
        assert found.key == "default/web"
        assert found.manifest["metadata"]["namespace"] == "default"

    def test_the_manifest_is_free_of_what_the_server_writes(self) -> None:
        """Fields that only the API server writes are dropped, so that unchanged means equal; the rest stays."""
        noise = {
            "uid": "1",
            "resourceVersion": "2",
            "generation": 3,
            "managedFields": [{}],
            "selfLink": "/x",
            "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}"},
        }
        plain, noisy = service(), service(lambda document: document["metadata"].update(noise))
        assert noisy.manifest == plain.manifest == SERVICE

    def test_of_the_status_only_the_load_balancer_stays(self) -> None:
        """S59 needs status.loadBalancer; conditions come and go without meaning anything here."""
        status = {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}, "conditions": []}
        assert service(at("status", value=status)).manifest["status"] == {"loadBalancer": status["loadBalancer"]}
        assert "status" not in service(at("status", value={"loadBalancer": {}})).manifest

    def test_what_was_handed_in_is_not_altered(self) -> None:
        """`parse` reads; the caller's document is as it was."""
        document = edited(SERVICE, at("metadata", "uid", value="1"), at("status", value={"loadBalancer": {}}))
        before = copy.deepcopy(document)
        parse(document, "web.yaml")
        assert document == before
