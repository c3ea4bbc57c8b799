"""Backbones: how a pretrained model reads an example, is trained on it and gives an answer."""
