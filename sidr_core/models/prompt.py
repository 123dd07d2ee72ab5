"""The one prompt renderer: training, RL and inference all get their token ids here.

ChatML as Qwen3 writes it, built from explicit ids: every segment (header, user text, thought,
answer) is tokenised on its own, so a segment has the same ids wherever it stands. Deviation from the
paper's code, which renders text and then searches the answer in it: there the prompt of evaluation
differs from that of training, and merges across a boundary move tokens between prompt and answer.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from sidr_core.corpus.prompts import SYSTEM
from sidr_core.errors import SidrError
from sidr_core.tables.columns import DIRECT, THINKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TURN_START, TURN_END, PAD = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
THINK_OPEN, THINK_CLOSE = "<think>", "</think>"

#: Tokens that control the conversation: text of users can never become one of them.
SPECIAL_TOKENS = (TURN_START, TURN_END, PAD)
#: All tokens the renderer needs. The think tags are ordinary added tokens, as in Qwen3.
FORMAT_TOKENS = (*SPECIAL_TOKENS, THINK_OPEN, THINK_CLOSE)

#: Jinja template saved with each tokenizer, giving the ids of :meth:`PromptRenderer.prompt`. `enable_thinking`
#: (Qwen3's own switch, default true) chooses the mode. A conversation without a system turn gets ours.
CHAT_TEMPLATE = (
    "{%- if messages[0].role != 'system' -%}"
    "{{- '<|im_start|>system\\n' + " + json.dumps(SYSTEM) + " + '<|im_end|>\\n' -}}"
    "{%- endif -%}"
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message.role + '\\n' + (message.content | trim) + '<|im_end|>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}"
    "{{- '<|im_start|>assistant\\n<think>\\n' -}}"
    "{%- if enable_thinking is defined and enable_thinking is false -%}{{- '\\n</think>\\n\\n' -}}{%- endif -%}"
    "{%- endif -%}"
)


class PromptRenderer:
    """Turns user turns, thoughts and answers into token ids.

    Attributes:
        eos_id: id of `<|im_end|>`, which ends every completion.
        pad_id: id of `<|endoftext|>`; never equal to `eos_id`, so masking padding leaves the end in the loss.
        think_open_id, think_close_id: ids of `<think>` and `</think>`.
        close_ids: what follows a thought: newline, `</think>`, blank line. Appended to force a thought closed.
        answer_gap_ids: what stands between `</think>` and the answer: a blank line.

    Raises:
        SidrError: the tokenizer lacks one of `FORMAT_TOKENS` (`build_base` adds them).
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        start, self.eos_id, self.pad_id, self.think_open_id, self.think_close_id = _format_ids(tokenizer)
        newline = self.encode("\n")
        self.answer_gap_ids = self.encode("\n\n")
        self.close_ids = [*newline, self.think_close_id, *self.answer_gap_ids]
        turn_end = [self.eos_id, *newline]

        def header(role: str) -> list[int]:
            return [start, *self.encode(role), *newline]

        self._head = [*header("system"), *self.encode(SYSTEM), *turn_end, *header("user")]
        tail = [*turn_end, *header("assistant"), self.think_open_id]
        self._tails = {
            DIRECT: [*tail, *self.answer_gap_ids, self.think_close_id, *self.answer_gap_ids],
            THINKING: [*tail, *newline],
        }

    def encode(self, text: str) -> list[int]:
        """Token ids of text in which control tokens have no power: a written `<|im_end|>` stays plain text.

        SID tokens and think tags are ordinary entries and stay whole; `corpus.prompts.neutralise` takes them
        out of text from outside.
        """
        return self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)

    def prompt(self, user: str, mode: str) -> list[int]:
        """Ids up to where the model goes on: system turn, user turn, assistant header, prefill.

        Args:
            user: the user turn; blanks at its ends are cut.
            mode: `direct` (the thought is given, empty) or `thinking` (the thought is opened).
        """
        return [*self._head, *self.encode(user.strip()), *self._tails[mode]]

    def completion(self, answer: str, thought: str | None) -> list[int]:
        """Ids that should follow a prompt: of a direct one if `thought` is None, else of a thinking one."""
        answered = [*self.encode(answer.strip()), self.eos_id]
        if thought is None:
            return answered
        return [*self.encode(thought.strip()), *self.close_ids, *answered]

    def thought(self, thought: str) -> list[int]:
        """Ids of a thought that follows a thinking prompt, with its closing tag and no answer."""
        return [*self.encode(thought.strip()), *self.close_ids[: -len(self.answer_gap_ids)]]

    def text(self, text: str) -> list[int]:
        """Ids of plain text (a narrative) and the end token."""
        return [*self.encode(text.strip()), self.eos_id]


def _format_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    order = (TURN_START, TURN_END, PAD, THINK_OPEN, THINK_CLOSE)
    vocabulary = tokenizer.get_vocab()
    if missing := [token for token in order if token not in vocabulary]:
        raise SidrError(
            "the tokenizer cannot render prompts",
            expected=f"one vocabulary entry for each of {', '.join(order)}",
            found=f"no entry for {', '.join(missing)}",
            fix="make the model with sidr_core.models.base.build_base, which adds them",
        )
    return [vocabulary[token] for token in order]
