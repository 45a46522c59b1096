"""Writes a GGUF model of the llama architecture with random weights and a vocabulary of bytes.

Run by the engines' own Python, which has `gguf` and numpy: `tiny_gguf.py OUT.gguf WIDTH LAYERS
CONTEXT`. It speaks gibberish, which is all that a test of the way there and back needs, and the
same gibberish each time: the weights come from a fixed seed.
"""

from __future__ import annotations

import sys

import gguf
import numpy as np

HEAD = 32  # width of an attention head
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def vocabulary() -> list[str]:
    """GPT-2's spelling of the 256 bytes, and the three marks."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spelled = {byte: chr(byte) for byte in printable}
    others = [byte for byte in range(256) if byte not in spelled]
    spelled |= {byte: chr(256 + n) for n, byte in enumerate(others)}
    return [spelled[byte] for byte in range(256)] + ["<s>", "</s>", "<pad>"]


def write(path: str, *, width: int, layers: int, context: int) -> None:
    heads, hidden, tokens = width // HEAD, 2 * width, vocabulary()
    random = np.random.default_rng(7)
    out = gguf.GGUFWriter(path, "llama")
    out.add_name("tiny")
    out.add_context_length(context)
    out.add_embedding_length(width)
    out.add_block_count(layers)
    out.add_feed_forward_length(hidden)
    out.add_head_count(heads)
    out.add_head_count_kv(heads)
    out.add_rope_dimension_count(HEAD)
    out.add_layer_norm_rms_eps(1e-5)
    out.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    out.add_vocab_size(len(tokens))
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("gpt-2")
    out.add_token_list(tokens)
    out.add_token_types([gguf.TokenType.NORMAL] * 256 + [gguf.TokenType.CONTROL] * 3)
    # No merges: every byte stays a token. One that cannot happen, since the list must not be empty.
    out.add_token_merges([f"{tokens[0]} {tokens[1]}"])
    out.add_bos_token_id(256)
    out.add_eos_token_id(257)
    out.add_pad_token_id(258)
    out.add_chat_template(TEMPLATE)

    def matrix(name: str, rows: int, columns: int, scale: float = 1.0) -> None:
        values = random.standard_normal((rows, columns), dtype=np.float32) * scale / columns**0.5
        out.add_tensor(name, values.astype(np.float16))

    def ones(name: str) -> None:
        out.add_tensor(name, np.ones(width, dtype=np.float32))

    matrix("token_embd.weight", len(tokens), width)
    for n in range(layers):
        ones(f"blk.{n}.attn_norm.weight")
        for part in ("q", "k", "v", "output"):
            matrix(f"blk.{n}.attn_{part}.weight", width, width)
        ones(f"blk.{n}.ffn_norm.weight")
        matrix(f"blk.{n}.ffn_gate.weight", hidden, width)
        matrix(f"blk.{n}.ffn_up.weight", hidden, width)
        matrix(f"blk.{n}.ffn_down.weight", width, hidden)
    ones("output_norm.weight")
    matrix("output.weight", len(tokens), width, scale=3.0)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


if __name__ == "__main__":
    write(sys.argv[1], width=int(sys.argv[2]), layers=int(sys.argv[3]), context=int(sys.argv[4]))
