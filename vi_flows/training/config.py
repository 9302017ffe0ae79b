"""What every training run is told, whatever it trains; each kind of run adds its own settings in a class of its own.

:mod:`vi_flows.training.kinds` lists the kinds. Configurations travel through JSON by cattrs.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import types
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Annotated, Any, ClassVar, Literal, TypeVar, Union

import cattrs
import torch
import tyro
from cattrs.gen import make_dict_unstructure_fn, override

from vi_flows.data import RunData, load
from vi_flows.records import row_key
from vi_flows.settings import (
    Bounds,
    NonNegative,
    NonNegativeFloat,
    Positive,
    PositiveFloat,
    Seed,
    SettingsError,
    Threads,
    check_settings,
    later_settings,
)

__all__ = ["TrainConfig", "check_device", "config_from_dict", "config_to_dict", "first_difference"]


def check_device(device: str) -> None:
    """Compute something on a device, before anything is loaded or a folder is made for it.

    Raises:
        ValueError: there is no such device here, or its values can't be read back.
    """
    try:
        (torch.zeros(1, device=device) + 1).item()
    except (RuntimeError, AssertionError) as error:  # what PyTorch raises depends on what it was built for
        reason = str(error).splitlines()[0].partition(". ")[0]
        there = "cpu or cuda" if torch.cuda.is_available() else "cpu"
        raise ValueError(f"device {device!r} can't be used here ({reason}); choose {there}") from error


T = TypeVar("T")

DataProtocol = Literal["clean", "paper"]
"""How a data set's images are divided among training, validation and test."""


@dataclass(frozen=True)
class TrainConfig(ABC):
    """Settings that all kinds of training runs share; a kind is a subclass with a ``kind`` and settings of its own.

    Attributes:
        kind: the kind's name in :data:`vi_flows.training.kinds.KINDS`, in ``config.json`` and on the command line.
        stackable: whether runs that differ in their seeds alone can be trained as one stacked model.
        of_the_machine: settings that don't distinguish a run from another one: where and on what it is made, and the
            path to another run.
    """

    kind: ClassVar[str]
    stackable: ClassVar[bool] = False
    of_the_machine: ClassVar[tuple[str, ...]] = (
        "data_root", "start_from", "checkpoint_seconds", "device", "threads",
    )  # fmt: skip

    dataset: str = "digits"
    """Data set by name; `vi-flows data list` shows them."""
    data_root: Path | None = None
    """Folder with the data files; default: VI_FLOWS_DATA, else the download cache."""
    protocol: DataProtocol = "clean"
    """clean: train split, weights chosen on the validation split. paper: train and validation splits, last weights."""
    epochs: Positive = 100
    """Passes over the training data."""
    batch_size: Positive = 100
    """Rows of data a step, of all processes together; a shorter last batch is used too."""
    learning_rate: PositiveFloat = 1e-3
    """Adam's; the peak of the schedule."""
    schedule: Literal["constant", "cosine", "step"] = "cosine"
    """constant; cosine: down to zero; step: divided by ten at half and at three quarters of the epochs."""
    lr_warmup_steps: NonNegative = 0
    """Steps over which the learning rate rises linearly from zero."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled decay of the weights (AdamW): each step shrinks them by the learning rate times this."""
    ema_decay: Annotated[float, Bounds(above=0, below=1)] | None = None
    """Evaluate an exponential moving average of the weights with this decay a step."""
    clip_norm: PositiveFloat | None = None
    """Largest norm of the gradient; longer ones are scaled down."""
    validate_every: Positive = 1
    """Epochs between validations."""
    checkpoint_seconds: NonNegativeFloat = 60.0
    """At most so long between checkpoints; the end of an epoch has one, too, if the last is not seconds old."""
    start_from: Annotated[Path | None, tyro.conf.arg(aliases=["--from"], metavar="RUN")] = None
    """Run whose chosen weights this one starts from: of the same model and data; default: fresh weights."""
    seed: Seed = 0
    """Of the initial weights, the data order and all draws."""
    device: str = "cpu"
    """Torch device."""
    threads: Threads | None = None
    """CPU threads; default: torch's own choice."""

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    @abstractmethod
    def name(self) -> str:
        """A short name of the model for tables and file names."""

    @property
    @abstractmethod
    def model_settings(self) -> Any:
        """The dataclass that alone decides which weights there are."""

    @property
    def label(self) -> str:
        """The model's name in a table for people."""
        return self.name

    @classmethod
    def scored(cls, settings: Mapping[str, Any]) -> str:
        """What a model is a density of, in words: scores of different things can't be compared.

        Args:
            settings: as a record has them, of whatever version.
        """
        return "the data as they are"

    @property
    def slug(self) -> str:
        """What people call the run: ``binarized_mnist-g1-clean-e800-s0``; of a path to data only its last part,
        so that it is a file's name itself."""
        dataset = re.sub(r"[^\w.+-]", "_", PurePath(self.dataset).name)
        return f"{dataset}-{self.name}-{self.protocol}-e{self.epochs}-s{self.seed}"

    @property
    def key(self) -> str:
        """The slug and a digest of all settings but those of the machine and the run that it starts from."""
        settings = {name: value for name, value in config_to_dict(self).items() if name not in self.of_the_machine}
        return row_key(self.slug, {"kind": self.kind, **settings})

    @property
    def captured(self) -> bool:
        """Whether the training step is to be recorded on a GPU and replayed."""
        return False

    def load_data(self) -> RunData:
        """The data that the run trains on.

        Raises:
            ValueError: there is no such data set.
            DataNotFoundError: its files are missing.
        """
        return load(self.dataset, self.data_root)

    def check_batches(self, rows: int) -> None:  # noqa: B027
        """Refuse minibatches that the model can't be trained on; here none, as most models take any number of rows.

        Args:
            rows: of the training data, which minibatches of ``batch_size`` are made of, and a last one of the rest.

        Raises:
            SettingsError: there is one, and what to set instead.
        """

    def _check_pairs(self, rows: int, what: str, way: str) -> None:
        """Refuse minibatches of a single row, for what takes the variance of a minibatch's rows.

        Args:
            rows: of the training data.
            what: needs two, the subject of the sentence.
            way: to do without it.

        Raises:
            SettingsError: there is one.
        """
        if self.batch_size > 1 and rows % self.batch_size != 1:
            return
        other = f"choose another --batch-size than {self.batch_size}, or " if rows > 1 else ""
        raise SettingsError(
            f"{what} needs two rows in every minibatch, and {rows} training rows in minibatches of "
            f"{self.batch_size} leave a single one: {other}{way}"
        )

    @property
    def num_in_turn(self) -> int:
        """Networks of which a step trains one, the next in turn."""
        return 1

    def learning_rate_at(self, step: int, total_steps: int) -> float:
        """Learning rate of step ``step`` (from 0) of ``total_steps``."""
        rate = self.learning_rate
        if self.lr_warmup_steps:
            rate *= min(1.0, (step + 1) / self.lr_warmup_steps)
        progress = step / max(total_steps, 1)
        if self.schedule == "cosine":
            rate *= 0.5 * (1 + math.cos(math.pi * progress))
        elif self.schedule == "step":
            rate *= 0.1 ** ((progress >= 0.5) + (progress >= 0.75))
        return rate

    def kl_weight_at(self, epoch: float) -> float:
        """Weight of the KL term after ``epoch`` epochs, counted in fractions: 1 where there is none, or no warm-up."""
        return 1.0

    def num_particles_at(self, epoch: int) -> int:
        """Draws a row in epoch ``epoch``, counted from 0: 1 where nothing is drawn."""
        return 1


def config_to_dict(config: Any) -> dict[str, Any]:
    """A configuration as JSON-ready values; of a choice among classes, ``type`` names the class.

    Settings that are marked :data:`~vi_flows.settings.LATER` are left out where they are at their default.
    """
    return _CONVERTER.unstructure(config)


def config_from_dict(kind: type[T], values: dict[str, Any]) -> T:
    """The configuration of class ``kind`` that :func:`config_to_dict` wrote.

    Raises:
        ValueError: a setting is unknown to this version, missing, of another type or out of its bounds.
    """
    if not isinstance(values, dict):
        raise ValueError(f"settings are names with values, got {values!r}")
    try:
        return _CONVERTER.structure(values, kind)
    except cattrs.BaseValidationError as error:
        found = "; ".join(cattrs.transform_error(error, path="settings", format_exception=_in_words))
        raise ValueError(f"{found}; correct it, or take the version of vi_flows that wrote it") from error


def _in_words(error: BaseException, kind: type | None) -> str:
    if isinstance(error, cattrs.ForbiddenExtraKeysError):
        return f"unknown setting {', '.join(sorted(error.extra_fields))}"
    if isinstance(error, KeyError):
        return f"missing setting {error.args[0]}"
    return str(error)


def _settings_classes(hint: Any) -> list[type]:
    """The classes of a union of two or more dataclasses, with or without ``None``; empty for any other type."""
    if typing.get_origin(hint) not in (Union, types.UnionType):
        return []
    options = [typing.get_args(o)[0] if typing.get_origin(o) is Annotated else o for o in typing.get_args(hint)]
    classes = [option for option in options if option is not type(None)]
    return classes if len(classes) > 1 and all(map(dataclasses.is_dataclass, classes)) else []


def _make_converter() -> cattrs.Converter:
    converter = cattrs.Converter(forbid_extra_keys=True)
    # Scalars pass as they are: the configurations check their own types, where cattrs would turn "3" into 3.
    for scalar in (bool, int, float, str):
        converter.register_structure_hook(scalar, lambda value, _: value)

    def structure(hint: Any, _: cattrs.Converter) -> Callable[[Any, Any], Any]:
        classes = {kind.__name__: kind for kind in _settings_classes(hint)}

        def revive(value: Any, _: Any) -> Any:
            if value is None:
                return None
            if not isinstance(value, dict) or value.get("type") not in classes:
                raise ValueError(f"must have a type among {', '.join(classes)}, got {value!r}")
            values = {name: inner for name, inner in value.items() if name != "type"}
            return converter.structure(values, classes[value["type"]])

        return revive

    def unstructure(hint: Any, _: cattrs.Converter) -> Callable[[Any], Any]:
        return lambda value: None if value is None else {"type": type(value).__name__, **converter.unstructure(value)}

    def without_defaults(hint: type, _: cattrs.Converter) -> Callable[[Any], Any]:
        left_out = {name: override(omit_if_default=True) for name in later_settings(hint)}
        return make_dict_unstructure_fn(hint, converter, **left_out)  # type: ignore[arg-type]

    converter.register_unstructure_hook_factory(lambda hint: bool(later_settings(hint)), without_defaults)
    converter.register_structure_hook_factory(lambda hint: bool(_settings_classes(hint)), structure)
    converter.register_unstructure_hook_factory(lambda hint: bool(_settings_classes(hint)), unstructure)
    return converter


_CONVERTER = _make_converter()


def first_difference(first: Any, second: Any, left_out: Sequence[str] = ()) -> tuple[str, Any, Any] | None:
    """Dotted name and values of the first setting that two configurations don't share, ``None`` where they are equal.

    Settings of ``left_out`` don't count.
    """
    # As JSON, which knows one kind of list.
    one, other = (_leaves(json.loads(json.dumps(config_to_dict(settings)))) for settings in (first, second))
    for name in [*other, *one]:
        if name not in left_out and one.get(name) != other.get(name):
            return name, one.get(name), other.get(name)
    return None


def _leaves(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names."""
    if not isinstance(settings, dict):
        return {prefix: settings}
    found: dict[str, Any] = {}
    for name, inner in settings.items():
        found |= _leaves(inner, f"{prefix}.{name}" if prefix else name)
    return found
