"""What is measured: Safelight with a null provider, Celery, Dramatiq, and a plain FastAPI service beside it."""
