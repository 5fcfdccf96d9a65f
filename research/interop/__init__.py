"""Pretrained networks in and out, in the layout of the transformers library, without torch and without that library.

kinds.py       what a kind of networks says of itself; each is a line of KINDS
encoders.py    BERT, RoBERTa and DistilBERT with their tokenizers
families.py    what their configs and tensors are called, and what they are here
resnets.py     ResNets with the normalization of their images
source.py      where weights are: a folder, a hub id, or a run directory
tensors.py     safetensors files and this project's variables
pretrained.py  a config with `init_from` -> the resolved config, and what makes fresh variables pretrained ones
export.py      a run -> a folder that transformers opens
"""

from research.interop.encoders import ENCODERS
from research.interop.kinds import Architecture
from research.interop.resnets import RESNETS

KINDS: tuple[Architecture, ...] = (ENCODERS, RESNETS)
