"""Teachers: torchvision's networks at 32x32, the folded VGG, sizes, and learning."""

import pytest
import torch
from foreign_weights import fill, message
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision import models

from titn.data.dataset import load_dataset
from titn.teachers.architectures import TEACHERS, create_teacher
from titn.teachers.speed_cnn import MINIMUM_SIZE, WIDTHS
from titn.teachers.vgg import fold_vgg

TORCHVISION = [name for name in TEACHERS if hasattr(models, name)]
PLAIN = [name for name in TORCHVISION if not name.startswith("vgg")]


def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def linear(module: nn.Module, name: str) -> nn.Linear:
    layer = module.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    return layer


def test_names() -> None:
    papers = "densenet121 mobilenet_v3_large resnet50 wide_resnet50_2 squeezenet1_1 vgg16 vgg16_bn vgg19"
    assert [*papers.split(), "small_cnn", *WIDTHS] == list(TEACHERS)
    assert "did you mean resnet50?" in message(lambda: create_teacher("resnet", 10, 3, 32))
    assert "small_cnn" in message(lambda: create_teacher("", 10, 3, 32))


@pytest.mark.parametrize(
    ("name", "channels"),
    [*((name, 3) for name in TEACHERS), ("resnet50", 1), ("vgg16_bn", 1), ("small_cnn", 1), ("cnn_7m", 1)],
)
def test_forward_and_backward_at_32_pixels(name: str, channels: int) -> None:
    torch.manual_seed(0)
    module = create_teacher(name, 7, channels, 32)
    logits = module(torch.randn(2, channels, 32, 32))
    assert logits.shape == (2, 7)
    nn.functional.cross_entropy(logits, torch.tensor([1, 5])).backward()
    stem = next(layer for layer in module.modules() if isinstance(layer, nn.Conv2d))
    assert stem.weight.grad is not None and stem.weight.grad.abs().max() > 0
    assert all(parameter.grad is not None for parameter in module.parameters())
    assert all(torch.isfinite(tensor).all() for tensor in module.state_dict().values())


@pytest.mark.parametrize("name", TEACHERS)
@pytest.mark.parametrize("size", [8, 28, 64, 96])
def test_other_image_sizes(name: str, size: int) -> None:
    smallest = 32 if name.startswith("vgg") else MINIMUM_SIZE if name in WIDTHS else 8
    if size < smallest:
        assert f"at least {smallest} pixels" in message(lambda: create_teacher(name, 5, 3, size))
        return
    with torch.device("meta"):
        assert create_teacher(name, 5, 3, size)(torch.empty(2, 3, size, size)).shape == (2, 5)
    assert "at least" in message(lambda: create_teacher(name, 5, 3, 7))
    assert "1 or 3 channels" in message(lambda: create_teacher(name, 5, 4, size))


@pytest.mark.parametrize("name", TORCHVISION)
def test_state_dicts_are_torchvisions(name: str) -> None:
    with torch.device("meta"):
        expected = shapes(getattr(models, name)())
        for size in (32, 224):
            assert shapes(create_teacher(name, 1000, 3, size, fold=False)) == expected


@pytest.mark.parametrize("name", PLAIN)
def test_large_images_get_torchvisions_own_network(name: str) -> None:
    torch.manual_seed(3)
    module = create_teacher(name, 10, 3, 96).eval()
    torch.manual_seed(3)
    expected = getattr(models, name)(num_classes=10).eval()
    image = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        assert torch.equal(module(image), expected(image))


@pytest.mark.parametrize("name", PLAIN)
def test_small_images_are_shrunk_8_fold(name: str) -> None:
    sizes: list[int] = []
    with torch.device("meta"):
        module = create_teacher(name, 10, 3, 32).eval()
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d) and layer.kernel_size != (1, 1):
                layer.register_forward_hook(lambda _layer, _inputs, output: sizes.append(output.shape[-1]))
        module(torch.empty(1, 3, 32, 32))
    assert sizes[0] == 32
    assert sizes[-1] == 4


def paper_macs(module: nn.Module) -> tuple[int, float]:
    """Multiply-accumulates of matrix products at 32x32, and in millions as the paper's counter has them.

    That counter adds 4 per output of a batch normalisation and 1 per output of an adaptive pooling.
    """
    extra = 0

    def count(layer: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal extra
        extra += output.numel() * (4 if isinstance(layer, nn.BatchNorm2d) else 1)

    for layer in module.modules():
        if isinstance(layer, (nn.BatchNorm2d, nn.AdaptiveAvgPool2d)):
            layer.register_forward_hook(count)
    with FlopCounterMode(display=False) as counter:
        module.eval()(torch.empty(1, 3, 32, 32, device="meta"))
    products = counter.get_total_flops() // 2
    return products, (products + extra) / 1e6


@pytest.mark.parametrize(
    ("classes", "parameters", "products", "paper", "folded"),
    [
        (1000, 138_365_992, 436_830_208, 438.0, 336_166_912),
        (10, 134_309_962, 432_775_168, 433.9, 332_111_872),
    ],
)
def test_vgg16_bn_has_the_papers_size(classes: int, parameters: int, products: int, paper: float, folded: int) -> None:
    with torch.device("meta"):
        module = create_teacher("vgg16_bn", classes, 3, 32, fold=False)
        small = create_teacher("vgg16_bn", classes, 3, 32)
    assert sum(parameter.numel() for parameter in module.parameters()) == parameters
    counted, papers = paper_macs(module)
    assert counted == products
    assert round(papers, 1) == paper
    assert sum(parameter.numel() for parameter in small.parameters()) == parameters - 4096 * 512 * 48
    assert paper_macs(small)[0] == folded


@pytest.mark.parametrize("name", ["vgg16", "vgg16_bn", "vgg19"])
def test_folded_vgg_is_the_same_function(name: str) -> None:
    """In float64, forward and the gradient of the image: equal to rounding."""
    with torch.device("meta"):
        module = create_teacher(name, 10, 3, 32, fold=False).double()
        for position, inputs, outputs in ((0, 25088, 256), (3, 256, 256), (6, 256, 10)):  # 16 times narrower: memory
            module.set_submodule(f"classifier.{position}", nn.Linear(inputs, outputs, dtype=torch.float64))
    module = fill(module.to_empty(device="cpu")).eval()
    image = torch.randn(2, 3, 32, 32, dtype=torch.float64, requires_grad=True)
    expected = module(image)
    weights = torch.randn_like(expected)
    (gradient,) = torch.autograd.grad((expected * weights).sum(), image)
    expected = expected.detach()
    folded = fold_vgg(module)
    result = folded(image)
    (folded_gradient,) = torch.autograd.grad((result * weights).sum(), image)
    assert torch.allclose(result, expected, rtol=1e-11, atol=1e-11 * expected.abs().max().item())
    assert torch.allclose(folded_gradient, gradient, rtol=1e-11, atol=1e-11 * gradient.abs().max().item())
    assert sum(isinstance(layer, nn.Dropout) for layer in folded.modules()) == 2
    with pytest.raises(RuntimeError):
        folded(torch.zeros(1, 3, 64, 64, dtype=torch.float64))


def test_folded_vgg_starts_like_the_unfolded_one() -> None:
    torch.manual_seed(2)
    folded = create_teacher("vgg16_bn", 10, 3, 32)
    first = linear(folded, "classifier.0").weight
    assert first.shape == (4096, 512)
    assert first.std().item() == pytest.approx(0.07, rel=5e-3)
    assert linear(folded, "classifier.3").weight.std().item() == pytest.approx(0.01, rel=5e-3)
    state = folded.state_dict()
    assert state["features.40.weight"].std().item() == pytest.approx((2 / (512 * 9)) ** 0.5, rel=5e-3)
    assert torch.equal(state["features.41.running_var"], torch.ones(512))
    assert torch.equal(state["features.41.running_mean"], torch.zeros(512))
    assert state["features.41.num_batches_tracked"] == 0
    torch.manual_seed(2)
    again = create_teacher("vgg16_bn", 10, 3, 32).state_dict()
    assert all(torch.equal(tensor, again[key]) for key, tensor in state.items())


@pytest.mark.parametrize("name", [name for name in TEACHERS if name not in WIDTHS])
def test_grey_images_are_three_equal_channels(name: str) -> None:
    torch.manual_seed(4)
    grey = create_teacher(name, 10, 1, 32).state_dict()
    torch.manual_seed(4)
    colour = create_teacher(name, 10, 3, 32).state_dict()
    different = [key for key, tensor in grey.items() if not torch.equal(tensor, colour[key])]
    (stem,) = different
    assert torch.equal(grey[stem], colour[stem].sum(1, keepdim=True))


def test_small_cnn_learns_digits() -> None:
    """Two short epochs on real digits."""
    data = load_dataset("digits")
    images = (torch.from_numpy(data.train_images).permute(0, 3, 1, 2) / 255 - data.mean[0]) / data.std[0]
    labels = torch.from_numpy(data.train_labels)
    torch.manual_seed(0)
    module = create_teacher("small_cnn", 10, 1, 32)
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3)
    for rows in torch.randperm(len(labels)).repeat(2).split(32):
        loss = nn.functional.cross_entropy(module(images[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    held_out = (torch.from_numpy(data.test_images).permute(0, 3, 1, 2) / 255 - data.mean[0]) / data.std[0]
    with torch.no_grad():
        accuracy = (module.eval()(held_out).argmax(1) == torch.from_numpy(data.test_labels)).double().mean().item()
    assert accuracy > 0.9
