"""When a sample ends and what its text is: stop strings over token borders, characters, lengths."""

import random
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from janus_hpc.core import FinishReason, SamplingParams
from janus_hpc.sampling.errors import RowRejected
from janus_hpc.sampling.state import SampleState
from janus_hpc.sampling.text import OutputTracker
from janus_hpc.sampling.tokenizer import TextCodec

EOS = 256
PIECES = ["\u2581", "\u2581the", "\u2581fox", "the", "fox", ".", "s", "\u2581\u2581"]
FALLBACK_PIECES = {piece: 259 + i for i, piece in enumerate(PIECES)}


def byte_codec() -> TextCodec:
    """One token a byte, id = place in the byte alphabet; every character beyond ASCII is split."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {char: i for i, char in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["</s>"])
    return TextCodec(tokenizer, None, [EOS])


def fallback_codec() -> TextCodec:
    """Words with a leading-space mark, and bytes for what has no word, as Llama 2 has them."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"<0x{b:02X}>": b + 3 for b in range(256)}}
    vocab.update(FALLBACK_PIECES)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True, unk_token="<unk>"))
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return TextCodec(tokenizer, None, [2])


BYTES, FALLBACK = byte_codec(), fallback_codec()


def track(
    codec: TextCodec | None = BYTES, max_total_len: int = 10_000, **params: Any
) -> OutputTracker:
    params.setdefault("max_tokens", 1000)
    state = SampleState(
        params=SamplingParams(**params),
        seed=0,
        row_key=0,
        sample=0,
        prompt_token_ids=[1, 2, 3],
        eos_token_ids=codec.eos_token_ids if codec else [EOS],
        vocab_size=300,
    )
    return OutputTracker(state, codec, max_total_len)


def run(tracker: OutputTracker, ids: list[int]) -> FinishReason | None:
    """Push until the sample ends."""
    for token_id in ids:
        reason = tracker.push(token_id)
        if reason is not None:
            return reason
    return None


def test_stop_string_over_token_borders() -> None:
    ids = BYTES.encode("one two\nEND three")
    tracker = track(stop=["zzz", "\nEND"])
    assert run(tracker, ids) is FinishReason.STOP
    assert (tracker.text, tracker.stop_reason) == ("one two", "\nEND")
    assert tracker.token_ids == BYTES.encode("one two\nEND")
    tracker = track(stop=["\nEND"], include_stop_str_in_output=True)
    run(tracker, ids)
    assert tracker.text == "one two\nEND"


def test_text_after_a_stop_string_inside_a_token_is_cut() -> None:
    the, fox = FALLBACK_PIECES["\u2581the"], FALLBACK_PIECES["\u2581fox"]
    for include, wanted in ((False, "the f"), (True, "the fo")):
        tracker = track(FALLBACK, stop=["o"], include_stop_str_in_output=include)
        assert run(tracker, [the, fox]) is FinishReason.STOP
        assert (tracker.text, tracker.stop_reason) == (wanted, "o")
        assert tracker.token_ids == [the, fox]


def test_the_stop_string_complete_first_wins_then_the_first_of_the_list() -> None:
    fox = FALLBACK_PIECES["fox"]
    for stop, wanted in ((["ox", "fo"], "fo"), (["ox", "x"], "ox"), (["x", "ox"], "x")):
        tracker = track(FALLBACK, stop=stop)
        run(tracker, [fox])
        assert tracker.stop_reason == wanted


@pytest.mark.parametrize(
    "text", ["\U0001f600", "caf\u00e9 \u4f60\u597d", "\U0001f468\u200d\U0001f469"]
)
def test_characters_are_never_split(text: str) -> None:
    tracker = track(stop=["\ufffd", "zz"])
    assert run(tracker, BYTES.encode(text + "!")) is None
    assert tracker.text == text + "!"
    tracker = track(stop=[text])
    assert run(tracker, BYTES.encode("a" + text + "b")) is FinishReason.STOP
    assert (tracker.text, tracker.stop_reason) == ("a", text)


def test_a_character_cut_off_by_the_length_shows_in_the_text() -> None:
    tracker = track(max_tokens=3, stop=["zz"])
    assert run(tracker, BYTES.encode("a\U0001f600")) is FinishReason.LENGTH
    assert tracker.text == "a\ufffd"


@pytest.mark.parametrize("codec", [BYTES, FALLBACK])
def test_text_equals_the_whole_decode_of_random_tokens(codec: TextCodec) -> None:
    rng = random.Random(4)
    for _ in range(300):
        ids = [rng.randrange(3, codec.vocab_size) for _ in range(rng.randrange(1, 30))]
        if codec is BYTES:
            ids = [i for i in ids if i != EOS]
        for stop in ([], ["zzz"], ["e", "ox", "1"]):
            tracker = track(codec, stop=stop)
            run(tracker, ids)
            whole = codec.decode(tracker.token_ids)
            found = str(tracker.stop_reason)
            if tracker.stop_reason is None:
                assert tracker.token_ids == ids and tracker.text == whole
            else:
                assert found in stop and found not in tracker.text
                if found in whole:
                    assert tracker.text == whole[: whole.index(found)]


def test_stop_tokens_and_end_of_text() -> None:
    ids = BYTES.encode("ab")
    stop_id = BYTES.encode("!")[0]
    cases: list[tuple[dict[str, Any], list[int], FinishReason | None, Any, str]] = [
        ({}, [*ids, EOS], FinishReason.STOP, None, "ab"),
        ({"ignore_eos": True}, [*ids, EOS, *ids], None, None, "abab"),
        ({"stop_token_ids": [stop_id]}, [*ids, stop_id], FinishReason.STOP, stop_id, "ab"),
        ({"stop_token_ids": [EOS], "ignore_eos": True}, [EOS], FinishReason.STOP, EOS, ""),
        (
            {"stop_token_ids": [stop_id], "include_stop_str_in_output": True},
            [*ids, stop_id],
            FinishReason.STOP,
            stop_id,
            "ab!",
        ),
        ({"skip_special_tokens": False, "ignore_eos": True}, [*ids, EOS], None, None, "ab</s>"),
        ({"skip_special_tokens": False}, [*ids, EOS], FinishReason.STOP, None, "ab"),
        ({"stop": ["</s>"], "skip_special_tokens": False}, [EOS], FinishReason.STOP, None, ""),
    ]
    for params, tokens, reason, stop_reason, text in cases:
        tracker = track(**params)
        assert run(tracker, tokens) is reason, params
        assert (tracker.stop_reason, tracker.text) == (stop_reason, text), params
        assert tracker.token_ids == tokens


def test_min_tokens_holds_back_stop_tokens_and_strings() -> None:
    ids = BYTES.encode("a.b.c.")
    tracker = track(stop=["."], min_tokens=2)
    run(tracker, ids)
    assert tracker.text == "a.b"
    tracker = track(min_tokens=3)
    assert run(tracker, [EOS, EOS]) is None
    assert tracker.push(EOS) is FinishReason.STOP


def test_lengths() -> None:
    ids = BYTES.encode("abcdef")
    tracker = track(max_tokens=4)
    assert run(tracker, ids) is FinishReason.LENGTH
    assert (tracker.text, tracker.stop_reason) == ("abcd", None)
    tracker = track(max_total_len=5)
    assert run(tracker, ids) is FinishReason.LENGTH
    assert tracker.text == "ab"
    tracker = track(max_tokens=1)
    assert tracker.push(EOS) is FinishReason.STOP


def test_without_a_tokenizer() -> None:
    tracker = track(None, max_tokens=2)
    assert run(tracker, [5, 6]) is FinishReason.LENGTH
    assert (tracker.text, tracker.token_ids) == ("", [5, 6])
    with pytest.raises(RowRejected, match="tokenizer") as caught:
        track(None, stop=["x"])
    assert caught.value.field == "stop"
