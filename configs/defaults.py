"""The keys shared by all experiments, with their defaults, which the experiments override."""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

# WikiText is tokenized into words, with signs within words separated (Merity et al. 2016).
WIKITEXT_HEADING = r"^ = [^=].* = \n?$"  # of an article; headings of sections have more than one "="
WIKITEXT_REPLACE = ((" @-@ ", "-"), (" @,@ ", ","), (" @.@ ", "."))


def defaults() -> ConfigDict:
    """The default config. Experiments fill `model`, `task` and `data.transform`; other sections take no new keys."""
    config = ConfigDict(
        {
            "preset": "embedded",
            "seed": 0,
            # Modules to import first, which register models, tasks, sources or transforms: names such as
            # "my_lab.models", found in the current directory or installed, or paths of .py files.
            "imports": (),
            # Compute dtype: float32, bfloat16, float64. Parameters and optimizer state are float64 for float64, else
            # float32.
            "dtype": "float32",
            # XLA CPU option set: default, or convolutions: library fusion of reductions, and several seeds one after
            # another.
            "compiler": "default",
            # Pretrained weights to start from: a hub id, a folder, or a run directory. None starts from random weights.
            "init_from": placeholder(str),
            # A regex; parameters whose path it matches start from random weights nevertheless, e.g. the top two of
            # twelve layers and the pooler: "layer_1[01]/|pooler". Empty: all of the weights are used.
            "init_fresh": "",
            # Whether the full size needs an accelerator to finish in reasonable time; only used to choose the preset.
            "needs_accelerator": False,
            "model": {},
            "task": {},
            "data": {
                # "files", for own files; "shards", for corpora of any size; a name in research/data/load.py's SOURCES;
                # or else a TFDS dataset's, such as "glue/sst2".
                "name": "",
                # The folder of TFDS data; None: TFDS_DATA_DIR or ~/tensorflow_datasets.
                "data_dir": placeholder(str),
                # Own files: .csv, .tsv, .jsonl, .parquet, .txt, or a folder of images with a folder per class. Splits
                # without a file are cut off `train`: stratified by class, or by one of the next two.
                "train": placeholder(str),
                "validation": placeholder(str),
                "test": placeholder(str),
                "validation_fraction": 0.1,
                "test_fraction": 0.0,
                "split_seed": 0,  # not `seed`: runs of different seeds are compared on the same splits
                "group_by": placeholder(str),  # a column; all rows of a group are in one split
                "time_by": placeholder(str),  # a column of dates or numbers; the latest rows are not trained on
                # The kinds of columns, "COLUMN=KIND": number, category, text, image, key, ignored. Others are inferred.
                "kinds": (),
                # The fraction of `train` to train on: sampled by the seed, smaller ones as subsets of larger ones. What
                # the transform learns (a vocabulary, means) still comes from the whole split.
                "train_fraction": 1.0,
                # Predictions of another model for `train`, a file of research.evaluate: the task classification learns
                # their scores too. research.compress distills with it.
                "soft_labels": placeholder(str),
                # The same for further inputs without labels, JSON lines: the columns of the inputs, and `scores`.
                "unlabelled": placeholder(str),
                # The other model's [CLS] states of all of these after its last layer, a .npy file: float [N, D].
                "soft_hidden": placeholder(str),
                # data.name=shards: `train` names array_record files, whose records are texts, or Parquet files with a
                # column of texts, by globs separated by commas. They are read when needed; other splits need files of
                # their own, and are read whole. What the transform learns comes from a sample.
                "shards": {
                    # A weight for each glob in `train`: the share of documents, not of tokens, drawn from it. Empty:
                    # all are one corpus.
                    "weights": (),
                    # Documents are packed in groups of as many rows, which should divide the rows that each process
                    # makes per step. More rows: fewer tokens are cut off, and less is padding.
                    "rows": 256,
                    "documents": placeholder(int),  # of a group; None: as many as fill it on average, from the sample
                    # Neighbours in the files that remain neighbours when documents are shuffled. For Parquet files a
                    # few dozen: the row group of each is decoded.
                    "run": 1,
                    "sample": 10_000,  # documents
                },
                "workers": 0,  # processes that make batches; 0: a thread of the training process
                "transform": {},
            },
            "optimizer": {
                # adamw, lamb, adam, sgd, rmsprop, lion, adafactor, muon: research/core/optim.py describes them and
                # suitable values. Or a solver, which fits all training examples in one step: closed_form, lbfgs
                "name": "adamw",
                # With init_from: a narrow encoder (research/interop/recipes.py) replaces the learning rate and the
                # warm-up below, each unless it is given. False: they are as set here.
                "follow_encoder": False,
                "learning_rate": 1e-3,  # the peak
                "schedule": "constant",  # after the warm-up: constant, linear, cosine, step
                "warmup_fraction": 0.0,  # of all steps
                "end_fraction": 0.0,  # of the peak, at the last step of linear and cosine
                "drops": (0.5, 0.75),  # step: fractions of the run at which the rate is divided by ten
                "b1": 0.9,  # adamw, lamb, adam, lion, schedule_free_adamw; muon, for what AdamW updates
                "b2": 0.999,  # the same, and rmsprop; 0.99 is usual for lion, 0.9 or 0.99 for rmsprop
                "eps": 1e-8,  # adamw, lamb, adam, rmsprop, muon, schedule_free_adamw
                "momentum": 0.9,  # sgd, rmsprop, muon; 0.95 is usual for muon
                "nesterov": False,  # the same; True is usual for muon
                "weight_decay": 0.0,  # adam, sgd, rmsprop: an L2 penalty; the others: decoupled
                # The share of the weights of each large kernel that become 0 during training, the smallest ones first.
                "sparsity": 0.0,
                # Alternatives with an L2 penalty and with the solvers, as in scikit-learn: LogisticRegression's C and
                # Ridge's alpha.
                "C": placeholder(float),
                "alpha": placeholder(float),
                "decay_exclude": "bias|norm",  # a regex; parameters whose path it matches are not decayed
                "clip_norm": placeholder(float),  # largest global gradient norm
                # Factor on the learning rate from one layer of an encoder to the one below; 1: the same for all.
                "layer_decay": 1.0,
                # A regex; parameters whose path it matches are not trained, e.g. "embedding|layer_[0-5]/". Empty: none.
                "freeze": "",
                "tolerance": 1e-4,  # lbfgs stops when no entry of the objective's gradient is larger
                "max_iterations": 1000,  # lbfgs
                "factorization": "auto",  # closed_form: qr, cholesky; auto: cholesky where it is accurate enough
            },
            "train": {
                # One of the two. Giving one on the command line replaces the other.
                "epochs": placeholder(float),
                "steps": placeholder(int),
                # One of the two, for all devices together: examples per update, or rows per update, each packed with as
                # many texts as fit (data.transform.row_length). Giving one replaces the other. -1: all.
                "batch_size": placeholder(int),
                "batch_rows": placeholder(int),
                "accumulate": 1,  # parts in which a batch goes through the model
                # Parts of a batch whose gradients are added in a fixed order, so that the bits of a run do not depend
                # on how many devices and processes share it: a multiple of the devices. Takes memory and time.
                "exact_shards": placeholder(int),
                # Decay of a running average of the parameters, also evaluated, as metrics ema_…; 0: no average.
                "ema_decay": 0.0,
                # Replicas to train together, with the seeds seed, seed + 1, …; None: a run of one seed. Each replica
                # has batches of the size above.
                "seeds": placeholder(int),
                # LoRA (Hu et al. 2021): trains W + alpha / rank · A · B in place of the kernels W of dense layers, with
                # A and B of this rank, and freezes all other parameters.
                "lora": {
                    "rank": placeholder(int),  # None: off; all parameters are trained
                    "alpha": 16.0,
                    "dropout": 0.0,  # on the inputs of A
                    # A regex; kernels whose path it matches are adapted.
                    "targets": "attention/(query|value)/kernel",
                    # A regex; other parameters to train, such as a fresh head's: "pooler|classifier". Empty: none.
                    "trains": "",
                },
                # The time limit, including the evaluation of all eval.splits at the end, for which training may stop
                # after half of it; rerun the same command to resume.
                "max_minutes": placeholder(float),
                "log_every": 20,  # steps
                # The run fails if it waits for data for more than this fraction of its time; None: no limit.
                "max_data_wait_fraction": placeholder(float),
            },
            "eval": {
                "splits": ("validation",),
                "batch_size": 256,  # examples
                "batch_rows": 32,  # used instead if train.batch_rows packs texts into rows
                "every_steps": 0,  # 0: only at the end
                # The metric, on the first of the splits, that ranks checkpoints and decides early stopping.
                "metric": "accuracy",
                "mode": "max",  # max, min
                "patience": 0,  # evaluations without improvement before training stops; 0: never
                "min_delta": 0.0,  # the smallest change that counts as an improvement
            },
            "checkpoint": {
                "every_steps": 0,  # in addition to each evaluation and the end; 0: no others
            },
            "mesh": {
                "data": -1,  # devices that split the batch; -1: all that the other two axes leave
                "fsdp": 1,
                "tensor": 1,
                # Of the model: replicated (None), fsdp, tensor, fsdp_tensor. Or ordered (regex of a parameter's path,
                # (axis per dimension, …)); unmatched parameters are replicated.
                "rules": None,
            },
        }
    )
    return config.lock()


def classification() -> ConfigDict:
    """A `task` of classification."""
    return ConfigDict(
        {
            "name": "classification",
            "label_smoothing": 0.0,
            "soft_weight": 0.5,  # of data.soft_labels in the loss; the rest is that of the labels
            "temperature": 1.0,  # of both sides of that part
            "hidden_weight": 0.0,  # of the squared difference from data.soft_hidden, which is added
            # Weight of an example of each class in the loss: a number per class, or "balanced"; None: equal. On the
            # command line also scikit-learn's {class: weight}.
            "class_weight": placeholder(object),
        }
    )


def image(*, channels: int) -> ConfigDict:
    """A `data.transform` for images that leaves them unchanged: augmentation is off."""
    return ConfigDict(
        {
            "name": "image",
            "inputs": ("image",),
            "label": "label",
            "channels": channels,  # 1: grey, 3: RGB
            # The transform of images in evaluation, and in training without random_resized_crop:
            "resize": placeholder(int),  # resize the shorter side to this many pixels; None: don't
            "size": placeholder(int),  # then crop the central square of this size; None: don't
            "interpolation": "bilinear",  # bilinear, bicubic; also for random_resized_crop
            "augment": {
                "crop_padding": 0,  # pixels added on each side before a random crop of the original size
                "crop_border": "zero",  # the added pixels: zero, reflect
                # Or a crop of (least, most) of the area, resized to `size`; (0.08, 1.0) for ImageNet. None: no crop.
                "random_resized_crop": placeholder(tuple),
                "aspect_ratio": (3 / 4, 4 / 3),  # least and most width / height of that crop
                "flip": False,  # half of the images, left to right
                "randaugment_ops": 0,  # RandAugment operations per image
                "randaugment_magnitude": 9,  # their strength, 0 to 30
                "erasing": 0.0,  # the fraction of images in which a rectangle is erased
                "mixup": 0.0,  # alpha; 0: off. 0.2 is usual for ImageNet
                "cutmix": 0.0,  # alpha; 0: off. 1 is usual
            },
        }
    )


def decoder(hidden_size: int, num_layers: int, num_heads: int, *, vocab_size: int, max_positions: int) -> ConfigDict:
    """A decoder as GPT-2's, but without biases."""
    return ConfigDict(
        {
            "name": "decoder",
            "vocab_size": vocab_size,
            "hidden_size": hidden_size,
            "num_layers": num_layers,
            "num_heads": num_heads,
            "num_kv_heads": num_heads,  # fewer: each is shared by several heads
            "head_size": hidden_size // num_heads,
            "mlp_size": 4 * hidden_size,
            "max_positions": max_positions,
            "position_encoding": "learned",  # learned, rotary
            "rope_theta": 10_000.0,  # rotary only, as all of rope
            "rope_scaling": "none",  # none, linear, llama3: for more positions than the weights were trained with
            "rope_factor": 1.0,
            "rope_low": 1.0,  # llama3 only, as the next two
            "rope_high": 4.0,
            "rope_positions": 8192,
            "norm": "layernorm",  # layernorm, rmsnorm
            "norm_eps": 1e-5,
            "activation": "gelu",  # gelu, gelu_tanh, relu, swiglu
            "use_bias": False,
            "tie_embeddings": True,
            "dropout": 0.0,
            "attention_dropout": 0.0,
            "initializer_range": 0.02,
            "scale_residual_init": True,
            "remat": False,  # less memory for more computation
            "remat_policy": "nothing",  # what it saves nevertheless: nothing, products
            "scan": False,  # compiles in the same time whatever the number of layers
        }
    )


def token_rows(tokenizer: str, vocab_size: int, row_length: int, *, end_of_text: str) -> ConfigDict:
    """A `data.transform` of documents to rows of tokens."""
    return ConfigDict(
        {
            "name": "language_model",
            "inputs": ("text",),
            "heading": "",  # a regex: a matching record between blank ones begins a document; "": each record is one
            "replace": (),  # (text, replacement), …
            "tokenizer": tokenizer,  # bpe, byte, character: learned from the training split; or a tokenizer.json
            "vocab_size": vocab_size,
            "end_of_text": end_of_text,  # the token between documents; "": none
            "row_length": row_length,
            # Of rows in evaluation; less than row_length: they overlap, so that each token has at least
            # row_length - stride tokens before it. None: row_length.
            "stride": placeholder(int),
            "blocks": "consecutive",  # a row of training: consecutive, each part of the text once an epoch; random
        }
    )
