"""Which sites of well-known models the engine that shares work can reach, and how long recording them takes.

`python bench/models_reached.py [NAME ...]` needs torchvision and timm; names as `tv.resnet18`, `timm.resnet18`.
"""

from __future__ import annotations

import sys
import time
from collections import Counter

import timm
import torch
import torchvision

from noisykernels._graph.recorder import record_tape
from noisykernels._graph.tape import NotTraceable
from noisykernels.injection import inject
from noisykernels.injection.placement import SILENT
from noisykernels.injection.state import state_of

NAMES = """tv.resnet18 tv.mobilenet_v3_small tv.efficientnet_b0 tv.shufflenet_v2_x0_5 tv.squeezenet1_1 tv.vgg11_bn
tv.regnet_y_400mf tv.swin_t timm.resnet18 timm.mobilenetv3_small_050 timm.vit_tiny_patch16_224 timm.convnext_atto
timm.efficientnet_b0 timm.mixer_s16_224 timm.repvgg_a0 timm.poolformer_s12 timm.ghostnet_050 timm.levit_128s""".split()


def main() -> None:
    """Prints a line for each model, random weights, four images of 224 x 224."""
    for name in sys.argv[1:] or NAMES:
        source, _, kind = name.partition(".")
        torch.manual_seed(0)
        build = torchvision.models.get_model if source == "tv" else timm.create_model
        model, x = build(kind, num_classes=10).eval(), torch.randn(4, 3, 224, 224)
        with inject(model, None, example_input=x[:2]) as injected, torch.inference_mode():
            state_of(injected).placement = SILENT
            sites, start = len(state_of(injected).traced), time.perf_counter()
            try:
                tape = record_tape(injected, x)
                why = Counter(tape.refused.values()).most_common(2)
                print(
                    f"{name}: {len(tape.sites)} of {sites} sites, {time.perf_counter() - start:.1f} s {why or ''}",
                    flush=True,
                )
            except NotTraceable as reason:
                print(f"{name}: none of {sites} sites: {reason}", flush=True)


if __name__ == "__main__":
    main()
