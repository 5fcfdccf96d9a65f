"""Pretrained encoders in and out, in the layout of the transformers library, without torch and without that library.

families.py    BERT, RoBERTa and DistilBERT: what their configs and tensors are called, and what they are here
source.py      where weights are: a folder, a hub id, or a run directory
tensors.py     safetensors files and this project's parameters
pretrained.py  a config with `init_from` -> the resolved config, and what makes fresh parameters pretrained ones
export.py      a run -> a folder that transformers opens
"""
