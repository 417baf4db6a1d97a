# SPDX-License-Identifier: MIT
"""The model families that fastconv is made for, on stock torch layers, from published definitions.

``ZOO`` has each network twice: ``small`` for tests (the same modules with few channels on small
inputs, so that a training step in float64 takes a moment), ``full`` as published for benchmarks.
Each comes with inputs and a loss. Dropout is off, so that two copies of a network can be compared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.normalised import DenseNet, GoogLeNet, MobileNetV2, ResNet
from zoo.plain import MLP, VGG, AlexNet, CifarNet, LeNet5, SqueezeNet
from zoo.shaped import (
    CRNN,
    DCGAN,
    ConvAutoencoder,
    EncoderDecoder,
    LSTMLanguageModel,
    UNet,
)

__all__ = [
    "CRNN", "DCGAN", "MLP", "VGG", "ZOO", "AlexNet", "CifarNet", "ConvAutoencoder", "DenseNet",
    "EncoderDecoder", "Entry", "GoogLeNet", "LSTMLanguageModel", "LeNet5", "MobileNetV2", "Outputs",
    "ResNet", "SqueezeNet", "Task", "UNet",
]  # fmt: skip

Outputs = Tensor | tuple[Tensor, ...]


@dataclass(frozen=True)
class Task:
    """What one batch is: arguments of ``forward``, and targets for the loss."""

    inputs: tuple[Tensor, ...]
    targets: tuple[Tensor, ...]

    def map(self, change: Callable[[Tensor], Tensor]) -> Task:
        """The task with `change` applied to every tensor of floating point."""

        def changed(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return tuple(change(t) if t.is_floating_point() else t for t in tensors)

        return Task(changed(self.inputs), changed(self.targets))


@dataclass(frozen=True)
class Entry:
    """A network of the zoo.

    Attributes:
        small, full: make the network, drawing its weights from torch's generator.
        small_task, full_task: make inputs and targets from a batch size and a generator.
        loss: mean loss of the outputs and ``task.targets``.
        scores: dimension of the outputs over which the largest value is the answer, or None.
    """

    name: str
    small: Callable[[], nn.Module]
    full: Callable[[], nn.Module]
    small_task: Callable[[int, torch.Generator], Task]
    full_task: Callable[[int, torch.Generator], Task]
    loss: Callable[..., Tensor]
    scores: int | None = 1


TaskMaker = Callable[[int, torch.Generator], Task]


def _classify(classes: int, *size: int) -> TaskMaker:
    """Random images and labels: of every pixel when `classes` is negative."""

    def make(batch: int, generator: torch.Generator) -> Task:
        images = torch.randn(batch, *size, generator=generator)
        shape = [batch, *size[1:]] if classes < 0 else [batch]
        return Task((images,), (torch.randint(abs(classes), shape, generator=generator),))

    return make


def _reconstruct(*size: int) -> TaskMaker:
    def make(batch: int, generator: torch.Generator) -> Task:
        images = torch.rand(batch, *size, generator=generator)
        return Task((images,), (images,))

    return make


def _generate(latent: int, *size: int) -> TaskMaker:
    def make(batch: int, generator: torch.Generator) -> Task:
        images = torch.rand(batch, *size, generator=generator) * 2 - 1
        return Task((images, torch.randn(batch, latent, generator=generator)), ())

    return make


def _read(classes: int, width: int, letters: int) -> TaskMaker:
    def make(batch: int, generator: torch.Generator) -> Task:
        images = torch.randn(batch, 1, 32, width, generator=generator)
        text = torch.randint(1, classes, (batch, letters), generator=generator)
        return Task((images,), (text,))

    return make


def _predict_words(words: int, steps: int) -> TaskMaker:
    def make(batch: int, generator: torch.Generator) -> Task:
        text = torch.randint(words, (steps + 1, batch), generator=generator)
        return Task((text[:-1],), (text[1:],))

    return make


def _translate(words: int, steps: int) -> TaskMaker:
    def make(batch: int, generator: torch.Generator) -> Task:
        source, target = torch.randint(words, (2, steps, batch), generator=generator).unbind(0)
        return Task((source, target), (target.roll(-1, 0),))

    return make


def _with_auxiliary_heads(outputs: Outputs, labels: Tensor) -> Tensor:
    if isinstance(outputs, Tensor):
        return F.cross_entropy(outputs, labels)
    main, *auxiliary = (F.cross_entropy(scores, labels) for scores in outputs)
    return main + 0.3 * sum(auxiliary)


def _adversarial(scores: Tensor) -> Tensor:
    """Both players' losses in one: the sum of their gradients is what a step would use."""
    real, made = scores
    real_loss = F.binary_cross_entropy_with_logits(real, torch.ones_like(real))
    return real_loss + F.binary_cross_entropy_with_logits(made, torch.zeros_like(made))


def _ctc(log_probabilities: Tensor, text: Tensor) -> Tensor:
    steps, batch, _ = log_probabilities.shape
    lengths = torch.full((batch,), steps), torch.full((batch,), text.shape[1])
    return F.ctc_loss(log_probabilities, text, *lengths)


def _words(scores: Tensor, words: Tensor) -> Tensor:
    return F.cross_entropy(scores.flatten(0, 1), words.flatten())


def _entries() -> list[Entry]:
    image, label = (3, 224, 224), F.cross_entropy
    return [
        Entry("mlp", lambda: MLP(64, 48, 32, 10), lambda: MLP(784, 512, 256, 10),
              _classify(10, 64), _classify(10, 1, 28, 28), label),
        Entry("lenet5", LeNet5, LeNet5,
              _classify(10, 1, 28, 28), _classify(10, 1, 28, 28), label),
        Entry("cifar_cnn", lambda: CifarNet((8, 12, 16)), CifarNet,
              _classify(10, 3, 32, 32), _classify(10, 3, 32, 32), label),
        Entry("cifar_cnn_deep", lambda: CifarNet((8, 12, 16), depth=2), lambda: CifarNet(depth=2),
              _classify(10, 3, 32, 32), _classify(10, 3, 32, 32), label),
        Entry("alexnet", lambda: AlexNet(10, 0.125, 0.0), lambda: AlexNet(dropout=0.0),
              _classify(10, 3, 127, 127), _classify(1000, *image), label),
        Entry("vgg11", lambda: VGG(11, 10, 0.125, 0.0), lambda: VGG(11, dropout=0.0),
              _classify(10, 3, 64, 64), _classify(1000, *image), label),
        Entry("vgg16", lambda: VGG(16, 10, 0.125, 0.0), lambda: VGG(16, dropout=0.0),
              _classify(10, 3, 64, 64), _classify(1000, *image), label),
        Entry("squeezenet", lambda: SqueezeNet(10, 0.25, 0.0), lambda: SqueezeNet(dropout=0.0),
              _classify(10, 3, 95, 95), _classify(1000, *image), label),
        Entry("googlenet", lambda: GoogLeNet(10, 0.25, 0.0), lambda: GoogLeNet(dropout=0.0),
              _classify(10, 3, 96, 96), _classify(1000, *image), _with_auxiliary_heads),
        Entry("resnet18", lambda: ResNet(18, 10, 8), lambda: ResNet(18),
              _classify(10, 3, 96, 96), _classify(1000, *image), label),
        Entry("resnet50", lambda: ResNet(50, 10, 8), lambda: ResNet(50),
              _classify(10, 3, 96, 96), _classify(1000, *image), label),
        Entry("densenet121", lambda: DenseNet(10, 8), DenseNet,
              _classify(10, 3, 96, 96), _classify(1000, *image), label),
        Entry("mobilenetv2", lambda: MobileNetV2(10, 0.25, 0.0), lambda: MobileNetV2(dropout=0.0),
              _classify(10, 3, 96, 96), _classify(1000, *image), label),
        Entry("unet", lambda: UNet(base=8), UNet,
              _classify(-2, 3, 32, 32), _classify(-2, 3, 128, 128), label),
        Entry("unet_norm", lambda: UNet(base=8, norm=True), lambda: UNet(norm=True),
              _classify(-2, 3, 32, 32), _classify(-2, 3, 128, 128), label),
        Entry("autoencoder", ConvAutoencoder, ConvAutoencoder,
              _reconstruct(1, 28, 28), _reconstruct(1, 28, 28), F.mse_loss, None),
        Entry("dcgan", lambda: DCGAN(3, 16, 8, 3), DCGAN,
              _generate(16, 3, 32, 32), _generate(100, 3, 64, 64), _adversarial, None),
        Entry("crnn", lambda: CRNN(11, 8, 16), CRNN,
              _read(11, 48, 4), _read(37, 100, 8), _ctc, 2),
        Entry("lstm_lm", lambda: LSTMLanguageModel(50, 24), LSTMLanguageModel,
              _predict_words(50, 9), _predict_words(10000, 35), _words, 2),
        Entry("encoder_decoder", lambda: EncoderDecoder(50, 24), EncoderDecoder,
              _translate(50, 7), _translate(8000, 20), _words, 2),
    ]  # fmt: skip


ZOO = {entry.name: entry for entry in _entries()}
