"""The fields of KubeRay's resources that our manifests may use, written down from the types of its API (v1).

KubeRay's schema comes with its operator, which is no package of a registry that we install from, so a typing
error in a manifest would only show on a cluster. This is no schema: values are checked where tests say so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Fields:
    """Allowed keys and what is below them. Empty: anything goes (a mapping of names that we choose)."""

    below: Mapping[str, Fields] = field(default_factory=dict)
    required: tuple[str, ...] = ()


ANY = Fields()
RESOURCES = Fields({"requests": ANY, "limits": ANY}, ("requests", "limits"))
SECURITY = Fields(
    dict.fromkeys(("allowPrivilegeEscalation", "capabilities", "readOnlyRootFilesystem", "runAsNonRoot"), ANY)
)
CONTAINER = Fields(
    {
        **dict.fromkeys(("name", "image", "command", "args", "ports", "env", "volumeMounts"), ANY),
        "securityContext": SECURITY,
        "resources": RESOURCES,
    },
    ("name", "image", "securityContext", "resources"),
)
POD = Fields(
    {
        **dict.fromkeys(
            (
                "automountServiceAccountToken",
                "nodeSelector",
                "restartPolicy",
                "terminationGracePeriodSeconds",
                "tolerations",
                "volumes",
            ),
            ANY,
        ),
        "securityContext": Fields(
            dict.fromkeys(("runAsNonRoot", "runAsUser", "runAsGroup", "fsGroup", "seccompProfile"), ANY),
            ("runAsNonRoot", "runAsUser", "seccompProfile"),
        ),
        "containers": CONTAINER,
    },
    ("securityContext", "containers"),
)
TEMPLATE = Fields({"metadata": ANY, "spec": POD}, ("spec",))
HEAD = Fields(
    {**dict.fromkeys(("serviceType", "rayStartParams", "labels", "resources"), ANY), "template": TEMPLATE},
    ("rayStartParams", "template"),
)
WORKERS = Fields(
    {
        **dict.fromkeys(("groupName", "replicas", "minReplicas", "maxReplicas", "numOfHosts"), ANY),
        **dict.fromkeys(("idleTimeoutSeconds", "labels", "resources", "rayStartParams"), ANY),
        "template": TEMPLATE,
    },
    ("groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"),
)
CLUSTER = Fields(
    {
        "rayVersion": ANY,
        "authOptions": Fields({"mode": ANY}, ("mode",)),
        "enableInTreeAutoscaling": ANY,
        "autoscalerOptions": Fields(
            {
                **dict.fromkeys(("version", "idleTimeoutSeconds", "upscalingMode", "env"), ANY),
                "resources": RESOURCES,
                "securityContext": SECURITY,
            }
        ),
        "headGroupSpec": HEAD,
        "workerGroupSpecs": WORKERS,
    },
    ("rayVersion", "authOptions", "headGroupSpec"),
)
JOB = Fields(
    {
        **dict.fromkeys(("entrypoint", "runtimeEnvYAML", "submissionMode", "backoffLimit"), ANY),
        **dict.fromkeys(("shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "metadata"), ANY),
        "submitterPodTemplate": TEMPLATE,
        "rayClusterSpec": CLUSTER,
    },
    ("entrypoint", "rayClusterSpec"),
)
SERVICE = Fields({"serveConfigV2": ANY, "rayClusterConfig": CLUSTER}, ("serveConfigV2", "rayClusterConfig"))
KINDS = {"RayCluster": CLUSTER, "RayJob": JOB, "RayService": SERVICE}


def problems(tree: Any, fields: Fields, place: str) -> Iterator[str]:
    """One line for each key that there is no field for, and each one that is missing."""
    if isinstance(tree, list):
        for number, value in enumerate(tree):
            yield from problems(value, fields, f"{place}[{number}]")
    elif fields.below:
        if not isinstance(tree, dict):
            yield f"{place}: settings are wanted"
            return
        yield from (f"{place}.{key}: no such field" for key in sorted(tree.keys() - fields.below.keys()))
        yield from (f"{place}.{key}: missing" for key in fields.required if key not in tree)
        for key in tree.keys() & fields.below.keys():
            yield from problems(tree[key], fields.below[key], f"{place}.{key}")
