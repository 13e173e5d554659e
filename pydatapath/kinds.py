"""What a document says it is: a kind that is read, one that is known and skipped, or a slip of the pen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pydatapath.errors import ManifestError
from pydatapath.fields import KIND, LABEL, SUBDOMAIN, show

__all__ = ["API_VERSIONS", "is_namespaced", "kind_of", "split_key", "title"]

# The kinds that are read, each in the one version that is stable.
API_VERSIONS: Final = {"Service": "v1", "EndpointSlice": "discovery.k8s.io/v1", "Node": "v1"}

# Known and not used (yet): named and skipped. What is in neither list is taken for a slip of the pen.
_NAMESPACED: Final = """
    Binding ConfigMap ControllerRevision CronJob DaemonSet Deployment Endpoints Event Gateway GRPCRoute HTTPRoute
    HorizontalPodAutoscaler Ingress Job Lease LimitRange LocalSubjectAccessReview NetworkPolicy PersistentVolumeClaim
    Pod PodDisruptionBudget PodMetrics PodTemplate ReferenceGrant ReplicaSet ReplicationController ResourceClaim
    ResourceClaimTemplate ResourceQuota Role RoleBinding Secret ServiceAccount StatefulSet TCPRoute TLSRoute UDPRoute
    VolumeSnapshot
"""
_CLUSTER_WIDE: Final = """
    APIService CSIDriver CSINode CertificateSigningRequest ClusterRole ClusterRoleBinding ClusterTrustBundle
    ComponentStatus CustomResourceDefinition DeviceClass FlowSchema GatewayClass IPAddress IngressClass
    MutatingWebhookConfiguration Namespace Node NodeMetrics PersistentVolume PriorityClass PriorityLevelConfiguration
    ResourceSlice RuntimeClass ServiceCIDR StorageClass ValidatingAdmissionPolicy ValidatingAdmissionPolicyBinding
    ValidatingWebhookConfiguration VolumeAttachment VolumeSnapshotClass
"""
_NOT_NAMESPACED: Final = frozenset(_CLUSTER_WIDE.split())
_KINDS: Final = _NOT_NAMESPACED.union(API_VERSIONS, _NAMESPACED.split())


def is_namespaced(kind: str) -> bool:
    """Whether a namespace holds the objects of a kind."""
    return kind not in _NOT_NAMESPACED


def kind_of(document: Mapping[str, Any], where: str) -> str:
    """The document's kind: Service, EndpointSlice, Node, one that ends in List, or one that is known and not used.

    What is neither Kubernetes' own nor in a group of somebody else (`cert-manager.io/v1`) is an error: most likely a
    slip of the pen, and a service that is silently not there costs more than a question.
    """
    kind = document.get("kind")
    if kind is None:
        raise ManifestError(f"{where}: kind: is missing")
    if not isinstance(kind, str) or not KIND.fullmatch(kind):
        raise ManifestError(f"{where}: kind: {show(kind)} is not the name of a kind")
    if _is_foreign(document):
        return f"{kind}.{_group(document)}"
    if kind in _KINDS or kind.removesuffix("List") in _KINDS or kind == "List":
        return kind
    from difflib import get_close_matches

    close = get_close_matches(kind, sorted(_KINDS), n=1)
    advice = f" (did you mean {close[0]}?)" if close else ""
    raise ManifestError(f"{where}: kind: {show(kind)} is not a kind of Kubernetes{advice}")


def _group(document: Mapping[str, Any]) -> str:
    """The API group, "" for Kubernetes' core: what stands before the slash of apiVersion."""
    version = document.get("apiVersion")
    return version.rpartition("/")[0] if isinstance(version, str) else ""


def _is_foreign(document: Mapping[str, Any]) -> bool:
    """Whether the group belongs to somebody else: Kubernetes keeps k8s.io and the groups without a dot."""
    group = _group(document)
    return "." in group and not group.endswith(".k8s.io") and SUBDOMAIN.fullmatch(group) is not None


def title(document: Mapping[str, Any]) -> str:
    """`Kind namespace/name` of any object, `Kind name` of one that no namespace holds, for people."""
    metadata = document.get("metadata")
    names = metadata if isinstance(metadata, dict) else {}
    kind = document["kind"]
    foreign = f"{kind}.{_group(document)}" if _is_foreign(document) else ""
    name, namespace = names.get("name"), names.get("namespace")
    label = name if isinstance(name, str) and SUBDOMAIN.fullmatch(name) else show(name) if name else "without a name"
    if namespace is None and (kind in _NOT_NAMESPACED or foreign):
        return f"{foreign or kind} {label}"
    namespace = "default" if namespace is None else namespace
    known = isinstance(namespace, str) and LABEL.fullmatch(namespace)
    return f"{foreign or kind} {namespace if known else show(namespace)}/{label}"


def split_key(key: str, kind: str = "Service") -> tuple[str, str]:
    """`namespace/name`, or `name` in the namespace `default`, or in none where the kind has none."""
    namespace, slash, name = key.rpartition("/")
    return (namespace if slash else "default" if is_namespaced(kind) else ""), name
