"""What a server has against a workflow, in the words and by the fields of the request."""

from collections.abc import Mapping
from typing import Any, NoReturn

from safelight.providers.comfyui.graph import Fault, Plan, refuse, title_of


def reject(plan: Plan, told: Any, node_errors: Any) -> NoReturn:
    """Raise `InvalidParameters` with what is useful in ComfyUI's answer, which is mostly below the nodes."""
    problems = [
        _problem(plan, node_id, found)
        for node_id, errors in (node_errors.items() if isinstance(node_errors, dict) else ())
        for found in (errors.get("errors") or ())
    ]
    if not problems:
        error: Mapping[str, Any] = told if isinstance(told, dict) else {"message": told}
        extra: Mapping[str, Any] = error.get("extra_info") or {}
        said = " ".join(str(error.get(name) or "") for name in ("message", "details")).strip()
        if error.get("type") == "missing_node_type":
            said = f"The ComfyUI server has no node type {extra.get('class_type')!r} (node {extra.get('node_id')})."
        node_id = str(extra.get("node_id") or "")
        where = plan.field_of(node_id) if node_id else plan.root
        problems = [Fault(where, said or "The ComfyUI server refuses the workflow.")]
    refuse(problems)
    raise AssertionError


def _problem(plan: Plan, node_id: str, found: Mapping[str, Any]) -> Fault:
    extra: Mapping[str, Any] = found.get("extra_info") or {}
    name = extra.get("input_name")
    said = str(found.get("details") or "")
    if found.get("type") == "exception_during_inner_validation":  # blames the node that was reached, not the culprit
        said = f"{extra.get('exception_type')}: {extra.get('exception_message')}"
    message = f"{title_of(plan.graph, node_id)} (node {node_id}): {found.get('message')}"
    if said and said != name:
        message += f": {said}"
    elif name:
        message += f": {name}"
    return Fault(plan.field_of(node_id, str(name) if name else None), f"{message[:1000]}.")
