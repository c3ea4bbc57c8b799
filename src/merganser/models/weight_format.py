"""How the frozen weights of a model are held in memory: fp32, bf16, or quantised by bitsandbytes.

LoRA factors are fp32 whatever their base is (``autocast_adapter_dtype`` of PEFT): bfloat16's 8 bits of precision would
lose small steps.
"""

from __future__ import annotations

import copy
import importlib.util
from typing import Any, Literal

import torch
from torch import nn

from merganser.devices import model_device
from merganser.errors import InputError, first_line
from merganser.models import stacking
from merganser.models.library_output import silence_bitsandbytes, silence_libraries
from merganser.models.options import ModelOptions

Held = Literal["fp32", "bf16", "8bit", "4bit"]

QUANTISED = ("8bit", "4bit")

QUANTISATION: dict[str, dict[str, Any]] = {
    "8bit": {"load_in_8bit": True},
    "4bit": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
}
"""Settings of bitsandbytes that change the values of the weights."""


def resolve_weights(options: ModelOptions, precision: Literal["fp32", "bf16"], config: Any) -> Held:
    """Return how the weights are held: as asked for, and for ``auto`` the smallest format that changes no weight.

    ``auto`` is bf16 where weights that are stored in bfloat16 are frozen (LoRA) and forward passes compute in bf16;
    else fp32.

    Args:
        options: of the model.
        precision: of its forward passes.
        config: of the model, with the type that its weights are stored in.

    Raises:
        InputError: the model's files hold quantised weights, or bitsandbytes cannot quantise here.
    """
    if getattr(config, "quantization_config", None) is not None:
        raise InputError(
            f"The weights of {options.name} are quantised in its files (quantization_config in its config.json).",
            "Give the model that they were made from, and model.weights: 4bit or 8bit.",
        )
    if options.weights == "auto":
        stored = str(getattr(config, "dtype", None)).removeprefix("torch.")
        frozen = options.lora is not None and not options.name.lower().endswith(".gguf")
        return "bf16" if frozen and stored == "bfloat16" and precision == "bf16" else "fp32"
    if options.weights in QUANTISED:
        _check_bitsandbytes(options.weights)
    return options.weights


def _check_bitsandbytes(weights: str) -> None:
    """Refuse to quantise without bitsandbytes, or on a device that it does not support."""
    require_bitsandbytes(f"model.weights: {weights}")
    import bitsandbytes

    device = model_device().type
    if device not in bitsandbytes.supported_torch_devices:
        raise InputError(
            f"model.weights: {weights} cannot be used on this device ({device}): bitsandbytes supports "
            f"{', '.join(sorted(bitsandbytes.supported_torch_devices))}.",
            "Use model.weights: bf16, or another device.",
        )


def require_bitsandbytes(option: str) -> None:
    """Refuse an option that needs bitsandbytes where that is missing.

    Raises:
        InputError: it is not installed, or cannot be imported.
    """
    key, _, value = option.partition(": ")
    remedy = f"Install it with pip install 'merganser[quantized]', or leave {key}: {value} out."
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError(f"{option} needs the package bitsandbytes, which is not installed.", remedy)
    try:
        import bitsandbytes  # noqa: F401
    except Exception as error:  # it loads compiled libraries, which fail in many ways
        raise InputError(
            f"{option} needs bitsandbytes, which cannot be imported: {first_line(error)}", remedy
        ) from error
    silence_bitsandbytes()


def loading_arguments(weights: Held, precision: Literal["fp32", "bf16"]) -> dict[str, Any]:
    """Return arguments of ``from_pretrained`` that hold the weights so.

    Quantised are the linear layers but the output layer: NF4 with doubly quantised scales (Dettmers et al. 2023), or
    LLM.int8 (Dettmers et al. 2022). Their products and all other weights have the type of the forward passes.
    """
    if weights not in QUANTISED:
        return {"dtype": torch.float32 if weights == "fp32" else torch.bfloat16}
    from transformers import BitsAndBytesConfig

    compute = torch.float32 if precision == "fp32" else torch.bfloat16
    settings = {**QUANTISATION[weights], **({"bnb_4bit_compute_dtype": compute} if weights == "4bit" else {})}
    return {
        "dtype": compute,
        "quantization_config": BitsAndBytesConfig(**settings),
        "device_map": {"": model_device()},
    }


def keep_as_stored(model: nn.Module) -> None:
    """Keep bitsandbytes from packing 4-bit weights anew at the first forward pass without gradients, in place.

    On processors with AVX-512 BF16 it would round their scales to bf16 there: the model trained after an evaluation is
    another one than before, so that a resumed run ends elsewhere, and a layer with fewer than 64 inputs fails.
    """
    packs = "support_avx512bf16_for_cpu"  # an attribute of its linear layers
    for layer in model.modules():
        if hasattr(layer, packs):
            setattr(layer, packs, False)


def check_kernel(model: nn.Module, name: str) -> None:
    """Refuse 4-bit weights that the kernel of this processor reads wrongly.

    That for AVX-512 in bitsandbytes 0.50 takes the scales of another row where a row is no whole number of blocks of 64
    values. Such layers are rare: they are read once as a matrix and once as a single row.

    Raises:
        InputError: a layer differs; ``name`` is that of the model in the message.
    """
    for layer, module in model.named_modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if state is None or state.shape[-1] % state.blocksize == 0:
            continue
        from bitsandbytes.functional import dequantize_4bit

        flat = copy.copy(state)
        flat.shape = torch.Size([state.shape.numel()])
        packed = module.weight.data
        if not torch.equal(dequantize_4bit(packed, state).flatten(), dequantize_4bit(packed, flat).flatten()):
            raise InputError(
                f"The 4-bit weights of {name} are read wrongly by bitsandbytes on this device: layer {layer} has rows "
                f"of {state.shape[-1]} values, which is no multiple of the {state.blocksize} of its blocks.",
                "Use model.weights: 8bit or bf16, or another device.",
            )


def code_that_holds(weights: Held, precision: Literal["fp32", "bf16"]) -> tuple[str, list[str]]:
    """Return :func:`loading_arguments` as Python code, and the names that it imports from transformers."""
    kind = "torch.bfloat16" if weights == "bf16" or (weights in QUANTISED and precision == "bf16") else "torch.float32"
    if weights not in QUANTISED:
        return f"dtype={kind}", []
    settings = [f"{key}={value!r}" for key, value in QUANTISATION[weights].items()]
    settings += [f"bnb_4bit_compute_dtype={kind}"] if weights == "4bit" else []
    return f"dtype={kind}, quantization_config=BitsAndBytesConfig({', '.join(settings)})", ["BitsAndBytesConfig"]


def is_quantised(layer: nn.Module) -> bool:
    """Return whether bitsandbytes holds the matrix of a layer."""
    return type(getattr(layer, "weight", None)).__name__ in ("Params4bit", "Int8Params")


@torch.no_grad()
def dequantised(model: Any, plain: Any) -> Any:
    """Return a model with quantised weights as one with fp32 weights of the same values, on the CPU.

    Args:
        model: wrapped by PEFT, its base quantised.
        plain: another copy of the base in fp32, as in its files; its weights are replaced.

    Returns:
        ``plain``, wrapped with a copy of the adapter, frozen and trained factors as one.
    """
    from peft import get_peft_model
    from peft.utils.integrations import dequantize_module_weight

    values = {name: tensor for name, tensor in model.get_base_model().named_parameters() if ".lora_" not in name}
    layers = dict(model.get_base_model().named_modules())
    targets = dict(plain.named_parameters())
    for name, value in values.items():
        layer, target = layers[name.rpartition(".")[0]], targets[name.replace(".base_layer.", ".")]
        if name.endswith(".weight") and is_quantised(layer):
            value = dequantize_module_weight(layer)
            # transformers transposes GPT-2's layers when it quantises them.
            value = value.T if layer.source_cls.__name__ == "Conv1D" else value
        target.copy_(value.to(target.device))
    tensors, config = stacking.concatenate_adapters(model)
    with silence_libraries():
        wrapped = get_peft_model(plain, config)
    for name, factor in stacking.adapter_tensors(wrapped, stacking.TRAINED).items():
        factor.copy_(tensors[name].to(factor.device))
    return wrapped
