# SPDX-License-Identifier: MIT
"""Ready-made networks on fastconv's layers."""

from fastconv.models.lenet import LeNet5
from fastconv.models.lstm import CharLSTM, LSTMForecaster

__all__ = ["CharLSTM", "LSTMForecaster", "LeNet5"]
