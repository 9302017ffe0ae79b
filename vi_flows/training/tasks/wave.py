"""The training task of WaveNet: bits a sample of recorded speech."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
import tyro
from torch import Tensor

from vi_flows.autoregressive import WaveNet, mu_law_decode, mu_law_encode
from vi_flows.autoregressive.config import OUTPUTS
from vi_flows.data.speech import NUM_DIGITS, SpeechData, load_speech
from vi_flows.evaluation import NOT_KEPT, Parts
from vi_flows.evaluation.ngram import NGram
from vi_flows.evaluation.nll import half_width, interval_in_words
from vi_flows.records import write_atomic
from vi_flows.settings import Positive, PositiveFloat, check_settings
from vi_flows.training.config import TrainConfig
from vi_flows.training.tasks.base import DrawingSettings, Evaluation, EvaluationSettings, StepResult
from vi_flows.training.tasks.exact import ExactTask

__all__ = ["WaveConfig", "WaveTask", "WaveTrainConfig"]

NUM_LEVELS = 256
PAUSE_SECONDS = 0.25


@dataclass(frozen=True)
class WaveConfig:
    """A WaveNet; its dilations are 1, 2, 4, … in every stack."""

    width: Positive = 32
    """Features of the residual path."""
    skip_width: Positive = 64
    """Features of the skip path."""
    num_layers: Positive = 10
    """Layers of a stack."""
    num_stacks: Positive = 1
    """Stacks; each starts anew at dilation 1."""
    kernel_size: Positive = 2
    """Of the convolutions in time."""
    output: Literal["categorical", "logistic_mixture"] = "categorical"
    """categorical: a softmax over the levels; logistic_mixture: five logistic distributions, cut into their bins."""
    digit: bool = True
    """Whether the model is told which digit is spoken."""

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True)
class WaveTrainConfig(TrainConfig):
    """Train a WaveNet on recordings of spoken digits (bits/sample)."""

    kind: ClassVar[str] = "wave"

    dataset: str = "fsdd-jackson"
    """Recordings: an archive or folder of DIGIT_SPEAKER_TAKE.wav files under the data root, or a path."""
    batch_size: Positive = 4
    """Recordings a step; a shorter last batch is used too."""
    wave: Annotated[WaveConfig, tyro.conf.arg(name="")] = field(default_factory=WaveConfig)
    """The model."""
    precision: Literal["float32", "bf16"] = "float32"
    """bf16: the network's products of training steps and validations in bfloat16; tests are always in float32."""
    sample_seconds: PositiveFloat = 0.5
    """Length of what `vi-flows sample` draws."""

    @property
    def name(self) -> str:
        """Such as ``wavenet-w32-s64-l10``."""
        wave = self.wave
        parts = [f"wavenet-w{wave.width}-s{wave.skip_width}-l{wave.num_layers}"]
        parts[0] += f"x{wave.num_stacks}" if wave.num_stacks > 1 else ""
        parts += [] if wave.output == "categorical" else [wave.output]
        parts += [] if wave.digit else ["nodigit"]
        return "-".join(parts)

    @classmethod
    def scored(cls, settings: Mapping[str, Any]) -> str:
        """See :meth:`TrainConfig.scored`."""
        return "sound" + (" given the digit" if settings.get("wave", {}).get("digit", WaveConfig.digit) else "")

    @property
    def model_settings(self) -> WaveConfig:
        """The model's."""
        return self.wave

    def load_data(self) -> SpeechData:
        """The recordings.

        Raises:
            DataNotFoundError: they are missing.
            DataCorruptError: one can't be read.
        """
        return load_speech(self.dataset, self.data_root)


class WaveTask(ExactTask):
    """A WaveNet on μ-law levels of whole recordings, every sample scored, from silence before the first.

    Args:
        config: settings of the run.
        data: the recordings.
    """

    unit = "bits/sample"
    rows_scored = 10

    def __init__(self, config: WaveTrainConfig, data: SpeechData) -> None:
        super().__init__(torch.device(config.device), config.precision == "bf16")
        self.config, self.data = config, data
        self.splits = data.split(config.protocol)
        self.train_rows = _in_levels(self.splits.train).to(self.device)
        self.valid_rows = _in_levels(self.splits.valid)
        wave = config.wave
        dilations = [2**layer for _ in range(wave.num_stacks) for layer in range(wave.num_layers)]
        context_dim = NUM_DIGITS if wave.digit else 0
        self.module = WaveNet(
            data.max_steps,
            OUTPUTS[wave.output](NUM_LEVELS),
            wave.width,
            wave.skip_width,
            dilations,
            wave.kernel_size,
            context_dim,
        ).to(self.device)

    def _context(self, digits: Tensor) -> Tensor:
        if not self.config.wave.digit:
            return self.no_context(len(digits))
        return torch.nn.functional.one_hot(digits.long(), NUM_DIGITS).float().to(self.device)

    def log_probs(self, rows: Tensor) -> Tensor:
        """See :meth:`ExactTask.log_probs`; of the samples within each recording's length.

        Args:
            rows: as of :class:`~vi_flows.data.speech.SpeechData`, but with levels for samples.
        """
        rows = rows.to(self.device)
        lengths = rows[:, -2].long()
        # Elsewhere than on the CPU, asking for the longest would make the host wait.
        steps = int(lengths.max()) if self.device.type == "cpu" else self.data.max_steps
        x = rows[:, :steps].float()
        params = self.module.params(x, self._context(rows[:, -1]))
        inside = torch.arange(steps, device=self.device) < lengths[:, None]
        return (self.module.output.log_prob(params.float(), x) * inside).sum(1)

    def step(self, rows: Tensor, kl_weight: float | Tensor, num_particles: int) -> StepResult:
        """Mean bits a sample of a minibatch; there is no KL term to weight and no particle."""
        rows = rows.to(self.device)
        with self.precision():
            log_probs = self.log_probs(rows)
        loss = -log_probs.sum() / (rows[:, -2].long().sum() * math.log(2.0))
        return StepResult(loss, -loss.detach())

    def weigh(self, rows: Tensor) -> float:
        """The number of samples in the recordings."""
        return float(rows[:, -2].sum())

    @torch.no_grad()
    def validate(self) -> float | None:
        """Bits a sample over the validation recordings."""
        if not len(self.splits.valid):
            return None
        with self.precision():
            log_probs = self.scores(self.valid_rows)
        return (-log_probs.sum() / self.valid_rows[:, -2].sum() / math.log(2.0)).item()

    def evaluate(
        self, rows: Tensor, settings: EvaluationSettings, progress: bool, parts: Parts = NOT_KEPT
    ) -> Evaluation:
        """Exact bits a sample, beside those of a trigram model that was counted on the training recordings.

        Args:
            rows: recordings of a split.
            settings: which rows; nothing is drawn by the seed.
            progress: show a bar.
            parts: not looked at: this is quick enough to begin anew.

        Returns:
            ``bits_per_sample`` with its 95 % ``interval`` (the linearised ratio over recordings), the trigram model's
            and that of always saying the uniform distribution; the scores, ``weighted_bits_per_sample``, are each
            recording's bits over the mean number of samples, so that the figure is their mean.
        """
        recordings = _in_levels(settings.chosen(rows))
        log_probs, lengths = self.exact_scores(recordings, progress), recordings[:, -2].double()
        bits = -log_probs / math.log(2.0)
        mean = (bits.sum() / lengths.sum()).item()
        residual = (bits - mean * lengths) / lengths.mean()
        half = half_width(residual)
        baseline = NGram(3, NUM_LEVELS, [_levels(row) for row in _in_levels(self.splits.train)])
        counted = sum(baseline.log_probs(_levels(row)).sum() for row in recordings) / -math.log(2.0)
        figures = {
            "bits_per_sample": mean,
            "interval": [mean - half, mean + half],
            "trigram_bits_per_sample": counted / lengths.sum().item(),
            "exact": True,
            "num_rows": len(bits),
            "num_audio_samples": int(lengths.sum()),
            "receptive_field": self.module.receptive_field,
            "parameters": sum(p.numel() for p in self.module.parameters()),
        }
        return Evaluation(figures, {"weighted_bits_per_sample": (bits / lengths.mean()).float()})

    def report(self, record: dict[str, Any]) -> list[str]:
        """Bits a sample, and the baseline's."""
        return [
            f"{record['bits_per_sample']:.4f} bits/sample (exact), {interval_in_words(record['interval'], 4)}",
            f"trigram model: {record['trigram_bits_per_sample']:.4f} bits/sample; uniform: {math.log2(NUM_LEVELS):.0f}",
            f"{record['num_audio_samples']} samples; {record['parameters']} parameters; "
            f"{record['receptive_field']} samples seen",
        ]

    @torch.no_grad()
    def draw(self, folder: Path, settings: DrawingSettings) -> list[Path]:
        """Write WAV files: ``rows × columns`` samples, digit after digit, as many recordings, and continuations.

        A continuation keeps the first quarter of the length from a test recording.

        Args:
            folder: where to.
            settings: how many.
        """
        count = settings.rows * settings.columns
        steps = max(4, round(self.config.sample_seconds * self.data.rate))
        digits = torch.arange(count) % NUM_DIGITS
        model = self.module.with_length(steps)
        samples = model.generate(self._context(digits), progress=True)
        test = _in_levels(self.splits.test)
        # As the samples: digit after digit, each time another take.
        takes = [test[test[:, -1] == digit] for digit in range(NUM_DIGITS)]
        kept = [takes[d][(i // NUM_DIGITS) % len(takes[d])] for i, d in enumerate(digits.tolist()) if len(takes[d])]
        recordings = torch.stack(kept) if kept else test[:count]  # there are takes of other digits alone
        silence = int(mu_law_encode(torch.zeros(()), NUM_LEVELS))
        missing = max(0, steps - self.data.max_steps)
        starts = torch.nn.functional.pad(recordings[:, :-2], (0, missing), value=silence)[:, :steps]
        ends = model.extend(starts.float().to(self.device), steps // 4, self._context(recordings[:, -1]), progress=True)
        sounds = {
            "samples": list(samples.cpu()),
            "data": [row[: int(row[-2])].float() for row in recordings],
            "continuations": list(ends.cpu()),
        }
        return [self._write(folder / f"{name}.wav", parts) for name, parts in sounds.items()]

    def _write(self, path: Path, parts: list[Tensor]) -> Path:
        """The parts one after the other, with pauses."""
        from scipy.io import wavfile

        pause = np.zeros(round(PAUSE_SECONDS * self.data.rate), dtype=np.int16)
        pieces = [(mu_law_decode(part) * 32767).round().to(torch.int16).numpy() for part in parts]
        content = io.BytesIO()
        wavfile.write(content, self.data.rate, np.concatenate([x for piece in pieces for x in (piece, pause)]))
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, content.getvalue())
        return path


def _levels(row: Tensor) -> np.ndarray:
    """The levels of one recording."""
    return row[: int(row[-2])].numpy()


def _in_levels(rows: Tensor) -> Tensor:
    """Rows of recordings with the levels of the μ-law for their samples."""
    levels = mu_law_encode(rows[:, :-2].double() / 32768.0, NUM_LEVELS)
    return torch.cat([levels.to(torch.int16), rows[:, -2:]], 1)
