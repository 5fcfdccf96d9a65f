"""Every key that all experiments share, with its default. The experiments change what they need."""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def defaults() -> ConfigDict:
    """The sections `model`, `task` and `data.transform` are each experiment's own. Other keys can't be added."""
    config = ConfigDict(
        {
            "preset": "embedded",
            "seed": 0,
            # Compute type: float32, bfloat16, float64. Parameters and optimizer state are float64 too, or else float32.
            "dtype": "float32",
            # XLA's options on a CPU: default, or convolutions: library fusion of reductions, which suits them, and with
            # several seeds one after another.
            "compiler": "default",
            # Pretrained weights to start from: a hub id, a folder, or a run directory. None starts from random weights.
            "init_from": placeholder(str),
            # A regex; parameters whose path it finds start from random weights all the same. Of twelve layers the top
            # two, and the pooler: "layer_1[01]/|pooler". Empty: all that the weights have is taken.
            "init_fresh": "",
            # Whether the full size takes an accelerator to end in reasonable time; only the choice of preset reads it.
            "needs_accelerator": False,
            "model": {},
            "task": {},
            "data": {
                # A name in research/data/load.py's SOURCES, or else a TFDS dataset's, such as "glue/sst2".
                "name": "",
                # Where TFDS data lies; None: TFDS_DATA_DIR or ~/tensorflow_datasets.
                "data_dir": placeholder(str),
                # The part of `train` that is trained on: drawn by the seed, a smaller one out of a larger. What the
                # transform learns (a vocabulary, means) comes from the whole split all the same.
                "train_fraction": 1.0,
                "workers": 0,  # processes that make batches; 0: a thread of the training process does
                "transform": {},
            },
            "optimizer": {
                # adamw, lamb, adam, sgd, rmsprop, lion, adafactor, muon: research/core/optim.py says what each is and
                # which values suit it. Or a solver, whose one step fits all training examples: closed_form, lbfgs
                "name": "adamw",
                "learning_rate": 1e-3,  # the peak
                "schedule": "constant",  # after the warm-up: constant, linear, cosine, step
                "warmup_fraction": 0.0,  # of all steps
                "end_fraction": 0.0,  # of the peak, at the last step of linear and cosine
                "drops": (0.5, 0.75),  # step: where in the run the rate becomes a tenth of what it was
                "b1": 0.9,  # adamw, lamb, adam, lion; muon, of what AdamW updates
                "b2": 0.999,  # the same, and rmsprop; 0.99 is usual for lion, 0.9 or 0.99 for rmsprop
                "eps": 1e-8,  # adamw, lamb, adam, rmsprop, muon
                "momentum": 0.9,  # sgd, rmsprop, muon; 0.95 is usual for muon
                "nesterov": False,  # the same; True is usual for muon
                "weight_decay": 0.0,  # adam, sgd, rmsprop: an L2 penalty; the others: decoupled
                # In its place, with an L2 penalty and with the solvers, scikit-learn's: LogisticRegression's C and
                # Ridge's alpha.
                "C": placeholder(float),
                "alpha": placeholder(float),
                "decay_exclude": "bias|norm",  # a regex; parameters whose path it finds are not decayed
                "clip_norm": placeholder(float),  # largest global gradient norm
                # Factor on the learning rate from one layer of an encoder to the one below; 1: the same for all.
                "layer_decay": 1.0,
                # A regex; parameters whose path it finds are not trained, as "embedding|layer_[0-5]/". Empty: none.
                "freeze": "",
                "tolerance": 1e-4,  # lbfgs ends where no entry of the objective's gradient is larger
                "max_iterations": 1000,  # lbfgs
                "factorization": "auto",  # closed_form: qr, cholesky; auto: cholesky where it is exact enough
            },
            "train": {
                # One of the two. Giving one on the command line takes the other's place.
                "epochs": placeholder(float),
                "steps": placeholder(int),
                # One of the two, for all devices together: examples an update, or rows an update, into each
                # of which as many texts are packed as fit (data.transform.row_length). The other becomes None likewise.
                # -1: all.
                "batch_size": placeholder(int),
                "batch_rows": placeholder(int),
                "accumulate": 1,  # parts that a batch goes through the model in
                # Decay of a running average of the parameters, which is evaluated too: metrics ema_…; 0: none is kept.
                "ema_decay": 0.0,
                # Replicas that are trained together, with the seeds seed, seed + 1, …; None: a run of one seed. Batches
                # are of this size for each of them.
                "seeds": placeholder(int),
                # Stop training after so long, save, and evaluate; rerun the same command to resume.
                "max_minutes": placeholder(float),
                "log_every": 20,  # steps
                # The run fails if it waits for data longer than this fraction of its time; None: it does not.
                "max_data_wait_fraction": placeholder(float),
            },
            "eval": {
                "splits": ("validation",),
                "batch_size": 256,  # examples
                "batch_rows": 32,  # instead, where train.batch_rows packs texts into rows
                "every_steps": 0,  # 0: only at the end
                # The metric, on the first of the splits, that ranks checkpoints and ends training early.
                "metric": "accuracy",
                "mode": "max",  # max, min
                "patience": 0,  # evaluations without improvement before training stops; 0: never
                "min_delta": 0.0,  # what counts as an improvement
            },
            "checkpoint": {
                "every_steps": 0,  # beside those of each evaluation and of the end; 0: no others
            },
            "mesh": {
                "data": -1,  # devices that split the batch; -1: all that the other two leave
                "fsdp": 1,
                "tensor": 1,
                # Ordered (regex of a parameter's path, (axis per dimension, …)); what none finds is on every device.
                "rules": (),
            },
        }
    )
    return config.lock()


def classification() -> ConfigDict:
    """A `task` for classes."""
    return ConfigDict(
        {
            "name": "classification",
            "label_smoothing": 0.0,
            # What an example of each class weighs in the loss: a number each, or "balanced"; None: the same. On the
            # command line also scikit-learn's {class: weight}.
            "class_weight": placeholder(object),
        }
    )


def image(*, channels: int) -> ConfigDict:
    """A `data.transform` for images, which changes nothing about them: the augmentation of training is off."""
    return ConfigDict(
        {
            "name": "image",
            "inputs": ("image",),
            "label": "label",
            "channels": channels,  # 1: grey, 3: RGB
            # How evaluation sees an image, and training where nothing is cut out at random:
            "resize": placeholder(int),  # the shorter side is brought to so many pixels; None: it is not
            "size": placeholder(int),  # then the square in the centre is cut out; None: all is used
            "interpolation": "bilinear",  # bilinear, bicubic; of random_resized_crop too
            "augment": {
                "crop_padding": 0,  # pixels added at each side, before a crop of the same size
                "crop_border": "zero",  # what is added: zero, reflect
                # Or a crop of (least, most) of the area, brought to `size`; ImageNet's is (0.08, 1.0). None: no such.
                "random_resized_crop": placeholder(tuple),
                "aspect_ratio": (3 / 4, 4 / 3),  # of that crop, the least and the most: width / height
                "flip": False,  # half of the images, left to right
                "randaugment_ops": 0,  # operations of RandAugment an image
                "randaugment_magnitude": 9,  # their strength, 0 to 30
                "erasing": 0.0,  # the part of images in which a rectangle is erased
                "mixup": 0.0,  # alpha; 0: no image is blended with another. 0.2 is usual for ImageNet
                "cutmix": 0.0,  # alpha; 0: in no image a part is another's. 1 is usual
            },
        }
    )
