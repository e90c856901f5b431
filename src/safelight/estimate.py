"""How long a run takes in all, from what earlier ones took and from how far this one is."""

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, cast

import orjson

HEARD = 25.0  # percent from which a run speaks for itself alone


def expected_seconds(learnt: float | None, progress: float | None, running: float) -> float | None:
    """Seconds from the start of a run to its end; None as long as nobody can know.

    `learnt` is what such runs took (seconds), `progress` how much is done (percent), `running` for how long it runs
    (seconds). The more is done the more the run's own pace counts; one that takes longer than others has only its own.
    """
    if not progress or progress <= 0:
        return learnt
    paced = running * 100 / min(progress, 100.0)
    if learnt is None or running >= learnt:
        return paced
    weight = min(1.0, progress / HEARD)
    return (1 - weight) * learnt + weight * paced


ASKED = ("provider", "mocked", "model", "checkpoint_model", "width", "height", "batch_size")
STEPS = ("steps", "sampler")
NO_MATTER = ("seed", "text", "prompt", "prefix", "image")  # parts of names of inputs that cost no time


def estimate_key(asked: Mapping[str, Any]) -> str:
    """Jobs with the same key take about the same time: by what is asked of a provider, but for words and seeds.

    `asked` are the columns of a job by which a provider takes it.
    """
    sampling: Mapping[str, Any] = asked["sampler_params"]
    described = [
        [asked[name] for name in ASKED],
        [sampling.get(name) for name in STEPS],
        {name: value for name, value in asked["provider_options"].items() if name != "mock"},  # a script of tests
        _that_matter(asked["inputs"] or {}, with_names=False),
        [asked["template"], asked["template_definition"], _outline(asked["workflow"] or {})],
        len(asked["input_images"] or ()),
    ]
    return blake2b(orjson.dumps(described, option=orjson.OPT_SORT_KEYS), digest_size=8).hexdigest()


def _outline(workflow: Mapping[str, Any]) -> dict[str, Any]:
    """Its nodes, links, numbers and names of models."""
    nodes = {name: cast(Mapping[str, Any], node) for name, node in workflow.items() if isinstance(node, dict)}
    return {
        name: [node.get("class_type"), _that_matter(node.get("inputs") or {}, with_names=True)]
        for name, node in nodes.items()
    }


def _that_matter(inputs: Any, *, with_names: bool) -> dict[str, Any]:
    """The inputs that may change how long it takes; what people write freely is left out `with_names` of models too."""
    given = cast(Mapping[str, Any], inputs) if isinstance(inputs, dict) else {}
    return {
        name: value
        for name, value in given.items()
        if (with_names or not isinstance(value, str))
        and (isinstance(value, list) or not any(part in name.lower() for part in NO_MATTER))
    }
