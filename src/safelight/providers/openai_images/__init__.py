"""OpenAI's image interface, and servers that took it over."""

from safelight.providers.openai_images.provider import BASE_URL, OpenAIImages

__all__ = ["BASE_URL", "OpenAIImages"]
