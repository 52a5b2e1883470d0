import warnings

import torch
import torch.nn as nn
import torch.nn.functional as F

warnings.filterwarnings("ignore")
out = "."
torch.manual_seed(0)


class MLP(nn.Module):
    def __init__(s):
        super().__init__()
        s.l = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 3))

    def forward(s, x):
        return F.softmax(s.l(x), -1)


class CNN(nn.Module):
    def __init__(s):
        super().__init__()
        s.c = nn.Conv2d(3, 8, 3, 2, 1)
        s.b = nn.BatchNorm2d(8)
        s.d = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        s.f = nn.Linear(8, 5)
        s.g = nn.GroupNorm(2, 8)

    def forward(s, x):
        y = F.silu(s.b(s.c(x)))
        z = F.interpolate(s.g(s.d(y)), scale_factor=2.0, mode="nearest")
        z = F.interpolate(z, size=y.shape[2:], mode="bilinear", align_corners=False)
        return s.f((y + z).mean((2, 3)).flatten(1))


class LSTM(nn.Module):
    def __init__(s):
        super().__init__()
        s.e = nn.Embedding(20, 8)
        s.l = nn.LSTM(8, 8, batch_first=True, bidirectional=True)
        s.f = nn.Linear(16, 2)

    def forward(s, x):
        y, _ = s.l(s.e(x))
        return s.f(y[:, -1])


class Att(nn.Module):
    def __init__(s):
        super().__init__()
        s.e = nn.Embedding(30, 16)
        s.p = nn.Embedding(64, 16)
        s.q = nn.Linear(16, 48)
        s.o = nn.Linear(16, 16)
        s.n = nn.LayerNorm(16)

    def forward(s, ids, mask):
        B, S = ids.shape
        x = s.e(ids) + s.p(torch.arange(S, device=ids.device))[None]
        q, k, v = s.q(x).view(B, S, 3, 4, 4).permute(2, 0, 3, 1, 4)
        m = (1.0 - mask[:, None, None, :].float()) * -1e4
        a = torch.softmax(q @ k.transpose(-1, -2) / 2.0 + m, -1) @ v
        return s.n(x + s.o(a.transpose(1, 2).reshape(B, S, 16)))


class Flow(nn.Module):
    def forward(s, x):
        y = x.squeeze(1) if x.dim() == 3 else x
        return torch.cat([y, torch.cumsum(y, 1)], 1).topk(3, dim=1).values


M = {
    "mlp": (MLP(), (torch.randn(2, 4),), ["x"], {0: "n"}),
    "cnn": (CNN(), (torch.randn(1, 3, 16, 16),), ["x"], {0: "n", 2: "h", 3: "w"}),
    "lstm": (LSTM(), (torch.randint(0, 20, (2, 7)),), ["x"], {0: "n", 1: "s"}),
    "attention": (
        Att(),
        (torch.randint(0, 30, (2, 5)), torch.ones(2, 5, dtype=torch.long)),
        ["ids", "mask"],
        {0: "n", 1: "s"},
    ),
    "flow": (Flow(), (torch.randn(2, 1, 6),), ["x"], {0: "n"}),
}
for n, (m, a, names, dyn) in M.items():
    m.eval()
    try:
        torch.onnx.export(
            m,
            a,
            f"{out}/torch_classic_{n}.onnx",
            input_names=names,
            dynamic_axes=dict.fromkeys(names, dyn),
            opset_version=17,
            dynamo=False,
        )
    except Exception as e:
        print("classic", n, repr(e)[:200])
    try:
        d = [
            {
                i: torch.export.Dim.DYNAMIC if hasattr(torch.export.Dim, "DYNAMIC") else torch.export.Dim(v)
                for i, v in dyn.items()
            }
            for _ in names
        ]
        torch.onnx.export(
            m,
            a,
            f"{out}/torch_dynamo_{n}.onnx",
            input_names=names,
            dynamic_shapes=tuple(d),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    except Exception as e:
        print("dynamo", n, repr(e)[:300])
