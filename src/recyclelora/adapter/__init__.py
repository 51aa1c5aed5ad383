"""RecycleLoRA as a method of the PEFT library (arXiv 2603.28142). It needs no other part of the project
except `recyclelora.errors` and `recyclelora.files`.

LoRA adds a trained product of two thin matrices, B A, to a frozen weight W0 of shape (out, in), and starts it at zero.
RecycleLoRA starts it from directions that W0 already has, found by a rank-revealing QR, and trains two such products:

    W0 P = Q R        P orders the columns of W0: each next column is the one that the columns before it explain
                      least; |R_00| >= |R_11| >= ...

    Q:  | major ...                      ... minor |         sub adapter:  first r_sub columns, half the learning rate
        |<-r_sub->|                  |<- r_main ->|          main adapter: last r_main columns, full learning rate

    B starts as those columns of Q. A starts with a single 1 per row, at the column of W0 that the direction came from.
    W  =  W0 + s (B A - B0 A0),   s = alpha / (r_main + r_sub),   so that the model starts exactly as it was.

An example: with W0 = [[3, 0, 0], [0, 1, 0], [0, 0, 2]] the pivots are columns 0, 2, 1 and Q = I[:, [0, 2, 1]]. With
r_main = r_sub = 1, sub starts from the first column of W0 (B0 = e_0, A0 = e_0') and main from the second, the weakest
(B0 = e_1, A0 = e_1'). A step that makes main's A [0, 1, 0.6] changes W by s e_1 [0, 0, 0.6]: one row, one new column.

    rrqr/         pivoted QR: the reference, fast ways for CPU and GPU, and the certificate
    factors.py    initial factors of one weight
    draw.py       factors of all weights of a model: in parallel, through cache.py
    targets.py    which layers of which models are adapted by default
    config.py     the settings             layer.py   the adapted layer           step.py   its forward and backward
    base.py       layers as matrices       model.py   the tuner: finds the layers and replaces them
    optim.py      parameter groups         stored.py     what a saved adapter has to hold
    portable.py   the adapter as a plain LoRA
"""

from recyclelora.adapter.config import RecycleLoraConfig
from recyclelora.adapter.layer import RecycleLoraConv2d, RecycleLoraLayer, RecycleLoraLinear
from recyclelora.adapter.model import RecycleLoraModel, register
from recyclelora.adapter.optim import param_groups
from recyclelora.adapter.portable import to_lora
from recyclelora.adapter.rrqr import certificate, directions

register()

__all__ = [
    "RecycleLoraConfig", "RecycleLoraConv2d", "RecycleLoraLayer", "RecycleLoraLinear", "RecycleLoraModel",
    "certificate", "directions", "param_groups", "to_lora",
]  # fmt: skip
