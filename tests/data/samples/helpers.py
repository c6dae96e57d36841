"""Conversations and what templates make of them, for tests."""

from sightline.types import IMAGE, Message, Part

ASKED, SAID, AGAIN, MORE, RULE = "What runs?", "A brown dog.", "Where?", "Across the green field.", "Be brief."


def turn(role: str, *parts: str | None) -> Message:
    """A message; None is an image."""
    assert role in ("system", "user", "assistant")
    return Message(role, tuple(Part(part) for part in parts))  # pyrefly: ignore


TWO_TURNS = (turn("user", None, ASKED), turn("assistant", SAID), turn("user", AGAIN), turn("assistant", MORE))


U, A, E = "<|im_start|>user\n", "<|im_start|>assistant\n", "<|im_end|>\n"


THOUGHTS = "<think>\n\n</think>\n\n"


SMOL = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"


META = "<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n\n<|eot_id|>"


LU, LA = "<|start_header_id|>user<|end_header_id|>\n\n", "<|start_header_id|>assistant<|end_header_id|>\n\n"


GU, GA, GE = "<start_of_turn>user\n", "<start_of_turn>model\n", "<end_of_turn>\n"


LLAVA = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
)


CHAT = [f"{U}{IMAGE}{ASKED}{E}{A}", SAID + E, f"{U}{AGAIN}{E}{A}", MORE + E]


# What is fed and what is said, in turn: the first, third ... entries are not the model's.
WRITTEN: dict[str, list[str]] = {
    "gemma": [f"<bos>{GU}{IMAGE}{ASKED}{GE}{GA}", SAID + GE, f"{GU}{AGAIN}{GE}{GA}", MORE + GE],
    "gpt2": [f"<|endoftext|>{IMAGE}{ASKED}", f"{SAID}<|endoftext|>", AGAIN, f"{MORE}<|endoftext|>"],
    "gpt2_chatml": CHAT,
    "llama2": [f"<s>[INST] {IMAGE}{ASKED} [/INST]", f" {SAID} </s>", f"[INST] {AGAIN} [/INST]", f" {MORE} </s>"],
    "llama3": [
        f"<|begin_of_text|>{META}{LU}{IMAGE}{ASKED}<|eot_id|>{LA}",
        f"{SAID}<|eot_id|>",
        f"{LU}{AGAIN}<|eot_id|>{LA}",
        f"{MORE}<|eot_id|>",
    ],
    "no_begin": [f"{IMAGE}{ASKED}", f"{SAID}</s>", AGAIN, f"{MORE}</s>"],
    "qwen3": [*CHAT[:2], CHAT[2] + THOUGHTS, CHAT[3]],
    "smollm2": [SMOL + CHAT[0], *CHAT[1:]],
    "stories": [f"<s>{IMAGE}{ASKED}", f"{SAID}</s>", AGAIN, f"{MORE}</s>"],
    "tinyvlm": CHAT,
    "unigram": [f"{IMAGE}{ASKED}", f"{SAID}</s>", AGAIN, f"{MORE}</s>"],
    "vicuna": [f"<s>{LLAVA}USER: {IMAGE}{ASKED} ASSISTANT:", f" {SAID}</s>", f"USER: {AGAIN} ASSISTANT:", f" {MORE}</s>"],
}
