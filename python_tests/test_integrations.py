# SPDX-License-Identifier: MIT
"""Programs that others wrote, on accelerated models: they get what they get from torch's.

Each test needs a package that is no dependency of fastconv, and is skipped without it.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from reference import max_error, rms
from torch import Tensor, nn
from zoo import CifarNet, LSTMLanguageModel

import fastconv


def needs(package: str) -> Any:
    """The package, or a skip. torchvision, which some import, raises RuntimeError beside a torch
    that it was not built for."""
    reason = f"needs {package}, which is not installed or does not fit this torch"
    return pytest.importorskip(package, reason=reason, exc_type=(ImportError, RuntimeError))


class SmallNet(nn.Module):
    """Layers of the kinds that attribution methods have rules for, each used once."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        )  # fmt: skip
        self.hidden = nn.Linear(8 * 16, 12)
        self.relu = nn.ReLU()
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.relu(self.hidden(torch.flatten(self.features(x), 1))))


def images(count: int = 4) -> Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def assert_close(got: Tensor, wanted: Tensor) -> None:
    assert got.shape == wanted.shape
    assert rms(wanted) > 0
    assert max_error(got, wanted.double()) <= 1e-4 * rms(wanted)


def assert_explains_alike(explain: Callable[[SmallNet], Tensor]) -> None:
    """The attribution is the same for the model, the accelerated one and the restored one, and not
    that of another model."""
    model = SmallNet().eval()
    wanted = explain(copy.deepcopy(model))
    report = fastconv.accelerate(model)
    assert len(report.swapped) >= 4
    assert report.fused
    assert_close(explain(model), wanted)
    assert_close(explain(model), wanted)  # the hooks of the first time are gone, chains fuse again
    fastconv.restore(model)
    assert torch.equal(explain(model), wanted)
    other = explain(SmallNet().eval())
    assert max_error(other, wanted.double()) > 1e-2 * rms(wanted)


pytestmark = [
    pytest.mark.filterwarnings("ignore:Input Tensor 0 did not already require gradients"),
    pytest.mark.filterwarnings("ignore:Setting forward, backward hooks and attributes"),
]


# --- captum --------------------------------------------------------------------------------------


def test_captum_layer_grad_cam() -> None:
    attr = needs("captum.attr")
    x = images()
    assert_explains_alike(
        lambda model: attr.LayerGradCam(model, model.features[3]).attribute(x, target=1).detach()
    )


def test_captum_integrated_gradients() -> None:
    attr = needs("captum.attr")
    x = images()
    assert_explains_alike(
        lambda model: attr.IntegratedGradients(model).attribute(x, target=2, n_steps=8).detach()
    )


def test_captum_deep_lift() -> None:
    """It looks for `type(module)` among the layers it knows, and puts hooks on every layer."""
    attr = needs("captum.attr")
    x = images()

    assert_explains_alike(
        lambda model: attr.DeepLift(model).attribute(x, torch.zeros_like(x), target=0).detach()
    )


def test_captum_layerwise_relevance_propagation() -> None:
    """It refuses layers whose exact type it does not know."""
    attr = needs("captum.attr")
    x = images()
    assert_explains_alike(lambda model: attr.LRP(model).attribute(x, target=3).detach())


def test_captum_on_an_lstm() -> None:
    """Backward in eval mode, through the embedded words."""
    attr = needs("captum.attr")
    model = LSTMLanguageModel(20, 8).eval()
    words = torch.randint(20, (5, 3))

    def last_scores(embedded: Tensor) -> Tensor:  # [N, T, hidden]
        return model.decoder(model.rnn(embedded.transpose(0, 1))[0][-1])

    embedded = model.encoder(words).transpose(0, 1).detach()
    method = attr.IntegratedGradients(last_scores)
    wanted = method.attribute(embedded, target=7, n_steps=6)
    fastconv.accelerate(model)
    assert_close(method.attribute(embedded, target=7, n_steps=6), wanted)


# --- pytorch-grad-cam ----------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GradCAM", "GradCAMPlusPlus", "EigenGradCAM", "ScoreCAM"])
def test_pytorch_grad_cam(method: str) -> None:
    cam = needs("pytorch_grad_cam")
    targets = needs("pytorch_grad_cam.utils.model_targets")
    x = images(2)

    def explain(model: SmallNet) -> Tensor:
        with getattr(cam, method)(model=model, target_layers=[model.features[3]]) as explainer:
            wanted = [targets.ClassifierOutputTarget(k) for k in (1, 3)]
            return torch.from_numpy(np.array(explainer(input_tensor=x, targets=wanted)))

    assert_explains_alike(explain)


# --- Training loops ------------------------------------------------------------------------------


def digits(count: int = 48) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(count, 3, 32, 32, generator=generator),
        torch.randint(10, (count,), generator=generator),
    )


def assert_same_weights(model: nn.Module, reference: nn.Module) -> None:
    """After a few steps of Adam: apart by a small part of what they moved."""
    for (name, ours), theirs in zip(model.named_parameters(), reference.parameters(), strict=True):
        assert (ours - theirs).abs().max() <= 1e-4, name


@pytest.mark.filterwarnings("ignore")  # Lightning warns about loaders, loggers and pytrees
def test_lightning_trainer(tmp_path: Any) -> None:
    lightning = needs("lightning.pytorch")
    integration = needs("fastconv.integrations.lightning")
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*digits()), batch_size=16)

    class Classifier(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = CifarNet((4, 6, 8))

        def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
            return F.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), 1e-3)

    models, seen = [], []
    for callbacks in ([], [integration.AccelerateCallback()]):
        torch.manual_seed(0)
        models.append(Classifier())
        trainer = lightning.Trainer(
            max_epochs=2, accelerator="cpu", logger=False, enable_progress_bar=False,
            enable_model_summary=False, gradient_clip_val=1.0, callbacks=callbacks,
            default_root_dir=tmp_path, enable_checkpointing=False,
        )  # fmt: skip
        trainer.fit(models[-1], loader)
        seen.append(trainer.global_step)
        trainer.save_checkpoint(tmp_path / f"{len(callbacks)}.ckpt")
    assert seen == [6, 6]
    assert_same_weights(models[1], models[0])
    checkpoints = [
        torch.load(tmp_path / f"{i}.ckpt", weights_only=True)["state_dict"] for i in (0, 1)
    ]
    assert list(checkpoints[0]) == list(checkpoints[1])
    models[0].load_state_dict(checkpoints[1], strict=True)


def test_skorch() -> None:
    skorch = needs("skorch")
    x, y = (tensor.numpy() for tensor in digits())

    def fitted(accelerate: bool) -> Any:
        torch.manual_seed(0)
        net = skorch.NeuralNetClassifier(
            CifarNet, module__widths=(4, 6, 8), criterion=nn.CrossEntropyLoss, lr=1e-3,
            optimizer=torch.optim.Adam, batch_size=16, train_split=None, verbose=0,
            iterator_train__shuffle=False,
        ).initialize()  # fmt: skip
        if accelerate:
            assert fastconv.accelerate(net.module_, optimizer=net.optimizer_).fused
            assert isinstance(net.optimizer_, fastconv.optim.Adam)
        return net.partial_fit(x, y).partial_fit(x, y)

    ours, theirs = fitted(True), fitted(False)
    assert_same_weights(ours.module_, theirs.module_)
    np.testing.assert_allclose(ours.predict_proba(x), theirs.predict_proba(x), rtol=0, atol=1e-4)
    copied = pickle.loads(pickle.dumps(ours))
    np.testing.assert_array_equal(copied.predict_proba(x), ours.predict_proba(x))


def test_optuna_with_one_thread_per_trial() -> None:
    """Trials run in threads: with one torch thread each they do not get in each other's way, and
    two at a time find what one at a time does."""
    optuna = needs("optuna")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    x, y = digits()

    def objective(trial: Any) -> float:
        torch.set_num_threads(1)
        width = trial.suggest_categorical("width", [4, 6])
        rate = trial.suggest_float("lr", 1e-3, 1e-2)
        with torch.random.fork_rng():
            model = CifarNet((width, width, width))
        with torch.no_grad():  # torch's generator is shared by all threads
            for i, p in enumerate(model.parameters()):
                p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(i)) / 10)
        optimizer = torch.optim.Adam(model.parameters(), rate)
        fastconv.accelerate(model, optimizer=optimizer)
        for _ in range(3):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
        return loss.item()

    points = [{"width": width, "lr": lr} for width in (4, 6) for lr in (0.002, 0.005)]
    values = []
    for jobs in (1, 2):
        study = optuna.create_study()
        for point in points:
            study.enqueue_trial(point)
        study.optimize(objective, n_trials=len(points), n_jobs=jobs)
        found = {tuple(sorted(trial.params.items())): trial.value for trial in study.trials}
        assert len(found) == len(points)
        values.append(found)
    assert values[0] == values[1]
