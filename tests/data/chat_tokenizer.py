"""A small tokenizer, chat templates with and without generation markers, and conversations to try them on."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rlhf_jax.data import chat

MARKS = ["<bos>", "<eos>", "<|im_start|>", "<|im_end|>"]
CHATML = (
  "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
  "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED = (
  "{% for m in messages %}{% if m.role == 'assistant' %}A: "
  "{%- generation %}{{ m.content }}<eos>{% endgeneration %}\n"
  "{% else %}U: {{ m.content }}\n{% endif %}{% endfor %}"
)
UNMARKED = (
  "<bos>{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
  "{% if add_generation_prompt %}assistant: {% endif %}"
)
# As Qwen3 does with thoughts: earlier answers are shortened once a later turn exists.
REWRITING = (
  "{% for m in messages %}{{ m.role }}: {% if m.role == 'assistant' and not loop.last %}...{% else %}"
  "{{ m.content }}{% endif %}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)
CALLING = (
  "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content or '' }}"
  "{% for call in m.tool_calls or [] %}{{ call.function.name }}({{ call.function.arguments.x }})"
  "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED_CALLING = (
  "{% for m in messages %}{{ m.role }}: {% if m.role == 'assistant' %}{% generation %}{{ m.content or '' }}"
  "{% for call in m.tool_calls or [] %}{{ call.function.name }}({{ call.function.arguments.x }})"
  "{% endfor %}<eos>{% endgeneration %}{% else %}{{ m.content }}{% endif %}\n{% endfor %}"
)
TWO_TURNS = [
  {"role": "user", "content": "Hi?"},
  {"role": "assistant", "content": "Yes, é."},
  {"role": "user", "content": "Bye"},
  {"role": "assistant", "content": "So long"},
]

CALL = {"function": {"name": "f", "arguments": {"x": 3}}}
TOOL_TURNS = [
  {"role": "user", "content": "Hi?"},
  {"role": "assistant", "content": None, "tool_calls": [CALL]},
  {"role": "tool", "name": "f", "content": "9"},
  {"role": "assistant", "content": "Nine", "tool_calls": []},
  {"role": "user", "content": "And?"},
  {"role": "assistant", "content": "So: ", "tool_calls": [CALL, CALL]},
]


def make_tokenizer() -> PreTrainedTokenizerFast:
  """Bytes, two line breaks as one token, and the marks; it speaks CHATML."""
  vocab = {
    token: i for i, token in enumerate([*MARKS, *sorted(pre_tokenizers.ByteLevel.alphabet())])
  }
  vocab["ĊĊ"] = len(vocab)
  backend = Tokenizer(models.BPE(vocab=vocab, merges=[("Ċ", "Ċ")]))
  backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  backend.decoder = decoders.ByteLevel()
  tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=backend, bos_token="<bos>", eos_token="<eos>"
  )
  tokenizer.add_special_tokens({"additional_special_tokens": MARKS[2:]})
  tokenizer.chat_template = CHATML
  return tokenizer


def written(tokenizer, row: chat.Tokenized) -> list[str]:
  """The text of each run of tokens under the mask."""
  assert len(row.tokens) == len(row.response_mask) and set(row.response_mask) <= {0, 1}
  runs, before = [], 0
  for token, inside in zip(row.tokens, row.response_mask, strict=True):
    if inside and not before:
      runs.append([])
    if inside:
      runs[-1].append(token)
    before = inside
  return [tokenizer.decode(run) for run in runs]
