"""ComfyUI: one or many servers of one's own, by parameters, by template, or with the caller's own workflow."""

from safelight.providers.comfyui.graph import Fault
from safelight.providers.comfyui.pool import problems_on
from safelight.providers.comfyui.provider import ComfyUI
from safelight.providers.comfyui.server import Pace
from safelight.providers.comfyui.template import (
    InvalidTemplate,
    Template,
    TemplateInput,
    builtin_templates,
    check_template,
    shared_templates,
)

__all__ = [
    "ComfyUI",
    "Fault",
    "InvalidTemplate",
    "Pace",
    "Template",
    "TemplateInput",
    "builtin_templates",
    "check_template",
    "problems_on",
    "shared_templates",
]
