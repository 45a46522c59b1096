"""A body with another model's name is the same body but for the bytes of that name."""

from __future__ import annotations

import json
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchline.domain.errors import BlobUnreadable
from batchline.domain.splices import with_member, with_model, with_stream

TARGET: Final = 'llama "3.1" é'
SPELLED: Final = json.dumps(TARGET, ensure_ascii=False).encode()


@pytest.mark.parametrize(
    ("before", "value", "after"),
    [
        (b'{"model":', b'"gpt"', b',"messages":[]}'),
        (b' {\t"model" :\r\n ', b'"gpt"', b' ,"x":1} '),
        (b'{"messages":[{"model":"gpt"},"gpt",["gpt"]],"model":', b'"gpt"', b"}"),
        (b'{"model":', b'"gpt"', b',"metadata":{"model":"gpt"},"user":"gpt"}'),
        (b'{"mod\\u0065l":', b'"g\\u0070t"', b',"x":"g\\u0070t"}'),
        (b'{"x":"\\"model\\":\\"gpt\\"","y":"\\\\","model":', b'"gpt"', b"}"),
        (b'{"gpt":"gpt","n":-1.5e+3,"b":true,"z":null,"model":', b'"gpt"', b',"e":{}}'),
        (b'{"a":{"b":[{"c":"]}"}]},"Model":"gpt","model":', b'"gpt"', b"}"),
        # Names that read like JSON: their quotes close one text and open the next elsewhere.
        (b'{"a":"b","model":', b'":"', b',"c":"d"}'),
        (b'{"a":["b","c"],"model":', b'","', b"}"),
        (b'{"t":"\xc3\xa9\xe6\xbc\xa2","model":', b'"\xc3\xa9"', b',"u":"\xc3\xa9"}'),
    ],
)
def test_exactly_the_models_name_is_replaced(before: bytes, value: bytes, after: bytes) -> None:
    assert with_model(before + value + after, TARGET) == before + SPELLED + after


texts = st.text('gpt model"\\{}[],:é', max_size=6) | st.sampled_from(["gpt", "model"])
values = st.recursive(
    texts
    | st.integers()
    | st.booleans()
    | st.none()
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
members = st.lists(st.tuples(texts.filter(lambda key: key != "model"), values), max_size=4)
spaces = st.sampled_from(["", " ", "\t", " \r\n"])


@given(members, members, texts, st.data())
def test_every_other_byte_stays(
    first: list[tuple[str, object]],
    last: list[tuple[str, object]],
    name: str,
    data: st.DataObject,
) -> None:
    def token(value: object) -> str:
        return json.dumps(value, ensure_ascii=data.draw(st.booleans()))

    def joined(some: list[tuple[str, object]]) -> str:
        return ",".join(
            f"{data.draw(spaces)}{token(key)}{data.draw(spaces)}:{data.draw(spaces)}{token(value)}"
            for key, value in some
        )

    head = "{" + joined(first) + ("," if first else "") + '"model"' + data.draw(spaces) + ":"
    tail = data.draw(spaces) + ("," if last else "") + joined(last) + "}"
    body = (head + token(name) + tail).encode()
    assert with_model(body, TARGET) == head.encode() + SPELLED + tail.encode()


@pytest.mark.parametrize("damaged", [b"", b"{", b"[]", b'{"x":1}', b"\x00" * 20])
def test_a_body_that_is_none_any_more_is_unreadable(damaged: bytes) -> None:
    with pytest.raises(BlobUnreadable):
        with_model(damaged, TARGET)


# -- asking for a stream -----------------------------------------------------------------------


@given(members, spaces)
def test_asking_for_a_stream_adds_two_members_and_leaves_every_other_byte(
    some: list[tuple[str, object]], space: str
) -> None:
    taken = {"stream", "stream_options", "background", "best_of", "use_beam_search"}
    body = json.dumps(dict([("model", "m"), *[one for one in some if one[0] not in taken]]))
    raw = b"{" + space.encode() + body.encode()[1:]
    asked = with_stream(raw, usage=True)
    assert asked is not None
    assert asked.endswith(raw[1:])
    added = {"stream": True, "stream_options": {"include_usage": True}}
    assert json.loads(asked) == {**added, **json.loads(raw)}
    plain = with_stream(raw, usage=False)
    assert plain is not None
    assert json.loads(plain) == {"stream": True, **json.loads(raw)}


@pytest.mark.parametrize(
    "member",
    [
        b'"stream":false',
        b'"str\\u0065am":null',
        b'"stream_options":null',
        b'"background":true',
        b'"best_of":3',
        b'"use_beam_search":true',
    ],
)
def test_a_body_with_a_word_of_its_own_on_streaming_is_left_alone(member: bytes) -> None:
    assert with_stream(b'{"model":"m",%b}' % member, usage=True) is None
    inner = b'{"model":"m","metadata":{%b}}' % member
    assert with_stream(inner, usage=False) == b'{"stream":true,' + inner[1:]


@pytest.mark.parametrize("body", [b"[]", b"", b"{", b'{"model":"\xff"'])
def test_what_is_no_object_asks_for_nothing(body: bytes) -> None:
    assert with_stream(body, usage=True) is None


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"model":"gpt"}', b'{"rid":"a-1","model":"gpt"}'),
        (b' {\n"model":"gpt","n":1e3}', b' {"rid":"a-1",\n"model":"gpt","n":1e3}'),
        (b'{"model":"rid","x":{"rid":"b"}}', b'{"rid":"a-1","model":"rid","x":{"rid":"b"}}'),
        (b'{"model":"gpt","rid":"mine"}', None),
        (b'{"r\\u0069d":null,"model":"gpt"}', None),
    ],
)
def test_a_member_is_put_before_all_others_unless_it_is_there(
    body: bytes, expected: bytes | None
) -> None:
    assert with_member(body, "rid", "a-1") == expected


def test_a_body_that_is_none_any_more_gets_no_member() -> None:
    with pytest.raises(BlobUnreadable):
        with_member(b"[]", "rid", "a-1")
