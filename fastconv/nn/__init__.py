# SPDX-License-Identifier: MIT
"""Layers with the constructors, parameters, initialisation and ``state_dict`` of ``torch.nn``."""

from fastconv.nn.batch_norm import BatchNorm1d, BatchNorm2d
from fastconv.nn.conv import Conv2d
from fastconv.nn.conv_block import ConvBlock2d
from fastconv.nn.lstm import LSTM, LSTMCell
from fastconv.nn.pool import AvgPool2d, MaxPool2d

__all__ = [
    "LSTM",
    "AvgPool2d",
    "BatchNorm1d",
    "BatchNorm2d",
    "Conv2d",
    "ConvBlock2d",
    "LSTMCell",
    "MaxPool2d",
]
