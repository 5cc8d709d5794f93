"""Loading a tokenizer mends what published checkpoints get wrong, and refuses what cannot be mended."""

import subprocess
import sys

import pytest

from posttrain.core.errors import RequestError
from posttrain.data.chat import CHATML_TEMPLATE, load_tokenizer

WITHOUT_MARKERS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


def test_end_token_is_the_one_that_the_template_ends_turns_with(save_tokenizer):
    tokenizer = load_tokenizer(save_tokenizer(eos_token="<|endoftext|>", pad_token="<|endoftext|>"))
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.pad_token == "<|endoftext|>"


@pytest.mark.parametrize("pad", ["<|im_end|>", None])
def test_padding_never_is_the_end_token(save_tokenizer, pad):
    settings = {"pad_token": pad} if pad else {}
    tokenizer = load_tokenizer(save_tokenizer(eos_token="<|im_end|>", **settings))
    assert tokenizer.pad_token == "<|endoftext|>"


def test_a_template_without_generation_markers_is_replaced(save_tokenizer):
    assert load_tokenizer(save_tokenizer(chat_template=WITHOUT_MARKERS)).chat_template == CHATML_TEMPLATE


def test_a_template_with_generation_markers_is_kept(save_tokenizer):
    own = CHATML_TEMPLATE + "{# ours #}"
    assert load_tokenizer(save_tokenizer(chat_template=own)).chat_template == own


def test_saving_and_loading_again_changes_nothing(save_tokenizer, tmp_path):
    first = load_tokenizer(save_tokenizer(eos_token="<|endoftext|>"))
    first.save_pretrained(tmp_path)
    again = load_tokenizer(tmp_path)
    assert (again.eos_token, again.pad_token, again.chat_template) == (
        first.eos_token,
        first.pad_token,
        first.chat_template,
    )


def test_a_checkpoint_without_tokenizer_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    with pytest.raises(RequestError, match="has no tokenizer"):
        load_tokenizer(tmp_path)


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(RequestError, match="is not a folder"):
        load_tokenizer(tmp_path / "gone")


def test_a_hub_id_that_cannot_be_had_is_refused():
    with pytest.raises(RequestError, match="no tokenizer could be loaded from nobody/nothing"):
        load_tokenizer("nobody/nothing")


def test_no_template_and_no_chatml_tokens_is_refused(save_tokenizer):
    with pytest.raises(RequestError, match="no chat template with"):
        load_tokenizer(save_tokenizer(special=["<s>", "</s>"], eos_token="</s>"))


def test_no_token_left_to_pad_with_is_refused(save_tokenizer):
    template = "{% generation %}{{ messages[-1].content }}</s>{% endgeneration %}"
    with pytest.raises(RequestError, match="no token to pad with"):
        load_tokenizer(save_tokenizer(special=["</s>"], eos_token="</s>", chat_template=template))


def test_rendering_works_where_torch_is_not_installed(save_tokenizer):
    script = (
        "import sys; sys.modules['torch'] = None\n"
        "import posttrain.data.sources, posttrain.data.rows\n"
        "from posttrain.data.chat import load_tokenizer, render_prompt\n"
        "print(len(render_prompt(load_tokenizer(sys.argv[1]), [{'role': 'user', 'content': 'hello'}])))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(save_tokenizer())], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 5
