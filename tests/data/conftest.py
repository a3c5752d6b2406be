import pytest
from chat_tokenizer import make_tokenizer


@pytest.fixture
def tokenizer():
  return make_tokenizer()
