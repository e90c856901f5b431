"""Safelight: self-hosted generation jobs that nothing can lose."""
