"""Decoders that nobody trained."""

from pathlib import Path

import diffusers
import torch

from edge_sd.decoder import Decoder, load_decoder


def same_size_decoder(folder: Path) -> Decoder:
    """diffusers' smallest, of three channels, 8 px to 8 px, every weight random; saved in `folder`."""
    torch.manual_seed(1)
    theirs = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8,), decoder_block_out_channels=(8,), num_encoder_blocks=(1,), num_decoder_blocks=(1,),
        latent_channels=3, scaling_factor=0.7,
    )  # fmt: skip
    theirs.save_pretrained(folder)
    return load_decoder(folder)
