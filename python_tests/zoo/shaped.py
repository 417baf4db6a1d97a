# SPDX-License-Identifier: MIT
"""Networks whose output is an image or a sequence: U-Net, autoencoder, DCGAN, CRNN, LSTM models."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def double_conv(channels: int, out: int, norm: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in (channels, out):
        layers.append(nn.Conv2d(width, out, 3, padding=1, bias=not norm))
        if norm:
            layers.append(nn.BatchNorm2d(out))
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """Ronneberger et al. 2015 (arXiv:1505.04597), padded so that output and input are one size.

    Args:
        base: channels of the first level, doubled at each of the four below.
        norm: batch normalisation behind every convolution; the paper has none.
    """

    def __init__(
        self, channels: int = 3, classes: int = 2, base: int = 64, norm: bool = False
    ) -> None:
        super().__init__()
        widths = [base << level for level in range(5)]
        self.down = nn.ModuleList(
            double_conv(c, w, norm) for c, w in zip([channels, *widths], widths, strict=False)
        )
        self.pool = nn.MaxPool2d(2)
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(w, w // 2, 2, stride=2) for w in reversed(widths[1:])
        )
        self.merge = nn.ModuleList(double_conv(w, w // 2, norm) for w in reversed(widths[1:]))
        self.head = nn.Conv2d(base, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        levels = [self.down[0](x)]
        for block in self.down[1:]:
            levels.append(block(self.pool(levels[-1])))
        x = levels.pop()
        for up, merge in zip(self.up, self.merge, strict=True):
            x = merge(torch.cat([levels.pop(), up(x)], 1))
        return self.head(x)


class ConvAutoencoder(nn.Module):
    """Convolutions and pooling down to a quarter of the side, transposed convolutions back up."""

    def __init__(self, channels: int = 1, base: int = 16) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(channels, base, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(base, 2 * base, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(2 * base, base // 2, 3, padding=1),
        )
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(base // 2, 2 * base, 2, stride=2),
            nn.ReLU(),
            nn.ConvTranspose2d(2 * base, base, 2, stride=2),
            nn.ReLU(),
            nn.Conv2d(base, channels, 3, padding=1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


class DCGAN(nn.Module):
    """Radford et al. 2015 (arXiv:1511.06434): a generator and a discriminator of square images.

    Args:
        latent: length of the generator's random vector.
        base: channels of the widest image-sized layer.
        doublings: times that a 4x4 map is doubled to make the image; 4 for 64x64.
    """

    def __init__(
        self, channels: int = 3, latent: int = 100, base: int = 64, doublings: int = 4
    ) -> None:
        super().__init__()
        width = base << (doublings - 1)
        layers: list[nn.Module] = [
            nn.ConvTranspose2d(latent, width, 4, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(True),
        ]
        for _ in range(doublings - 1):
            layers += [
                nn.ConvTranspose2d(width, width // 2, 4, 2, 1, bias=False),
                nn.BatchNorm2d(width // 2),
                nn.ReLU(True),
            ]
            width //= 2
        layers += [nn.ConvTranspose2d(width, channels, 4, 2, 1, bias=False), nn.Tanh()]
        self.generator = nn.Sequential(*layers)
        layers = [nn.Conv2d(channels, base, 4, 2, 1, bias=False), nn.LeakyReLU(0.2, inplace=True)]
        for _ in range(doublings - 1):
            layers += [
                nn.Conv2d(width, 2 * width, 4, 2, 1, bias=False),
                nn.BatchNorm2d(2 * width),
                nn.LeakyReLU(0.2, inplace=True),
            ]
            width *= 2
        layers += [nn.Conv2d(width, 1, 4, bias=False), nn.Flatten(0)]
        self.discriminator = nn.Sequential(*layers)

    def forward(self, images: Tensor, noise: Tensor) -> Tensor:
        """Scores (before the sigmoid) ``[2, N]`` of real images and of ones made from noise."""
        made = self.generator(noise[:, :, None, None])
        return torch.stack([self.discriminator(images), self.discriminator(made)])


class BidirectionalLSTM(nn.Module):
    def __init__(self, features: int, hidden: int, out: int) -> None:
        super().__init__()
        self.rnn = nn.LSTM(features, hidden, bidirectional=True)
        self.embedding = nn.Linear(2 * hidden, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.embedding(self.rnn(x)[0])


class CRNN(nn.Module):
    """Shi et al. 2015 (arXiv:1507.05717): text in images 32 pixels high, ``[N, 1, 32, W]``.

    Returns log-probabilities ``[W / 4 + 1, N, classes]`` for the CTC loss.
    """

    def __init__(self, classes: int = 37, base: int = 64, hidden: int = 256) -> None:
        super().__init__()

        def conv(c: int, out: int, kernel: int = 3, norm: bool = False) -> list[nn.Module]:
            layers: list[nn.Module] = [nn.Conv2d(c, out, kernel, padding=1 if kernel == 3 else 0)]
            if norm:
                layers.append(nn.BatchNorm2d(out))
            return [*layers, nn.ReLU(True)]

        def narrow_pool() -> nn.MaxPool2d:  # halves the height only
            return nn.MaxPool2d((2, 2), (2, 1), (0, 1))

        self.cnn = nn.Sequential(
            *conv(1, base), nn.MaxPool2d(2, 2),
            *conv(base, 2 * base), nn.MaxPool2d(2, 2),
            *conv(2 * base, 4 * base, norm=True),
            *conv(4 * base, 4 * base), narrow_pool(),
            *conv(4 * base, 8 * base, norm=True),
            *conv(8 * base, 8 * base), narrow_pool(),
            *conv(8 * base, 8 * base, 2, norm=True),
        )  # fmt: skip
        self.rnn = nn.Sequential(
            BidirectionalLSTM(8 * base, hidden, hidden), BidirectionalLSTM(hidden, hidden, classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.cnn(x).squeeze(2).permute(2, 0, 1)
        return self.rnn(x).log_softmax(2)


class LSTMLanguageModel(nn.Module):
    """Zaremba et al. 2014 (arXiv:1409.2329): scores ``[T, N, words]`` of the next word."""

    def __init__(
        self, words: int = 10000, hidden: int = 200, layers: int = 2, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.encoder = nn.Embedding(words, hidden)
        self.rnn = nn.LSTM(hidden, hidden, layers, dropout=dropout)
        self.drop = nn.Dropout(dropout)
        self.decoder = nn.Linear(hidden, words)

    def forward(self, tokens: Tensor) -> Tensor:
        output, _ = self.rnn(self.drop(self.encoder(tokens)))
        return self.decoder(self.drop(output))


class EncoderDecoder(nn.Module):
    """An LSTM reads the source, an LSTM cell writes the target word by word, attending to it.

    Sutskever et al. 2014 (arXiv:1409.3215) with the dot-product attention of Luong et al. 2015
    (arXiv:1508.04025). ``source [S, N]`` and ``target [T, N]`` are words; returns
    scores ``[T, N, words]``.
    """

    def __init__(self, words: int = 8000, hidden: int = 256) -> None:
        super().__init__()
        self.source_embedding = nn.Embedding(words, hidden)
        self.target_embedding = nn.Embedding(words, hidden)
        self.encoder = nn.LSTM(hidden, hidden)
        self.cell = nn.LSTMCell(2 * hidden, hidden)
        self.combine = nn.Linear(2 * hidden, hidden)
        self.out = nn.Linear(hidden, words)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        memory, (h_n, c_n) = self.encoder(self.source_embedding(source))
        memory = memory.transpose(0, 1)  # [N, S, hidden]
        h, c = h_n[0], c_n[0]
        attended = torch.zeros_like(h)
        outputs = []
        for word in self.target_embedding(target):
            h, c = self.cell(torch.cat([word, attended], 1), (h, c))
            weights = torch.bmm(memory, h[:, :, None]).softmax(1)
            context = (weights * memory).sum(1)
            attended = torch.tanh(self.combine(torch.cat([h, context], 1)))
            outputs.append(attended)
        return self.out(torch.stack(outputs))
