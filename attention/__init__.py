"""Attention controllers: one file per method."""

from __future__ import annotations

from .prompt_to_prompt import PromptToPrompt

CONTROLLERS = (PromptToPrompt,)
