"""Fine-tuning of a Llama on chats, with the loss on the assistant's answers only: all parameters, or LoRA's.

python -m research.train --config=configs/llama_finetune.py            # smollm2 if available, else embedded
python -m research.train --config=configs/llama_finetune.py:embedded
python -m research.train --config=configs/llama_finetune.py:smollm2 --config.init_from=FOLDER
python -m research.train --config=configs/llama_finetune.py:smollm2 --config.data.train=chats.jsonl

A line of chats.jsonl is {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}, …]}.
The text of a chat is that of the model's own template, and the run keeps the template with the tokenizer:
python -m research.generate --workdir=RUN --chat. Whole chats are packed into rows and do not see each other. To train
all parameters: --config.train.lora.rank=None --config.optimizer.learning_rate=2e-5.

Measured on 2 CPU cores with AMX, JAX 0.10.1, seed 0, with other work on the machine, on the generated instructions,
whose validation is about words and numbers that training lacks:
  embedded: validation loss 1.4561, accuracy 0.5638 of the answers' bytes; 2 minutes and 9 seconds of processor time. It
    learns the form of the answers, and to count words, but not to copy words or numbers that it has not seen: of 156
    chats with one question, 11 answers are right to the end, each byte given those before it.
  smollm2: validation loss 0.3337, accuracy 0.9109 of the answers' tokens, and 104 of those 156; before training,
    measured by a step with learning rate 1e-30, loss 1.9816 and accuracy 0.6303. 20 minutes and 21 seconds of processor
    time, and 8 GB of memory. AdamW's state is 7.4 MB; that of all parameters would be 1,076 MB. The logits of the
    exported folder equal the run's, and those computed with the additions beside the kernels up to 1.1e-4, for logits
    of up to 45.
"""

from ml_collections import ConfigDict

from research.configs.defaults import decoder, defaults

PRESETS = ("embedded", "smollm2")
FULL = "smollm2"


def get_config(preset: str = "") -> ConfigDict:
    """Presets: `embedded`, `smollm2`."""
    config = defaults()
    config.preset = preset or FULL
    config.task = ConfigDict({"name": "language_model"})
    # Instructions with answers that this project generates; --config.data.train=FILE takes own chats instead.
    config.data.name = "instructions"
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_fraction = 0.05
    config.optimizer.clip_norm = 1.0
    config.train.lora.targets = "attention/(query|key|value|output)/kernel"
    config.eval.metric = "loss"
    config.eval.mode = "min"
    {"embedded": _embedded, "smollm2": _smollm2}[config.preset](config)
    return config


def _llama(
    hidden_size: int, num_layers: int, num_heads: int, *, num_kv_heads: int, mlp_size: int, vocab_size: int
) -> ConfigDict:
    model = decoder(hidden_size, num_layers, num_heads, vocab_size=vocab_size, max_positions=512)
    model.update(
        num_kv_heads=num_kv_heads,
        mlp_size=mlp_size,
        position_encoding="rotary",
        norm="rmsnorm",
        activation="swiglu",
        scale_residual_init=False,
    )
    return model


def _chats(tokenizer: str, vocab_size: int, row_length: int) -> ConfigDict:
    return ConfigDict(
        {
            "name": "chat",
            "inputs": ("messages",),  # a column of chats; or two of prompts and answers
            "tokenizer": tokenizer,  # bpe, byte, character: learned from the training split; or a tokenizer.json
            "vocab_size": vocab_size,
            "chat_template": "chatml",  # chatml; or a folder with a template
            "end_of_text": "<|im_end|>",  # the token at which a text ends; with chatml also each message; "": none
            "max_length": row_length,  # of a chat; longer ones are truncated
            "row_length": row_length,
        }
    )


def _embedded(config: ConfigDict) -> None:
    """A small model from random weights, which learns the form of the answers; needs no network."""
    # Bytes: with so few texts, pairs of them would be words of the training split.
    config.model = _llama(128, 4, 4, num_kv_heads=2, mlp_size=384, vocab_size=258)
    config.data.transform = _chats("byte", 258, 320)
    config.optimizer.learning_rate = 3e-3
    config.optimizer.weight_decay = 0.1
    config.train.epochs = 4
    config.train.batch_rows = 8
    config.eval.batch_rows = 16
    config.eval.every_steps = 75


def _smollm2(config: ConfigDict) -> None:
    """SmolLM2-135M-Instruct (Allal et al. 2025) with low-rank additions; on a CPU in minutes."""
    config.init_from = "HuggingFaceTB/SmolLM2-135M-Instruct"
    config.model = _llama(576, 30, 9, num_kv_heads=3, mlp_size=1536, vocab_size=49_152)
    config.model.scan = True  # compiles in a fraction of the time
    config.data.transform = _chats("bpe", 49_152, 256)
    config.train.lora.rank = 8
    config.optimizer.learning_rate = 1e-3
    config.train.epochs = 1
    config.train.batch_rows = 2
    config.eval.batch_rows = 4
    config.eval.every_steps = 60
