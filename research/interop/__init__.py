"""Imports and exports pretrained networks in the layout of the transformers library, without torch or that library.

kinds.py       architecture descriptors for weight import and export, listed in KINDS
encoders.py    BERT, RoBERTa and DistilBERT with their tokenizers
families.py    the names of their settings and tensors, in transformers and here
decoders.py    GPT-2 and Llama with their tokenizers; decoder_families.py: the names of their settings and tensors
resnets.py     ResNets with the normalization of their images
source.py      the location of weights: a folder, a hub id, or a run directory
tensors.py     safetensors files and this project's variables
trained.py     weights of this project's own runs
pretrained.py  a config with `init_from` -> the resolved config, and the function that loads the pretrained variables
networks.py    a folder -> the whole network with its head
export.py      a run -> a folder that transformers opens
"""

from research.interop.decoders import DECODERS
from research.interop.encoders import ENCODERS
from research.interop.kinds import Architecture
from research.interop.resnets import RESNETS

KINDS: tuple[Architecture, ...] = (ENCODERS, RESNETS, DECODERS)
