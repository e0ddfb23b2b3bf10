"""Helios, a video model: diffusers' own transformer, VAE and pipeline, with op sets mounted on the transformer.

sites     where ops are mounted, and how; modulation: what its blocks read there
loading   checkpoints
sampling  latents of a prompt, and the frames of latents
model     implements `validation.samples.model`
"""
