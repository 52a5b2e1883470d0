"""Tiny transformers of Hugging Face's library as PyTorch's exporters write them: python make_transformers.py, with torch 2,
transformers, onnxscript. Random weights; dynamic batch and sequence.
"""

import torch
import transformers
from transformers import (
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
)

torch.manual_seed(1)
SMALL = {"vocab_size": 19, "max_position_embeddings": 32}


class Logits(torch.nn.Module):
    """A model whose first result is all that is exported."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask, return_dict=False)[0]


def models() -> dict[str, torch.nn.Module]:
    """By the name of their file."""
    bert = BertConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, **SMALL
    )
    distil = DistilBertConfig(dim=16, n_layers=2, n_heads=2, hidden_dim=24, num_labels=3, **SMALL)
    gpt = GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=32, vocab_size=19, use_cache=False)
    return {
        "hf_bert": BertModel(bert, add_pooling_layer=False),
        "hf_distilbert": DistilBertForSequenceClassification(distil),
        "hf_gpt2": GPT2LMHeadModel(gpt),
    }


if __name__ == "__main__":
    ids = torch.randint(0, 19, (2, 7))
    mask = torch.ones_like(ids)
    for name, model in models().items():
        model.eval()
        model.config._attn_implementation = "eager"
        torch.onnx.export(
            Logits(model),
            (ids, mask),
            f"{name}.onnx",
            dynamo=False,
            opset_version=17,
            input_names=["input_ids", "attention_mask"],
            output_names=["logits"],
            dynamic_axes={name: {0: "batch_size", 1: "s"} for name in ("input_ids", "attention_mask")},
        )
    print(torch.__version__, transformers.__version__)
