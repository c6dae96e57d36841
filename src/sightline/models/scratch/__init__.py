"""A vision-language model from scratch, small enough to be read in half an hour: `vit`, `decoder` and `moe` are plain PyTorch.

`shell` makes transformers models of them. They are chosen by `model_type` in `model.vision.config` (`sightline_vit`) and
`model.language.config` (`sightline_decoder`). docs/from_pixels_to_text.md walks through them; docs/methods/seemore.md lists what
differs from seemore and seeMoE, whose sizes the recipes of the same names have.
"""
