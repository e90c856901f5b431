"""Which jobs take about equally long, so that what one took tells of the next."""

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, cast

import orjson

from safelight.providers.parameters import Parameters

STEPS = ("steps", "sampler")
NO_MATTER = ("seed", "text", "prompt", "prefix", "image")  # parts of names of inputs that cost no time


def estimate_key(provider: str, asked: Parameters, *, mocked: bool) -> str:
    """Jobs with the same key take about the same time: by what is asked of a provider, but for words and seeds."""
    described = [
        [provider, mocked, asked.model, asked.checkpoint_model, asked.width, asked.height, asked.batch_size],
        [asked.sampler_params.get(name) for name in STEPS],
        {name: value for name, value in asked.provider_options.items() if name != "mock"},  # a script of tests
        _that_matter(asked.inputs, with_names=False),
        [asked.template, asked.template_definition, _outline(asked.workflow or {})],
        len(asked.pictures),
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
