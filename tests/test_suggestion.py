"""What refusals say of names: right for slips, and bounded in time and length whoever sends them."""

import random
import time
from collections.abc import Callable, Iterator

import pytest

from safelight.providers.base import InvalidParameters, Parameters
from safelight.providers.comfyui import InvalidTemplate, check_template
from safelight.providers.comfyui.catalogue import Catalogue
from safelight.providers.comfyui.graph import MAX_PROBLEMS, check_graph, plan_workflow
from safelight.suggestion import MAX_LETTERS, SHOWN, did_you_mean, listed, near_names


@pytest.mark.parametrize(
    ("given", "near"),
    [("mokc", ["mock"]), ("comfy", ["comfyui"]), ("zzz", []), ("", []), ("m" * 5000, []), ({"mock": 1}, []), (7, [])],
)
def test_a_slip_is_known(given: object, near: list[str]) -> None:
    assert near_names(given, ["mock", "comfyui", "modelslab"]) == near


def test_the_nearest_is_the_first() -> None:
    assert near_names("gpt-imag-1", ["gpt-image-10", "gpt-image-1", "dall-e"], most=2) == [
        "gpt-image-1",
        "gpt-image-10",
    ]
    assert did_you_mean("gpt-imag-1", ["gpt-image-1"], most=2) == " Did you mean gpt-image-1?"
    assert did_you_mean("zzz", ["gpt-image-1"]) == ""


def test_a_list_is_short_however_long_it_is() -> None:
    assert listed(["a", "b"]) == "a, b"
    assert listed([]) == ""
    told = listed("x" * 10_000 for _ in range(10**9))
    assert told.endswith(", ...")
    assert len(told) <= SHOWN * (MAX_LETTERS + 2) + 3


def _name(letters: int = 199) -> str:
    return "".join(random.choice("ab") for _ in range(letters))


def _unknown_inputs() -> None:
    extra = {f"i{k}": 0 for k in range(600)}
    workflow = {"1": {"class_type": "EmptyImage", "inputs": extra}, "2": {"class_type": "SaveImage", "inputs": {}}}
    inputs = {_name(): {"node": "1", "input": f"i{k}", "type": "integer"} for k in range(600)}
    template = check_template({"name": "t", "title": "T", "workflow": workflow, "inputs": inputs})
    with pytest.raises(InvalidParameters) as caught:
        template.plan(Parameters(kind="image.generate", prompt="x", inputs={_name(): 1 for _ in range(300)}), 1)
    assert len(caught.value.details["problems"]) == MAX_PROBLEMS
    assert max(len(problem["message"]) for problem in caught.value.details["problems"]) < 5000


def _unknown_choices() -> None:
    choices = [_name(90) for _ in range(2500)]
    workflow = {"1": {"class_type": "A", "inputs": dict.fromkeys(map(str, range(400)), "")}}
    spec = {"node": "1", "type": "choice", "choices": choices[:5], "default": _name(90)}
    inputs = {str(k): spec | {"input": str(k)} for k in range(400)}
    inputs["0"] = inputs["0"] | {"choices": choices}
    with pytest.raises(InvalidTemplate) as caught:
        check_template({"name": "t", "title": "T", "workflow": workflow, "inputs": inputs})
    assert len(caught.value.problems) == MAX_PROBLEMS


def _twins() -> None:
    workflow = {"1": {"class_type": "A", "inputs": {str(k): 0 for k in range(1000)}}}
    inputs = {f"i{k:04}": {"node": "1", "input": str(k), "type": "integer"} for k in range(999)}
    check_template({"name": "t", "title": "T", "workflow": workflow, "inputs": inputs})
    with pytest.raises(InvalidTemplate, match="sets the same input of the same node as i0000"):
        check_template({"name": "t", "title": "T", "workflow": workflow, "inputs": inputs | {"j": inputs["i0000"]}})


def _unknown_nodes() -> None:
    info = {"input": {}, "output": [], "output_node": True, "python_module": "nodes"}
    catalogue = Catalogue.read({_name(100): info for _ in range(3000)})
    workflow = {str(k): {"class_type": _name(100), "inputs": {}} for k in range(2000)}
    plan = plan_workflow(Parameters(kind="image.generate", prompt="x", workflow=workflow))
    assert len(catalogue.problems(plan)) == MAX_PROBLEMS


def _a_long_circle() -> None:
    graph = {str(k): {"class_type": "A" * 90, "inputs": {"in": [str((k + 1) % 5000), 0]}} for k in range(5000)}
    (problem,) = check_graph(graph)
    assert "runs in a circle" in problem.message
    assert len(problem.message) < 5000


@pytest.mark.parametrize("ask", [_unknown_inputs, _unknown_choices, _twins, _unknown_nodes, _a_long_circle])
def test_what_strangers_send_is_answered_quickly(ask: Callable[[], None]) -> None:
    begun = time.thread_time()
    ask()
    assert time.thread_time() - begun < 1


def _endless() -> Iterator[str]:
    while True:
        yield "mock"


def test_not_more_names_are_looked_at_than_the_bound() -> None:
    assert near_names("mokc", _endless()) == ["mock"]
