"""Autoregressive densities: modules that give Pyro distributions."""

from vi_flows.autoregressive.base import Autoregressive, AutoregressiveDistribution
from vi_flows.autoregressive.ensemble import Ensemble
from vi_flows.autoregressive.gated_pixel_cnn import GatedPixelCNN
from vi_flows.autoregressive.made import MADE
from vi_flows.autoregressive.outputs import Bernoulli, Categorical, Gaussian, LogisticMixture, Output
from vi_flows.autoregressive.pixel_cnn import PixelCNN
from vi_flows.autoregressive.pixel_rnn import DiagonalPixelRNN, RowPixelRNN
from vi_flows.autoregressive.wavenet import WaveNet, mu_law_decode, mu_law_encode

__all__ = [
    "MADE",
    "Autoregressive",
    "AutoregressiveDistribution",
    "Bernoulli",
    "Categorical",
    "DiagonalPixelRNN",
    "Ensemble",
    "GatedPixelCNN",
    "Gaussian",
    "LogisticMixture",
    "Output",
    "PixelCNN",
    "RowPixelRNN",
    "WaveNet",
    "mu_law_decode",
    "mu_law_encode",
]
