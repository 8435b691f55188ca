"""Attention controllers: one file per method."""

from __future__ import annotations

from .attention_maps import AttentionMaps
from .local_blend import LocalBlend
from .masactrl import MasaCtrl
from .prompt_to_prompt import PromptToPrompt

CONTROLLERS = (PromptToPrompt, LocalBlend, MasaCtrl, AttentionMaps)
