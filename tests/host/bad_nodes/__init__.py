"""Nodes that give what nobody should feed into an edit, for the tests of its refusals."""


async def comfy_entrypoint():
    import torch
    from comfy_api.latest import ComfyExtension, io

    class BadLatent(io.ComfyNode):
        """A latent with NaN in it."""

        @classmethod
        def define_schema(cls):
            return io.Schema(
                "BadLatent", inputs=[io.Latent.Input("latent")], outputs=[io.Latent.Output()]
            )

        @classmethod
        def execute(cls, latent):
            samples = latent["samples"].clone()
            samples[0, 0, 0, 0] = float("nan")
            return io.NodeOutput({"samples": samples})

    class OtherModel(io.ComfyNode):
        """The same model with a weight patch, as a LoRA gives it."""

        @classmethod
        def define_schema(cls):
            return io.Schema(
                "OtherModel", inputs=[io.Model.Input("model")], outputs=[io.Model.Output()]
            )

        @classmethod
        def execute(cls, model):
            clone = model.clone()
            clone.add_patches({"diffusion_model.out.2.bias": (torch.ones(4),)}, 0.5)
            return io.NodeOutput(clone)

    class TransformerModel(io.ComfyNode):
        """A small diffusion transformer (SD3) with random weights."""

        @classmethod
        def define_schema(cls):
            return io.Schema("TransformerModel", outputs=[io.Model.Output()])

        @classmethod
        def execute(cls):
            import comfy.model_patcher
            import comfy.supported_models

            config = comfy.supported_models.SD3(
                {
                    "in_channels": 16,
                    "pos_embed_scaling_factor": None,
                    "depth": 2,
                    "input_size": 8,
                    "adm_in_channels": 64,
                    "context_embedder_config": {
                        "target": "torch.nn.Linear",
                        "params": {"in_features": 64, "out_features": 128},
                    },
                    "num_patches": 64,
                    "pos_embed_max_size": 8,
                    "patch_size": 2,
                }
            )
            config.set_inference_dtype(torch.float32, None)
            model = config.get_model({}, "", device=torch.device("cpu"))
            return io.NodeOutput(
                comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))
            )

    class BadNodes(ComfyExtension):
        async def get_node_list(self):
            return [BadLatent, OtherModel, TransformerModel]

    return BadNodes()
