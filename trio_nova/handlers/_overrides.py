"""Which hooks of a handler are its own: the default ones cost nothing, as they are not called."""

from __future__ import annotations

__all__ = ["overrides"]


def overrides(handler: object, base: type, *hooks: str) -> bool:
    """Return whether any of these hooks does something else than that of `base`, also in what a handler wraps."""
    for name in hooks:
        hook = getattr(handler, name)
        if getattr(hook, "__func__", hook) is not getattr(base, name):
            return True
    return False
