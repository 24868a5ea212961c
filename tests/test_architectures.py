"""The Tuner and the Predictor with other families of models than BERT, each tiny and with random weights."""
import pytest
import transformers
from tokenizers import ByteLevelBPETokenizer, SentencePieceUnigramTokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from safetune.predict import Predictor
from safetune.sample import sample_ner, sample_text
from safetune.tuning import Tuner, new_encoder

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
FAMILIES = {
    "roberta": (transformers.RobertaConfig, "bytes", {**SMALL, "max_position_embeddings": 66}),
    "distilbert": (transformers.DistilBertConfig, "pieces", {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64, "max_position_embeddings": 64}),
    "electra": (transformers.ElectraConfig, "pieces", {**SMALL, "embedding_size": 32, "max_position_embeddings": 64}),
    "deberta-v2": (transformers.DebertaV2Config, "unigram", {**SMALL, "max_position_embeddings": 64, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]}),
    "modernbert": (transformers.ModernBertConfig, "bytes", {**SMALL, "max_position_embeddings": 64, "global_attn_every_n_layers": 2}),
    "gpt2": (transformers.GPT2Config, "bytes without padding", {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}),
}


def byte_tokenizer(texts, padding):
    "A byte-level BPE tokenizer, as RoBERTa and GPT-2 have."
    learner = ByteLevelBPETokenizer()
    learner.train_from_iterator(texts, vocab_size=400, special_tokens=["<s>", "<pad>", "</s>", "<unk>"], show_progress=False)
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    if padding:
        from tokenizers.processors import RobertaProcessing
        learner._tokenizer.post_processor = RobertaProcessing(("</s>", learner.token_to_id("</s>")), ("<s>", learner.token_to_id("<s>")), add_prefix_space=True)
        special |= {"pad_token": "<pad>", "cls_token": "<s>", "sep_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=learner._tokenizer, model_max_length=64, add_prefix_space=True, **special)


def unigram_tokenizer(texts):
    "A unigram tokenizer, as DeBERTa, XLM-R and T5 have."
    learner = SentencePieceUnigramTokenizer()
    learner.train_from_iterator(texts, vocab_size=400, special_tokens=["[PAD]", "[CLS]", "[SEP]", "[UNK]"], unk_token="[UNK]", show_progress=False)
    return PreTrainedTokenizerFast(tokenizer_object=learner._tokenizer, model_max_length=64, pad_token="[PAD]", cls_token="[CLS]",
                                   sep_token="[SEP]", unk_token="[UNK]")


@pytest.fixture(scope="module")
def corpus():
    return sample_ner(n=120, seed=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_of_models_trains_saves_and_predicts(family, corpus, tmp_path):
    config_class, kind, sizes = FAMILIES[family]
    texts = [" ".join(tokens) for tokens in corpus["train"]["tokens"]]
    if kind == "pieces":
        tokenizer = AutoTokenizer.from_pretrained(new_encoder(texts, tmp_path / "pieces", vocab_size=400, hidden=32, heads=2))
    else:
        tokenizer = unigram_tokenizer(texts) if kind == "unigram" else byte_tokenizer(texts, padding=kind == "bytes")
    special = {} if tokenizer.pad_token is None else {"pad_token_id": tokenizer.pad_token_id}
    config = config_class(vocab_size=len(tokenizer), bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, **special, **sizes)
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path / "pretrained")
    tokenizer.save_pretrained(tmp_path / "pretrained")

    for data in (corpus, sample_text(n=60, seed=0)):
        tuner = Tuner(data, str(tmp_path / "pretrained"), progress=False)
        tuner.fit(epochs=1, lr=1e-3, layer_decay=0.9, dropout=0.05)
        saved = tuner.save(tmp_path / tuner.task.name)
        rows = list(data["test"])
        mine, reloaded = tuner.predict("test"), Predictor(saved).predict(rows)
        key = "tags" if "tags" in mine[0] else "label"
        assert [p[key] for p in mine] == [p[key] for p in reloaded]
    long = {"tokens": ["word"] * 300}
    assert len(Predictor(tmp_path / "token-classification").predict([long])[0]["tags"]) == 300
