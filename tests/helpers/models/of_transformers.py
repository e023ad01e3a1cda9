"""Models of transformers, at small configurations, given what their own tokenizers and processors give."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor, nn

from models.inputs import Inputs, Made, images, seeded, tokens

__all__ = ["TRANSFORMERS"]

VOCABULARY, LENGTH = 40, 8
SIZES = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32)
ENCODER = dict(vocab_size=VOCABULARY, max_position_embeddings=32, **SIZES)
DECODER = dict(num_key_value_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2, **ENCODER)
SEQ2SEQ = dict(
    d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
    encoder_ffn_dim=32, decoder_ffn_dim=32, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
)  # fmt: skip


def words(rows: int) -> dict[str, Tensor]:
    """Tokens, all of one length."""
    return {"input_ids": tokens(LENGTH, VOCABULARY)(rows)}


def padded(rows: int) -> dict[str, Tensor]:
    """Tokens with masks, the rows of several lengths."""
    mask = (torch.arange(LENGTH) < LENGTH - torch.arange(rows)[:, None] % 4).long()
    return {"input_ids": tokens(LENGTH, VOCABULARY)(rows) * mask, "attention_mask": mask}


def pairs(rows: int) -> dict[str, Tensor]:
    """Tokens for an encoder and for a decoder."""
    return padded(rows) | {"decoder_input_ids": tokens(5, VOCABULARY)(rows)}


def pictures(size: int) -> Inputs:
    return lambda rows: {"pixel_values": images(size)(rows)}


def sounds(rows: int) -> dict[str, Tensor]:
    return {"input_values": torch.randn(rows, 400, generator=seeded())}


def spoken(rows: int) -> dict[str, Tensor]:
    """Whisper's spectra, and the words said so far."""
    found = torch.randn(rows, 8, 16, generator=seeded())
    return {"input_features": found, "decoder_input_ids": tokens(5, VOCABULARY)(rows)}


def past(rows: int) -> dict[str, Tensor]:
    return {"past_values": torch.randn(rows, 24, 2, generator=seeded())}


def captioned(rows: int) -> dict[str, Tensor]:
    return padded(rows) | pictures(16)(rows)


def _of(model: str, config: str, inputs: Inputs = padded, output: str | None = None, **how: Any) -> Made:
    """A model by the names of its class and its configuration's."""

    def build() -> nn.Module:
        package = importlib.import_module("transformers")
        return getattr(package, model)(getattr(package, config)(**how))

    return Made(build, inputs, output=output, package="transformers")


def _clip() -> nn.Module:
    package = importlib.import_module("transformers")
    text = ENCODER | dict(eos_token_id=2, bos_token_id=1, pad_token_id=0, projection_dim=12)
    vision = SIZES | dict(image_size=16, patch_size=4, projection_dim=12)
    return package.CLIPModel(package.CLIPConfig(text_config=text, vision_config=vision, projection_dim=12))


VISION = dict(image_size=16, patch_size=4, num_labels=3, **SIZES)
EAGER = dict(attn_implementation="eager")
GPT2 = dict(
    vocab_size=VOCABULARY,
    n_positions=32,
    n_embd=16,
    n_layer=2,
    n_head=4,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)
LLAMA = ("LlamaForCausalLM", "LlamaConfig")
T5 = dict(
    vocab_size=VOCABULARY, d_model=16, d_kv=4, d_ff=32, num_layers=2, num_heads=4, pad_token_id=0, eos_token_id=2,
    decoder_start_token_id=1,
)  # fmt: skip
WAV2VEC = dict(
    vocab_size=VOCABULARY, conv_dim=(8, 8), conv_kernel=(10, 3), conv_stride=(5, 2), num_feat_extract_layers=2,
    num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2, **SIZES,
)  # fmt: skip
TRANSFORMERS = {
    "BERT": _of("BertForSequenceClassification", "BertConfig", **ENCODER),
    "BERT, no masks": _of("BertForSequenceClassification", "BertConfig", words, **ENCODER),
    "BERT, eager": _of("BertForSequenceClassification", "BertConfig", **EAGER, **ENCODER),
    "BERT for tokens": _of("BertForTokenClassification", "BertConfig", **ENCODER),
    "DistilBERT": _of(
        "DistilBertForSequenceClassification", "DistilBertConfig", vocab_size=VOCABULARY, dim=16, n_layers=2, n_heads=4,
        hidden_dim=32, max_position_embeddings=32,
    ),
    "RoBERTa": _of("RobertaForSequenceClassification", "RobertaConfig", pad_token_id=0, **ENCODER),
    "ALBERT": _of("AlbertForSequenceClassification", "AlbertConfig", embedding_size=8, **ENCODER),
    "ELECTRA": _of("ElectraForSequenceClassification", "ElectraConfig", embedding_size=8, **ENCODER),
    "DeBERTa V2": _of(
        "DebertaV2ForSequenceClassification", "DebertaV2Config", relative_attention=True, pos_att_type=["c2p", "p2c"],
        position_buckets=4, norm_rel_ebd="layer_norm", share_att_key=True, **ENCODER,
    ),
    "ModernBERT": _of(
        "ModernBertForSequenceClassification", "ModernBertConfig", pad_token_id=0, bos_token_id=1, eos_token_id=2,
        cls_token_id=1, sep_token_id=2, **ENCODER,
    ),
    "MPNet": _of("MPNetForSequenceClassification", "MPNetConfig", pad_token_id=0, **ENCODER),
    "GPT-2": _of("GPT2LMHeadModel", "GPT2Config", **GPT2),
    "GPT-2, eager": _of("GPT2LMHeadModel", "GPT2Config", **EAGER, **GPT2),
    "GPT-Neo": _of(
        "GPTNeoForCausalLM", "GPTNeoConfig", vocab_size=VOCABULARY, hidden_size=16, num_layers=2, num_heads=4,
        attention_types=[[["global", "local"], 1]], window_size=4, max_position_embeddings=32, bos_token_id=1,
        eos_token_id=2,
    ),
    "GPT-NeoX": _of("GPTNeoXForCausalLM", "GPTNeoXConfig", **ENCODER),
    "OPT": _of(
        "OPTForCausalLM", "OPTConfig", vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, ffn_dim=32,
        num_attention_heads=4, max_position_embeddings=32, word_embed_proj_dim=16, pad_token_id=0, bos_token_id=1,
        eos_token_id=2,
    ),
    "BLOOM": _of(
        "BloomForCausalLM", "BloomConfig", vocab_size=VOCABULARY, hidden_size=16, n_layer=2, n_head=4, pad_token_id=0,
        bos_token_id=1, eos_token_id=2,
    ),
    "Llama": _of(*LLAMA, **DECODER),
    "Llama, eager": _of(*LLAMA, **EAGER, **DECODER),
    "Llama, no masks": _of(*LLAMA, words, **DECODER),
    "Llama, classifier": _of("LlamaForSequenceClassification", "LlamaConfig", **DECODER),
    "Mistral": _of("MistralForCausalLM", "MistralConfig", sliding_window=4, **DECODER),
    "Qwen 2": _of("Qwen2ForCausalLM", "Qwen2Config", **DECODER),
    "Qwen 3": _of("Qwen3ForCausalLM", "Qwen3Config", head_dim=4, **DECODER),
    "Gemma": _of("GemmaForCausalLM", "GemmaConfig", head_dim=4, **DECODER),
    "Gemma 2": _of("Gemma2ForCausalLM", "Gemma2Config", head_dim=4, sliding_window=4, **DECODER),
    "Gemma 3": _of("Gemma3ForCausalLM", "Gemma3TextConfig", head_dim=4, sliding_window=4, **DECODER),
    "Phi": _of("PhiForCausalLM", "PhiConfig", **DECODER),
    "Phi-3": _of("Phi3ForCausalLM", "Phi3Config", **DECODER),
    "Mixtral (experts)": _of(
        "MixtralForCausalLM", "MixtralConfig", num_local_experts=4, num_experts_per_tok=2, **DECODER
    ),
    "Qwen 3 (experts)": _of(
        "Qwen3MoeForCausalLM", "Qwen3MoeConfig", head_dim=4, num_experts=4, num_experts_per_tok=2,
        moe_intermediate_size=16, **DECODER,
    ),
    "OLMoE (experts)": _of("OlmoeForCausalLM", "OlmoeConfig", num_experts=4, num_experts_per_tok=2, **DECODER),
    "Mamba": _of(
        "MambaForCausalLM", "MambaConfig", vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, state_size=4,
        time_step_rank=4, pad_token_id=0, bos_token_id=1, eos_token_id=2, use_cache=False,
    ),
    "Mamba-2": _of(
        "Mamba2ForCausalLM", "Mamba2Config", vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, state_size=4,
        num_heads=8, head_dim=4, n_groups=2, chunk_size=4, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        use_cache=False,
    ),
    "RWKV": _of(
        "RwkvForCausalLM", "RwkvConfig", words, vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2,
        attention_hidden_size=16, intermediate_size=32, context_length=32, bos_token_id=1, eos_token_id=2,
        use_cache=False,
    ),
    "T5": _of("T5ForConditionalGeneration", "T5Config", pairs, **T5),
    "T5's encoder": _of("T5EncoderModel", "T5Config", **T5),
    "BART": _of(
        "BartForConditionalGeneration", "BartConfig", pairs, vocab_size=VOCABULARY, max_position_embeddings=32,
        **SEQ2SEQ,
    ),
    "Whisper": _of(
        "WhisperForConditionalGeneration", "WhisperConfig", spoken, vocab_size=VOCABULARY, num_mel_bins=8,
        max_source_positions=8, max_target_positions=16, suppress_tokens=None, begin_suppress_tokens=None, **SEQ2SEQ,
    ),
    "ViT": _of("ViTForImageClassification", "ViTConfig", pictures(16), **VISION),
    "ViT, eager": _of("ViTForImageClassification", "ViTConfig", pictures(16), **EAGER, **VISION),
    "DINOv2": _of("Dinov2ForImageClassification", "Dinov2Config", pictures(16), **VISION),
    "Swin": _of(
        "SwinForImageClassification", "SwinConfig", pictures(32), image_size=32, patch_size=4, embed_dim=8,
        depths=[1, 2], num_heads=[2, 2], window_size=4, num_labels=3,
    ),
    "ConvNeXt": _of(
        "ConvNextForImageClassification", "ConvNextConfig", pictures(32), hidden_sizes=[8, 12, 16, 20],
        depths=[1, 1, 1, 1], num_labels=3,
    ),
    "CLIP": Made(_clip, captioned, output="image_embeds", package="transformers"),
    "CLIP, texts": Made(_clip, captioned, output="text_embeds", package="transformers"),
    "wav2vec 2": _of("Wav2Vec2ForCTC", "Wav2Vec2Config", sounds, **WAV2VEC),
    "HuBERT": _of("HubertForCTC", "HubertConfig", sounds, **WAV2VEC),
    "SegFormer": _of(
        "SegformerForSemanticSegmentation", "SegformerConfig", pictures(32), hidden_sizes=[8, 8, 16, 16],
        depths=[1, 1, 1, 1], num_attention_heads=[1, 2, 2, 4], decoder_hidden_size=16, num_labels=3,
    ),
    "DETR": _of(
        "DetrForObjectDetection", "DetrConfig", pictures(32), d_model=16, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, num_queries=5,
        use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, num_labels=3, backbone_config=dict(
            model_type="resnet", embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1],
            out_features=["stage4"],
        ),
    ),
    "YOLOS": _of(
        "YolosForObjectDetection", "YolosConfig", pictures(16), image_size=[16, 16], patch_size=4,
        num_detection_tokens=4, num_labels=3, use_mid_position_embeddings=False, **SIZES,
    ),
    "PatchTST": _of(
        "PatchTSTForPrediction", "PatchTSTConfig", past,
        num_input_channels=2, context_length=24, patch_length=4, patch_stride=4, prediction_length=6, d_model=16,
        num_hidden_layers=2, num_attention_heads=4, ffn_dim=32,
    ),
    "Perceiver": _of(
        "PerceiverForSequenceClassification", "PerceiverConfig", num_latents=6, d_latents=16, d_model=16, num_blocks=1,
        num_self_attends_per_block=2, num_self_attention_heads=4, num_cross_attention_heads=4, vocab_size=VOCABULARY,
        max_position_embeddings=LENGTH, num_labels=3,
    ),
}  # fmt: skip
