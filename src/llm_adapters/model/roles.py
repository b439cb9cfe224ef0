"""The alias table: which child names play which role in a decoder layer, over all model families."""

from __future__ import annotations

# Role → names seen in transformers. The order within a row is the order of preference.
SUBLAYERS: dict[str, tuple[str, ...]] = {
    "attn": ("self_attn", "attn", "attention", "self_attention", "mixer_attn"),
    "ffn": ("mlp", "feed_forward", "ffn", "block_sparse_moe", "moe", "ff", "feedforward"),
}
LINEARS: dict[str, tuple[str, ...]] = {
    "attn.q": ("q_proj", "query", "wq", "q_lin", "q_b_proj"),
    "attn.k": ("k_proj", "key", "wk", "k_lin"),
    "attn.v": ("v_proj", "value", "wv", "v_lin"),
    "attn.qkv": ("qkv_proj", "query_key_value", "c_attn", "Wqkv", "wqkv", "qkv"),
    "attn.o": ("o_proj", "out_proj", "dense", "c_proj", "wo", "out_lin", "o"),
    "ffn.gate": ("gate_proj", "w1", "gate"),
    "ffn.up": ("up_proj", "w3", "c_fc", "fc1", "fc_in", "dense_h_to_4h", "lin1", "wi"),
    "ffn.gate_up": ("gate_up_proj", "gate_and_up_proj"),
    "ffn.down": ("down_proj", "w2", "c_proj", "fc2", "fc_out", "dense_4h_to_h", "lin2", "wo"),
}

SITES = (*LINEARS, *SUBLAYERS, "block", "embed")
SETS: dict[str, tuple[str, ...]] = {
    "attn.*": tuple(role for role in LINEARS if role.startswith("attn.")),
    "ffn.*": tuple(role for role in LINEARS if role.startswith("ffn.")),
    "linears": tuple(LINEARS),
}
