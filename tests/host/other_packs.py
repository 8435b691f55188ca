"""Small packs as other people write them, for the tests of composition, and stock patches beside
them; larger ones are in mechanisms.py."""

from __future__ import annotations

from typing import Any

import torch


def image_prompt(model: Any, weight: float = 0.5, seed: int = 11) -> Any:
    """In the manner of IP-Adapter: every cross-attention answers image tokens too, on conditioned
    chunks only.

    It takes the attn2 slots by block number, computes the text part itself and finds its chunks
    through cond_or_uncond.
    """
    from comfy.ldm.modules.attention import optimized_attention

    tokens = 4
    made: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def content(width: int) -> tuple[torch.Tensor, torch.Tensor]:
        if width not in made:
            generator = torch.Generator().manual_seed(seed + width)
            made[width] = tuple(torch.randn(1, tokens, width, generator=generator) for _ in "kv")
        return made[width]

    def patch(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, extra: dict[str, Any]
    ) -> torch.Tensor:
        out = optimized_attention(q, k, v, extra["n_heads"])
        chunks = extra["cond_or_uncond"]
        rows = len(q) // len(chunks)
        key, value = (one.expand(rows, -1, -1).to(q) for one in content(q.shape[-1]))
        parts = [
            optimized_attention(q[i * rows : (i + 1) * rows], key, value, extra["n_heads"])
            * (weight * (index == 0))
            for i, index in enumerate(chunks)
        ]
        return out + torch.cat(parts)

    clone = model.clone()
    for stage, numbers in {"input": range(12), "output": range(12), "middle": range(1)}.items():
        for number in numbers:
            clone.set_model_attn2_replace(patch, stage, number)
    return clone


def sharpener(model: Any, strength: float = 1.2) -> Any:
    """Scales queries before their projection and takes some attn1 slots, block by block index."""
    from comfy.ldm.modules.attention import optimized_attention

    def scale(
        n: torch.Tensor, context: Any, value: Any, extra: dict[str, Any]
    ) -> tuple[Any, Any, Any]:
        return n * strength, context, value

    def patch(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, extra: dict[str, Any]
    ) -> torch.Tensor:
        return optimized_attention(q * strength, k, v, extra["n_heads"])

    clone = model.clone()
    clone.set_model_attn2_patch(scale)
    clone.set_model_attn1_output_patch(lambda n, extra: n * strength)
    for index in range(10):
        clone.set_model_attn1_replace(patch, "middle", 0, index)
    return clone


def lora(model: Any, seed: int = 5) -> Any:
    """A LoRA on two attention projections, through the host's own loader."""
    import comfy.sd

    return comfy.sd.load_lora_for_models(model, None, lora_weights(model, seed), 0.5, 0.0)[0]


def free_u(model: Any) -> Any:
    """The stock FreeU, its channels those of the small models."""
    from comfy_extras.nodes_freelunch import FreeU_V2

    execute = getattr(FreeU_V2, "execute", None)
    if execute is not None:
        return execute(model, 1.3, 1.4, 0.9, 0.2).args[0]
    return FreeU_V2().patch(model, 1.3, 1.4, 0.9, 0.2)[0]


def guidance(model: Any) -> Any:
    """The stock Perturbed-Attention Guidance."""
    from comfy_extras.nodes_pag import PerturbedAttentionGuidance

    return PerturbedAttentionGuidance.execute(model, 3.0).args[0]


def token_merging(model: Any) -> Any:
    """The stock Tome Patch Model."""
    from comfy_extras.nodes_tomesd import TomePatchModel

    return TomePatchModel.execute(model, 0.5).args[0]


def control_net(model: Any, settings: dict[str, Any], seed: int = 3) -> Any:
    """A ControlNet of the model's own shape with random weights."""
    import comfy.cldm.cldm
    import comfy.controlnet
    import comfy.ops

    config = {
        key: value
        for key, value in settings.items()
        if key not in ("out_channels", "transformer_depth_output")
    }
    network = comfy.cldm.cldm.ControlNet(
        hint_channels=3,
        operations=comfy.ops.disable_weight_init,
        device=torch.device("cpu"),
        **config,
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in network.parameters():
            fan = weight[0].numel() if weight.ndim > 1 else 1
            weight.copy_(
                torch.randn(weight.shape, generator=generator)
                * (0.5 / fan**0.5 if weight.ndim > 1 else 0.1)
            )
    return comfy.controlnet.ControlNet(network.eval(), load_device=torch.device("cpu"))


def smoothed_energy(model: Any, scale: float = 3.0) -> Any:
    """In the manner of SEG: the network is asked again with the middle's queries averaged, and the
    answer moves away from that one."""
    import comfy.model_patcher
    import comfy.samplers
    from comfy.ldm.modules.attention import optimized_attention

    def averaged(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, extra: dict[str, Any], mask: Any = None
    ) -> torch.Tensor:
        return optimized_attention(q.mean(1, True).expand_as(q), k, v, extra["n_heads"])

    def after(args: dict[str, Any]) -> torch.Tensor:
        options = comfy.model_patcher.set_model_options_patch_replace(
            args["model_options"].copy(), averaged, "attn1", "middle", 0
        )
        (worse,) = comfy.samplers.calc_cond_batch(
            args["model"], [args["cond"]], args["input"], args["sigma"], options
        )
        return args["denoised"] + (args["cond_denoised"] - worse) * scale

    clone = model.clone()
    clone.set_model_sampler_post_cfg_function(after)
    return clone


def perp_neg(model: Any, empty: Any, scale: float = 1.0) -> Any:
    """The stock Perp-Neg."""
    from comfy_extras.nodes_perpneg import PerpNeg

    return PerpNeg.execute(model, empty, scale).args[0]


def normalized(model: Any) -> Any:
    """The stock Normalized Attention Guidance."""
    from comfy_extras.nodes_nag import NAGuidance

    return NAGuidance.execute(model, 5.0, 0.5, 1.5).args[0]


def hyper_tile(model: Any) -> Any:
    """The stock HyperTile."""
    from comfy_extras.nodes_hypertile import HyperTile

    return _first(HyperTile.execute(model, 64, 2, 0, False))


def cached(model: Any, node: str) -> Any:
    """The stock EasyCache or LazyCache, as its node sets it."""
    from comfy_extras import nodes_easycache

    kind = {"EasyCache": nodes_easycache.EasyCacheNode, "LazyCache": nodes_easycache.LazyCacheNode}
    return _first(kind[node].execute(model, 0.2, 0.15, 0.95, False))


def _first(output: Any) -> Any:
    """The first output of a node of either API."""
    return (getattr(output, "args", None) or output)[0]


def lora_weights(model: Any, seed: int = 5) -> dict[str, torch.Tensor]:
    """A LoRA's file on two attention projections, for the host's loaders."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name in (
        "middle_block.1.transformer_blocks.0.attn1.to_q",
        "middle_block.1.transformer_blocks.0.attn2.to_v",
    ):
        rows, columns = model.model.diffusion_model.get_submodule(name).weight.shape
        key = "lora_unet_" + name.replace(".", "_")
        weights[f"{key}.lora_up.weight"] = torch.randn(rows, 2, generator=generator)
        weights[f"{key}.lora_down.weight"] = torch.randn(2, columns, generator=generator)
        weights[f"{key}.alpha"] = torch.tensor(2.0)
    return weights
